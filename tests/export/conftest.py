import numpy as np
import pytest
import torch
from torch.testing import assert_close

from infnet.data.batches import BatchBuilder
from infnet.export.bundle import serving_network
from infnet.export.engine import Engine, EngineTables
from infnet.export.graph import TorchBackend
from infnet.export.item_tables import dense_parameters, write_tables
from infnet.export.replay import replayed
from infnet.export.tables import Table


class Compared:
    """A model beside the engine, in PyTorch, that serves it over the items of a dataset."""

    def __init__(self, model, dataset, directory):
        whole, padded = (serving_network(model, padded=padded) for padded in (False, True))
        write_tables(whole, dataset.items, directory, "float32")

        def table(name):
            return Table.open(directory / name, "float32")

        tables = EngineTables(
            embedding=table("embedding"),
            tokens=table("tokens"),
            events=table("events") if model.layout.behaviours else None,
            items={name: table(name) for name in whole.item_tables},
            reads_targets=whole.reads_targets,
            dense=dense_parameters(whole),
        )
        self.engine = Engine(model.layout, tables, TorchBackend(whole, padded))
        self.model, self.dataset, self.gaps = model, dataset, model.layout.has_gaps
        self._rows = dataset.rows("train")

    def requests(self, pages):
        """Of pages of row numbers, whose first row says whose they are."""
        return [replayed(self.dataset, self._rows, np.array(page), gaps=self.gaps) for page in pages]

    def wanted(self, pages):
        """The model's logits of each page."""
        builder = BatchBuilder(self.dataset, self._rows, gaps=self.gaps)
        with torch.no_grad():
            return [self.model(builder.build(np.array(page)[None]))[0] for page in pages]

    def assert_agree(self, pages, tolerance=1e-5):
        """Scored alone and together, pages have the model's logits."""
        requests, wanted = self.requests(pages), self.wanted(pages)
        # A logit near zero is the sum of larger numbers, whose rounding it has.
        largest = max(0.1, *(float(each.abs().max()) for each in wanted))
        alone = [self.engine.logits([request])[0] for request in requests]
        for found in (alone, self.engine.logits(requests)):
            for mine, plain in zip(found, wanted, strict=True):
                assert_close(torch.from_numpy(mine), plain, rtol=0, atol=tolerance * largest)


@pytest.fixture(scope="session")
def compare(tmp_path_factory):
    def make(model, dataset):
        return Compared(model, dataset, tmp_path_factory.mktemp("tables"))

    return make
