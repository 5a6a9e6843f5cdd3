"""Users' histories in the next bundle: those known before, and the events that served requests read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.dataset import Dataset, History
from infnet.export.catalogue import Catalogue

__all__ = ["merged_histories"]


def merged_histories(catalogue: Catalogue, partition: Dataset, users: pl.Series) -> tuple[History, ...]:
    """Per behaviour each user's events, oldest first, every one once; as many as the layout says are kept at export.

    Args:
        catalogue: With histories by its own users and items.
        partition: A dataset of requests with the catalogue's items.
        users: (R,) key of each request's user.
    """
    owners = np.append(0, catalogue.users.find(users))
    merged = []
    for old, served in zip(catalogue.histories, partition.histories, strict=True):
        parts = [_frame(old, np.arange(catalogue.users.num)), _frame(served, owners)]
        merged.append(_merged(parts, catalogue.users.num))
    return tuple(merged)


def _frame(history: History, owners: NDArray[np.int64]) -> pl.DataFrame:
    """Events in order, each with its owner."""
    owner = np.repeat(owners, np.diff(history.starts))
    return pl.DataFrame({"user": owner.astype(np.int64), "item": history.items, "time": history.times})


def _merged(parts: Sequence[pl.DataFrame], num_users: int) -> History:
    events = pl.concat(parts).filter(pl.col("user") > 0).unique(maintain_order=True, keep="first")
    events = events.sort("user", "time", maintain_order=True)
    counts = np.bincount(events["user"].to_numpy(), minlength=num_users)
    starts = np.append(0, np.cumsum(counts))
    return History(starts, events["item"].to_numpy(), events["time"].to_numpy())
