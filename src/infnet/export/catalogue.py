"""Users, items and histories, and the encoder of their raw values: what a bundle knows beside its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from infnet.data.dataset import Dataset, EntityTable, History
from infnet.data.encoders import Encoder
from infnet.data.layout import Layout
from infnet.errors import ArtifactError
from infnet.export.keys import KeyIndex
from infnet.schema import DatasetSpec, load_spec

__all__ = ["Catalogue", "Entities", "write_entities", "write_history"]


@dataclass(frozen=True)
class Entities:
    """All users, or all items."""

    keys: pl.Series
    """Text, in order of length, then of bytes; key i is that of index i + 1."""
    table: EntityTable
    """Their encoded features, the unknown one first."""

    @property
    def num(self) -> int:
        """How many, the unknown one included."""
        return len(self.table.ids)

    def find(self, keys: pl.Series) -> NDArray[np.int64]:
        """Index (n,) of every key; 0 for unknown ones."""
        known = self.keys.alias("key").to_frame().with_columns(index=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
        found = keys.alias("key").to_frame().join(known, on="key", how="left", maintain_order="left")
        return found["index"].fill_null(0).to_numpy()


@dataclass(frozen=True)
class Catalogue:
    """All that a bundle holds of users and items."""

    spec: DatasetSpec
    encoder: Encoder
    users: Entities
    items: Entities
    item_values: Mapping[str, NDArray[np.float64]]
    """Per feature of a request that reads its item, what it reads (num_items,)."""
    histories: tuple[History, ...]
    """Per behaviour."""

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Catalogue:
        """All of a prepared dataset.

        Raises:
            ArtifactError: A file is missing or damaged.
        """
        path = dataset.path
        encoder, spec = Encoder.load(path), load_spec(path / "spec.yaml")
        values = {}
        for name, feature in encoder.features.items():
            file = path / "items" / "values" / f"{name}.npy"
            if file.is_file():
                values[name] = np.load(file, mmap_mode="r").view(np.ndarray)
            elif feature.reads == "item" and spec.item is not None:
                raise ArtifactError(
                    f"{file}: is missing, an older version made the dataset; prepare it again and train"
                )
        users, items = (
            Entities(pl.read_parquet(path / side / "keys.parquet")["key"], table)
            for side, table in (("users", dataset.users), ("items", dataset.items))
        )
        return cls(spec, encoder, users, items, values, dataset.histories)

    def write(self, directory: Path, layout: Layout) -> None:
        """Write all but the items' features into a bundle, histories as long as its layout says."""
        spec = yaml.safe_dump(self.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (directory / "spec.yaml").write_text(spec, encoding="utf-8")
        self.encoder.save(_made(directory / "encoder"))
        for side, entities in (("users", self.users), ("items", self.items)):
            KeyIndex.write(_made(directory / side) / "keys.npy", entities.keys)
        for name, values in self.item_values.items():
            np.save(_made(directory / "items" / "values") / f"{name}.npy", values)
        write_entities(self.users.table, directory / "users")
        for behaviour, history in zip(layout.behaviours, self.histories, strict=True):
            kept = np.minimum(np.diff(history.starts), behaviour.length)
            starts = np.append(0, np.cumsum(kept))
            places = np.arange(starts[-1]) + np.repeat(history.starts[1:] - starts[1:], kept)
            last = History(starts, history.items[places], history.times[places])
            write_history(last, _made(directory / "history"), behaviour.name)


def write_entities(table: EntityTable, directory: Path) -> None:
    """Write ``ids.npy`` and ``dense.npy``; of width zero, no file."""
    for name, array in (("ids", table.ids), ("dense", table.dense)):
        if array.size:
            np.save(directory / f"{name}.npy", array)


def write_history(history: History, directory: Path, behaviour: str) -> None:
    """Write the three files of one behaviour."""
    for name, values in (("starts", history.starts), ("items", history.items), ("times", history.times)):
        np.save(directory / f"{behaviour}.{name}.npy", values)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
