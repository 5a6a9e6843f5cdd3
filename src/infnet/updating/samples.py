"""The samples of an update: what is learnt from, and what is held out to judge by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from infnet.errors import ArtifactError, DataError
from infnet.schema import DatasetSpec
from infnet.serving.label_join import Delayed
from infnet.serving.samples import scan_parts

__all__ = ["Samples", "collect_samples", "count_new", "delayed_tasks", "label_column"]

_HOUR_MS = 3_600_000
_LEAST_HELD_OUT = 1000
"""Rows to judge by, as far as there are so many."""
_PART = re.compile(r"part-(\d+)")
_UNIT = 2**64


@dataclass(frozen=True)
class Samples:
    """Impressions with their labels, and the requests they belong to."""

    rows: pl.DataFrame
    """Columns ``request`` (row in :attr:`requests`), ``item`` (key), ``impression_ms``, ``values`` (JSON text), a label
    per task, ``is_valid``: held out, never learnt from, and ``is_repeat``: of an impression that another row counts,
    here or in an older partition. By request, then as they were logged."""
    requests: pl.DataFrame
    """As :func:`infnet.serving.samples.read_samples` gives them, by time."""
    last_part: int
    """The newest partition learnt from."""

    @property
    def newest_ms(self) -> int:
        """Of the impressions learnt from."""
        return int(self.rows.filter(~pl.col("is_valid"))["impression_ms"].to_numpy().max(initial=0))


def label_column(task: str) -> str:
    """Of a task in samples."""
    return f"label_{task}"


def delayed_tasks(spec: DatasetSpec) -> tuple[str, ...]:
    """Tasks whose labels :func:`infnet.serving.label_join.join_labels` does not wait for with ``fake_negative``."""
    shortest = min(task.window_s for task in spec.tasks)
    waited = max([shortest, *(task.window_s for task in spec.tasks if task.kind == "regression")])
    return tuple(task.name for task in spec.tasks if task.kind == "binary" and task.window_s > waited)


def count_new(directory: Path, since_part: int) -> int:
    """Impressions in partitions after one."""
    new = [number for number in _numbers(directory) if number > since_part]
    return _read(directory, new)[0].filter(~pl.col("is_correction")).height if new else 0


def collect_samples(
    directory: Path, spec: DatasetSpec, *, since_part: int, holdout: float = 0.05, delayed: Delayed = "wait"
) -> Samples:
    """Read what an update learns from and is judged by.

    A fixed share of all requests, chosen by their ids, is never learnt from. Of it, an update is judged by the newest
    hour; if that has fewer than 1,000 rows, by the newest 1,000, from older partitions as well.

    Args:
        directory: Partitions that the label join wrote.
        spec: Of the dataset.
        since_part: The newest partition that has been learnt from.
        holdout: The share held out.
        delayed: With ``fake_negative``, an impression of a delayed task stands once as a negative and, if it was
            positive, once more as a positive, as the weights of :func:`infnet.training.objectives.task_losses` need it.

    Raises:
        DataError: There is nothing new.
        ArtifactError: A partition is damaged.
    """
    numbers = _numbers(directory)
    new = [number for number in numbers if number > since_part]
    if not new:
        raise DataError(f"{directory}: no samples after partition {since_part}; join more events, or wait for them")
    rows, requests = _read(directory, new)
    is_held = _is_held_out(rows, holdout)
    train, held = rows.filter(~is_held), [rows.filter(is_held)]
    older, all_requests = [number for number in numbers if number <= since_part], [requests]
    while older and sum(frame.height for frame in held) < _LEAST_HELD_OUT:
        rows, requests = _read(directory, [older.pop()])
        held.append(rows.filter(_is_held_out(rows, holdout)))
        all_requests.append(requests)
    if not train.height:
        raise DataError(f"{directory}: no samples to learn from after partition {since_part}; wait for more events")
    tasks = [task.name for task in spec.tasks]
    valid = _newest(_corrected(pl.concat(held, how="diagonal"), tasks))
    if delayed == "fake_negative":
        train = _with_negatives(train, delayed_tasks(spec), tasks)
    chosen = pl.concat(
        [train.with_columns(is_valid=pl.lit(False)), valid.with_columns(is_valid=pl.lit(True))], how="diagonal"
    )
    found = pl.concat(all_requests, how="diagonal").unique("request_id", keep="first", maintain_order=True)
    found = found.join(chosen.select("request_id").unique(), on="request_id", how="semi").sort("time_ms", "request_id")
    places = found.select("request_id", request=pl.int_range(pl.len(), dtype=pl.Int64))
    joined = chosen.join(places, on="request_id", how="left", maintain_order="left")
    if joined["request"].null_count():
        first = joined.filter(pl.col("request").is_null())["request_id"][0]
        raise ArtifactError(f"{directory}: sample of request {first} without the request; join into another place")
    labels = [label_column(task) for task in tasks]
    renamed = pl.col("item_id").alias("item"), pl.col("is_correction").alias("is_repeat")
    rows = joined.select("request", "impression_ms", "values", *renamed, *labels, "is_valid")
    return Samples(rows.sort("request", maintain_order=True), found, new[-1])


def _numbers(directory: Path) -> list[int]:
    """Of the partitions, ascending."""
    return sorted(int(match[1]) for path in directory.glob("part-*") if (match := _PART.fullmatch(path.name)))


def _read(directory: Path, numbers: Sequence[int]) -> tuple[pl.DataFrame, pl.DataFrame]:
    try:
        rows, requests = scan_parts(directory, numbers)
        return rows.collect(), requests.collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(
            f"{directory}: a partition of {numbers[0]} to {numbers[-1]} is damaged ({error}); join into another place"
        ) from error


def _is_held_out(rows: pl.DataFrame, share: float) -> pl.Series:
    """Whether each row's request is: the same for ever, and with a larger share still."""
    ids = rows["request_id"].unique()
    numbers = [int.from_bytes(hashlib.blake2b(each.encode(), digest_size=8).digest()) for each in ids]
    held = ids.filter(pl.Series([number < share * _UNIT for number in numbers], dtype=pl.Boolean))
    return rows["request_id"].is_in(held.implode())


def _newest(rows: pl.DataFrame) -> pl.DataFrame:
    """Those of the last hour, and as many as it takes."""
    ordered = rows.sort("impression_ms", descending=True, maintain_order=True)
    newest = ordered["impression_ms"].max()
    num = ordered.filter(pl.col("impression_ms") > pl.lit(newest) - _HOUR_MS).height if ordered.height else 0
    return ordered.head(max(num, _LEAST_HELD_OUT)).sort("impression_ms", maintain_order=True)


def _corrected(rows: pl.DataFrame, tasks: Sequence[str]) -> pl.DataFrame:
    """Impressions with the labels that became known later."""
    keys = ["request_id", "item_id"]
    names = [label_column(task) for task in tasks]
    later = rows.filter("is_correction").group_by(keys).agg(pl.col(name).max().alias(f"later_{name}") for name in names)
    joined = rows.filter(~pl.col("is_correction")).join(later, on=keys, how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce(f"later_{name}", name).alias(name) for name in names).select(rows.columns)


def _with_negatives(rows: pl.DataFrame, delayed: Sequence[str], tasks: Sequence[str]) -> pl.DataFrame:
    """Positives of delayed tasks taken out of their impressions, as corrections of their own behind them."""
    nothing = pl.lit(None, dtype=pl.Float32)
    parts = [
        rows.with_columns(
            pl.when(~pl.col("is_correction") & (pl.col(label_column(task)) > 0))
            .then(pl.lit(0, dtype=pl.Float32))
            .otherwise(pl.col(label_column(task)))
            .alias(label_column(task))
            for task in delayed
        )
    ]
    for task in delayed:
        positive = rows.filter(~pl.col("is_correction") & (pl.col(label_column(task)) > 0))
        others = [nothing.alias(label_column(each)) for each in tasks if each != task]
        parts.append(positive.with_columns(*others, is_correction=pl.lit(True)))
    return pl.concat(parts)
