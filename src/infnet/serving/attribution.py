"""Which events tell which labels of which impressions."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from infnet.schema import Task

__all__ = ["IDS", "attribute", "is_within", "turned_positive", "window_ms"]

IDS = ("request_id", "item_id")


def window_ms(task: Task) -> int:
    """The task's window."""
    return round(1000 * task.window_s)


def is_within(window: int) -> pl.Expr:
    """Whether an event (``time_ms``) belongs to its impression (``impression_ms``), by time."""
    return pl.col("time_ms").is_between(pl.col("impression_ms") - window, pl.col("impression_ms") + window)


def attribute(impressions: pl.DataFrame, events: pl.DataFrame, tasks: Sequence[Task]) -> pl.DataFrame:
    """Impressions with a ``label_<task>`` for every task.

    Args:
        impressions: With ``request_id, item_id`` and ``impression_ms``.
        events: With ``request_id, item_id, type, time_ms`` and ``value``, in the order of their arrival.
    """
    told = impressions.select(*IDS, "impression_ms").join(events, on=IDS).sort("time_ms", maintain_order=True)
    labels = told.group_by(IDS, maintain_order=True).agg(_label(task) for task in tasks)
    return impressions.join(labels, on=IDS, how="left", maintain_order="left").with_columns(
        pl.col(f"label_{task.name}").fill_null(0.0).clip(upper_bound=task.clip).cast(pl.Float32) for task in tasks
    )


def turned_positive(samples: pl.DataFrame, events: pl.DataFrame, task: Task) -> pl.DataFrame:
    """``request_id, item_id`` of the samples whose label of a binary task is 0, but whose events say 1."""
    label = f"label_{task.name}"
    if label not in samples.columns:  # the task is newer than they are
        return samples.select(IDS).clear()
    negative = samples.filter(pl.col(label) == 0).select(*IDS, "impression_ms")
    tells = (pl.col("type") == task.event_type) & (pl.col("value") > 0) & is_within(window_ms(task))
    return negative.join(events, on=IDS).filter(tells).select(IDS).unique()


def _label(task: Task) -> pl.Expr:
    """Of the events of one impression, in the order of their times; null if none tells it."""
    name = f"label_{task.name}"
    values = pl.col("value").filter((pl.col("type") == task.event_type) & is_within(window_ms(task)))
    if task.kind == "binary":
        return (values > 0).any().cast(pl.Float64).alias(name)
    combined = {"sum": values.sum(), "max": values.max(), "last": values.last()}
    return combined[task.combine].alias(name)
