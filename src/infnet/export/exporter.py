"""From a training run to a bundle, which appears whole and checked or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

import infnet
from infnet.data.batches import BatchBuilder
from infnet.data.dataset import Dataset
from infnet.data.encoders import Encoder
from infnet.data.workspace import replacing
from infnet.errors import ArtifactError, SpecError, TrainingError
from infnet.evaluation.auc import auc
from infnet.evaluation.efficiency import request_rows, seconds_of
from infnet.evaluation.evaluate import open_dataset_of
from infnet.export.bundle import (
    BUNDLE_VERSION,
    MANIFEST,
    BackendName,
    Bundle,
    BundleManifest,
    FileRecord,
    serving_network,
    sha256_of,
)
from infnet.export.engine import Engine
from infnet.export.graph import GraphInputs, quantize_dense, require_runtime, write_graph
from infnet.export.item_tables import dense_parameters, write_tables
from infnet.export.keys import KeyIndex
from infnet.export.replay import replayed
from infnet.export.tables import Precision
from infnet.models.base import RankingModel
from infnet.schema import load_spec
from infnet.training.checkpoint import save_checkpoint, write_atomically
from infnet.training.run import Run

__all__ = ["MAX_DIFFERENCE", "MAX_LOSS", "export_run", "sampled_aucs"]

MAX_DIFFERENCE = 1e-5
"""Between bundle and training model, relative to the largest logit."""
MAX_LOSS = 0.0005
"""Of validation AUC by compression, the mean over binary tasks."""

_BACKENDS: tuple[BackendName, ...] = ("onnx", "torch")
_REQUESTS, _CANDIDATES = 32, 40
"""Compared with the training model."""
_TIMED_CANDIDATES = 500
_JUDGED_ROWS = 20_000
"""On which compression is judged."""


def export_run(
    run: Run | Path | str,
    out: Path | str,
    *,
    precision: Precision = "float32",
    int8_dense: bool = False,
    data: Path | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Write a run's best checkpoint as a bundle.

    Args:
        run: The run.
        out: Directory to make; an older bundle there is replaced.
        precision: Of tables.
        int8_dense: Turn products with weights in the graph into int8 ones.
        data: Where the run's dataset is now; where it was by default.
        on_stage: Called with what is being done.

    Raises:
        SpecError: The model cannot be exported, or an exporter is not installed.
        TrainingError: Bundle and model disagree, or compression costs too much; nothing is written.
        ArtifactError: Run or dataset is missing or damaged.
        DataError: ``out`` is something else or cannot be written.
    """
    require_runtime()
    run, out = run if isinstance(run, Run) else Run.load(run), Path(out)
    dataset, model = open_dataset_of(run, data), run.load_model()
    serving_network(model, padded=False)  # says no before any work
    with replacing(out, MANIFEST) as directory:
        _Export(run, dataset, model, directory, on_stage).write(precision, int8_dense=int8_dense)
    return Bundle.open(out)


class _Export:
    def __init__(
        self, run: Run, dataset: Dataset, model: RankingModel, directory: Path, on_stage: Callable[[str], None]
    ) -> None:
        self._run, self._dataset, self._model, self._directory = run, dataset, model, directory
        self._on_stage = on_stage
        self._network = serving_network(model, padded=False)
        split = next((name for name in ("valid", "test", "train") if dataset.manifest.splits.get(name)), None)
        if split is None:
            raise SpecError(f"{dataset.path}: has no rows to check the bundle with")
        self._split, self._rows = split, dataset.rows(split)
        self._has_gaps = model.layout.has_gaps

    def write(self, precision: Precision, *, int8_dense: bool) -> None:
        directory = self._directory
        self._on_stage("copying users, items and encoders")
        self._write_entities()
        save_checkpoint(directory / "model.safetensors", self._dense_state(), {"run": self._run.about["seed"]})
        save_file(dense_parameters(self._network), directory / "serving.safetensors")
        self._on_stage("computing the tables of items")
        write_tables(self._network, self._dataset.items, directory / "tables", "float32")
        manifest = self._manifest()
        bundle = Bundle(directory, manifest)
        self._on_stage("writing the graphs")
        self._write_graphs(bundle)
        self._on_stage("comparing with the training model")
        engines = {name: bundle.engine(name) for name in _BACKENDS}
        parity = {name: self._difference(engine) for name, engine in engines.items()}
        for name, difference in parity.items():
            if not difference <= MAX_DIFFERENCE:
                raise TrainingError(
                    f"{self._run.path}: the bundle's {name} back end and the model differ by {difference:.1e} of the "
                    f"largest logit, wanted at most {MAX_DIFFERENCE:.0e}; report this, nothing was written"
                )
        loss: dict[str, float] = {}
        if precision != "float32" or int8_dense:
            self._on_stage("compressing, and judging what it costs")
            before = sampled_aucs(engines["onnx"], self._dataset, self._split)
            manifest = manifest.model_copy(update={"precision": precision, "int8_dense": int8_dense})
            bundle = self._compressed(manifest)
            engines = {name: bundle.engine(name) for name in _BACKENDS}
            after = sampled_aucs(engines["onnx"], self._dataset, self._split)
            loss = {task: before[task] - after[task] for task in before}
            mean = float(np.mean([*loss.values()])) if loss else 0.0
            if not mean <= MAX_LOSS:
                raise TrainingError(
                    f"{self._run.path}: {precision}{' with int8 products' if int8_dense else ''} costs {mean:.5f} of "
                    f"validation AUC, wanted at most {MAX_LOSS}; export it with less compression, nothing was written"
                )
        request_ms = {name: 1000 * self._request_seconds(engine) for name, engine in engines.items()}
        update = {
            "parity": parity,
            "loss": loss,
            "request_ms": request_ms,
            "backend": min(request_ms, key=lambda name: request_ms[name]),
            "files": {
                path.relative_to(directory).as_posix(): FileRecord(size=path.stat().st_size, sha256=sha256_of(path))
                for path in sorted(directory.rglob("*"))
                if path.is_file()
            },
        }
        manifest = manifest.model_copy(update=update)
        write_atomically(directory / MANIFEST, manifest.model_dump_json(indent=1))

    def _write_entities(self) -> None:
        source, directory = self._dataset.path, self._directory
        encoder = Encoder.load(source)
        encoder.save(_made(directory / "encoder"))
        has_table = load_spec(source / "spec.yaml").item is not None
        for name, feature in encoder.features.items():
            file = source / "items" / "values" / f"{name}.npy"
            if feature.reads == "item" and has_table and not file.is_file():
                raise ArtifactError(
                    f"{file}: is missing, an older version made the dataset; prepare it again and train"
                )
        shutil.copyfile(source / "spec.yaml", directory / "spec.yaml")
        for side in ("users", "items"):
            keys = pl.read_parquet(source / side / "keys.parquet")["key"]
            KeyIndex.write(_made(directory / side) / "keys.npy", keys)
        if (source / "items" / "values").is_dir():
            shutil.copytree(source / "items" / "values", directory / "items" / "values")
        for name in ("ids", "dense"):
            array = getattr(self._dataset.users, name)
            if array.size:
                np.save(directory / "users" / f"{name}.npy", array)
        for behaviour, history in zip(self._dataset.layout.behaviours, self._dataset.histories, strict=True):
            kept = np.minimum(np.diff(history.starts), behaviour.length)
            starts = np.append(0, np.cumsum(kept))
            places = np.arange(starts[-1]) + np.repeat(history.starts[1:] - starts[1:], kept)
            stem = _made(directory / "history") / behaviour.name
            for name, values in (
                ("starts", starts),
                ("items", history.items[places]),
                ("times", history.times[places]),
            ):
                np.save(stem.with_name(f"{stem.name}.{name}.npy"), values)

    def _dense_state(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self._model.state_dict().items() if name != "embedding.weight"}

    def _manifest(self) -> BundleManifest:
        return BundleManifest(
            format_version=BUNDLE_VERSION,
            package_version=infnet.__version__,
            name=self._dataset.manifest.name,
            model=self._model.name,
            settings=self._model.config.model_dump(mode="json"),
            layout=self._model.layout,
            num_users=self._dataset.manifest.num_users,
            num_items=self._dataset.manifest.num_items,
            item_tables=self._network.item_tables,
            reads_targets=self._network.reads_targets,
            precision="float32",
            int8_dense=False,
            fingerprint=self._run.about["fingerprint"],
            run={key: self._run.about.get(key) for key in ("seed", "versions")}
            | {"valid": self._run.report["metrics"]},
            parity={},
            loss={},
            request_ms={},
            backend="onnx",
            files={},
        )

    def _write_graphs(self, bundle: Bundle) -> None:
        # Two of everything that is dynamic: what is one while it is traced stays one.
        for name, num_requests in (("whole", 1), ("padded", 2)):
            network = serving_network(self._model, padded=num_requests > 1)
            write_graph(network, self._blank(bundle, num_requests), self._directory / f"{name}.onnx")

    def _blank(self, bundle: Bundle, num_requests: int) -> GraphInputs:
        """Zeros in the shapes of a request."""
        tables, behaviours = bundle.engine_tables, self._model.layout.behaviours
        num_request, num_item, num_own = self._model.inputs.num_tokens
        width, leading = tables.tokens.shape[2], (num_requests, 3)
        shapes = [table.shape[1:] for table in tables.items.values()]
        if tables.reads_targets:
            shapes.append((len(behaviours), width))

        def zeros(*shape: int) -> NDArray[np.float32]:
            return np.zeros(shape, np.float32)

        return GraphInputs(
            request=zeros(num_requests, num_request, width),
            fields=zeros(*leading, num_item + num_own, width),
            own=zeros(*leading, num_own, width),
            tables=[zeros(*leading, *shape) for shape in shapes],
            events=[zeros(num_requests, 2 + index, width) for index in range(len(behaviours))],
            present=[zeros(num_requests, 2 + index) for index in range(len(behaviours))],
        )

    def _compressed(self, manifest: BundleManifest) -> Bundle:
        shutil.rmtree(self._directory / "tables")
        write_tables(self._network, self._dataset.items, self._directory / "tables", manifest.precision)
        if manifest.int8_dense:
            for name in ("whole", "padded"):
                quantize_dense(self._directory / f"{name}.onnx")
        return Bundle(self._directory, manifest)

    def _chosen(self, index: int, num_candidates: int) -> NDArray[np.int64]:
        rng = np.random.default_rng(index)
        return rng.integers(0, len(self._rows), num_candidates)

    def _difference(self, engine: Engine) -> float:
        """Of sampled requests, one by one and together."""
        builder = BatchBuilder(self._dataset, self._rows, gaps=self._has_gaps)
        requests, wanted = [], []
        with torch.inference_mode():
            for index in range(_REQUESTS):
                chosen = self._chosen(index, 1 + (index * _CANDIDATES) // _REQUESTS)
                requests.append(replayed(self._dataset, self._rows, chosen, gaps=self._has_gaps))
                wanted.append(self._model(builder.build(chosen[None]))[0].numpy())
        largest = max(np.abs(each).max() for each in wanted)
        alone = [engine.logits([request])[0] for request in requests]
        worst = 0.0
        for found in (alone, engine.logits(requests)):
            # NaN has to win, which max() of Python does not promise.
            worst = float(np.maximum(worst, np.max([np.abs(f - w).max() for f, w in zip(found, wanted, strict=True)])))
        return worst / float(largest)

    def _request_seconds(self, engine: Engine) -> float:
        chosen = request_rows(self._dataset, self._split, _TIMED_CANDIDATES)
        request = replayed(self._dataset, self._rows, chosen, gaps=self._has_gaps)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return seconds_of(lambda: engine.logits([request]), 20)
        finally:
            torch.set_num_threads(threads)


def sampled_aucs(engine: Engine, dataset: Dataset, split: str) -> dict[str, float]:
    """AUC of each binary task over up to 20,000 rows of a split, evenly spaced, each a request by itself."""
    rows, layout = dataset.rows(split), engine.layout
    chosen = np.unique(np.linspace(0, len(rows) - 1, _JUDGED_ROWS).astype(np.int64))
    found = []
    for part in np.array_split(chosen, max(1, len(chosen) // 256)):
        requests = [replayed(dataset, rows, row[None], gaps=layout.has_gaps) for row in part]
        found += [logits[0] for logits in engine.logits(requests)]
    scores, labels = np.stack(found), rows.labels[chosen]
    aucs = {}
    for index, task in enumerate(layout.tasks):
        seen = ~np.isnan(labels[:, index])
        is_positive = labels[seen, index] > 0
        if task.kind == "binary" and 0 < is_positive.sum() < len(is_positive):
            aucs[task.name] = auc(is_positive, scores[seen, index])
    return aucs


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
