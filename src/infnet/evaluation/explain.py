"""What a trained INFNet looks at: one request of a user, or the average of many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from infnet.data.batches import BatchBuilder
from infnet.data.dataset import Dataset
from infnet.errors import ArtifactError, DataError, SpecError
from infnet.evaluation.attention_maps import AttentionMap, attention_maps
from infnet.evaluation.evaluate import open_dataset_of
from infnet.models.infnet import INFNet
from infnet.training.run import Run

__all__ = ["Explanation", "explain_run"]

_NUM_SHOWN = 2


@dataclass(frozen=True)
class Explanation:
    """Attention maps, and whose they are."""

    title: str
    maps: list[AttentionMap]

    def as_json(self) -> dict[str, Any]:
        """Every weight of every map."""
        return {"title": self.title, "maps": [found.as_json() for found in self.maps]}

    def as_table(self) -> Table:
        """The largest weights of every block."""
        table = Table(title=self.title, box=SIMPLE_HEAD)
        for heading in ("block", "query"):
            table.add_column(heading, no_wrap=True)
        sources = list(dict.fromkeys(found.source for found in self.maps))
        for source in sources:
            table.add_column(source, overflow="fold")
        for block in sorted({found.block for found in self.maps}):
            by_source = {found.source: found for found in self.maps if found.block == block}
            queries = list(dict.fromkeys(name for found in by_source.values() for name in found.queries))
            for query in queries:
                cells = [_largest(by_source[source], query) if source in by_source else "" for source in sources]
                table.add_row(str(block), query, *cells, end_section=query == queries[-1])
        return table


def explain_run(
    run: Run, split: str = "test", *, user: str | None = None, num_requests: int | None = None, data: Path | None = None
) -> Explanation:
    """Attention maps of a run's best checkpoint on rows of a split.

    Args:
        run: Of INFNet.
        split: Of the dataset.
        user: Key of a user; None takes rows of all users, evenly spread.
        num_requests: The user's latest rows to average; by default the last one, or 256 rows of all users.
        data: Where the dataset is now; where it was when the run began by default.

    Raises:
        SpecError: The model is another one, or the user is unknown or has no rows in the split.
        ArtifactError: Run or dataset is missing or damaged, or they do not belong together.
        DataError: The split has no rows.
    """
    model = run.load_model()
    if not isinstance(model, INFNet):
        raise SpecError(
            f"{run.path}: explain reads the attention of 'infnet', and this is a run of '{run.config.model}'"
        )
    if model.config.attention == "mean":
        raise SpecError(f"{run.path}: was trained with attention 'mean', whose weights are all alike")
    dataset = open_dataset_of(run, data)
    rows = _rows_of_user(dataset, split, user) if user is not None else _spread(dataset, split, num_requests or 256)
    if user is not None:
        rows = rows[-(num_requests or 1) :]
    builder = BatchBuilder(dataset, dataset.rows(split), gaps=model.layout.has_gaps)
    maps = attention_maps(model, builder.build(rows[:, None]))
    if len(rows) == 1:
        items = _event_items(dataset, split, int(rows[0]))
        maps = [_with_items(found, items) if found.source == "events" else found for found in maps]
    whose = "" if user is None else f"user {user}, "
    which = "1 request" if len(rows) == 1 else f"average of {len(rows):,} requests"
    return Explanation(f"{dataset.manifest.name} {split}, {whose}{which}", maps)


def _rows_of_user(dataset: Dataset, split: str, key: str) -> NDArray[np.int64]:
    """In order of time."""
    keys = _keys(dataset, "users")
    if keys is None:
        raise ArtifactError(f"{dataset.path}: has no users/keys.parquet to find a user in; leave out --user")
    found = keys.index_of(key)
    if found is None:
        raise SpecError(f"--user {key}: {dataset.path} has no such user; its users/keys.parquet lists them")
    rows = np.flatnonzero(dataset.rows(split).user == found + 1)
    if not len(rows):
        raise SpecError(f"--user {key}: has no rows in split '{split}'; choose another user, or another --split")
    return rows


def _spread(dataset: Dataset, split: str, num_requests: int) -> NDArray[np.int64]:
    total = dataset.num_rows(split)
    if total == 0:
        raise DataError(f"{dataset.path}: split '{split}' has no rows; choose another --split")
    return np.unique(np.linspace(0, total - 1, min(num_requests, total)).astype(np.int64))


def _event_items(dataset: Dataset, split: str, row: int) -> dict[str, str]:
    """The item's key of each event of a row, by the event's name; empty if the dataset has no keys."""
    keys, rows = _keys(dataset, "items"), dataset.rows(split)
    if keys is None:
        return {}
    items: dict[str, str] = {}
    for index, (behaviour, history) in enumerate(zip(dataset.layout.behaviours, dataset.histories, strict=True)):
        end = int(rows.ends[row, index])
        first = max(int(history.starts[rows.user[row]]), end - behaviour.length)
        for place, item in enumerate(history.items[first:end][::-1].tolist(), start=1):
            items[f"{behaviour.name} -{place}"] = keys[item - 1] if item else "unknown"
    return items


def _with_items(found: AttentionMap, items: dict[str, str]) -> AttentionMap:
    return replace(found, keys=tuple(f"{key} (item {items[key]})" if key in items else key for key in found.keys))


def _keys(dataset: Dataset, entities: str) -> pl.Series | None:
    file = dataset.path / entities / "keys.parquet"
    return pl.read_parquet(file)["key"] if file.is_file() else None


def _largest(found: AttentionMap, query: str) -> str:
    if query not in found.queries or not found.keys:
        return ""
    row = found.queries.index(query)
    best = np.argsort(-found.weights[row], kind="stable")[:_NUM_SHOWN]
    return "\n".join(f"{found.weights[row, key]:.1%} {found.keys[key]}" for key in best)
