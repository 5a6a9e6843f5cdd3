"""Rows of a prepared dataset as the requests that the engine takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infnet.data.batches import gap_buckets
from infnet.data.dataset import Dataset, SplitRows
from infnet.export.engine import EncodedRequest, Values

__all__ = ["replayed"]


def replayed(dataset: Dataset, rows: SplitRows, chosen: NDArray[np.int64], *, gaps: bool) -> EncodedRequest:
    """The request of user, context and histories of the first row, with the items of all rows (N,).

    :meth:`infnet.data.batches.BatchBuilder.build` makes the same of ``chosen[None]``.
    """
    first, user = int(chosen[0]), int(rows.user[chosen[0]])
    histories, elapsed = [], []
    for index, (behaviour, history) in enumerate(zip(dataset.layout.behaviours, dataset.histories, strict=True)):
        end = int(rows.ends[first, index])
        start = max(int(history.starts[user]), end - behaviour.length)
        histories.append(history.items[start:end][::-1])
        elapsed.append(gap_buckets(rows.time[first] - history.times[start:end][::-1]))
    return EncodedRequest(
        user=Values(dataset.users.ids[user], dataset.users.dense[user]),
        context=Values(rows.context[first], rows.context_dense[first]),
        items=rows.item[chosen],
        candidate=Values(rows.candidate[chosen], rows.candidate_dense[chosen]),
        histories=histories,
        gaps=elapsed if gaps else None,
    )
