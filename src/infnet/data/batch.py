"""RequestBatch: R requests with N candidates each, the one thing every model takes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

__all__ = ["FieldValues", "RequestBatch"]


@dataclass(frozen=True)
class FieldValues:
    """The values of one side's fields for n entities.

    ids: (n, id_width) int32 positions in :attr:`RequestBatch.rows`, -1 for the padding of multi-valued fields.
    dense: (n, dense_width) float32.
    """

    ids: Tensor
    dense: Tensor

    def to(self, device: torch.device) -> FieldValues:
        """The same on another device."""
        return FieldValues(self.ids.to(device, non_blocking=True), self.dense.to(device, non_blocking=True))


@dataclass(frozen=True)
class RequestBatch:
    """R requests with N candidates each; the user side stands once per request.

    Embedding rows, candidate items and history events are each listed once (``rows``, ``item``, ``event``) and
    referred to by position, so that a model embeds nothing twice. L is the sum of the behaviours' lengths, behaviours
    side by side in the layout's order, each most recent event first and padded at its end.
    """

    rows: Tensor
    """(U,) int64, the distinct rows of the embedding table that this batch reads."""
    user: FieldValues
    """R rows."""
    context: FieldValues
    """R rows."""
    item: FieldValues
    """J distinct candidate items."""
    candidate: FieldValues
    """R * N rows, request by request: fields that depend on request and item together."""
    candidate_item: Tensor
    """(R, N) int32 position in ``item``."""
    present: Tensor
    """(R, N) bool, False for the padding of requests with fewer than N candidates."""
    event_ids: Tensor
    """(E, w) int32 positions in ``rows``, -1 for padding: the id columns of each distinct event item's token fields.
    Columns: the id columns of all fields that any behaviour's tokens use, in layout order (``Layout.event_fields``)."""
    history: Tensor
    """(R, L) int32 position in ``event_ids``; any valid one where absent."""
    history_present: Tensor
    """(R, L) bool."""
    history_gap: Tensor
    """(R, L) int32 bucket of the time from the event to the request; shape (R, 0) if no behaviour asks for it."""
    labels: Tensor | None
    """(R, N, T) float32, NaN where unobserved."""
    user_index: Tensor
    """(R,) int64, the user's index in the dataset, for metrics by user."""

    @property
    def num_requests(self) -> int:
        """R."""
        return self.present.shape[0]

    @property
    def num_candidates(self) -> int:
        """N."""
        return self.present.shape[1]

    def to(self, device: torch.device) -> RequestBatch:
        """The same batch on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: None if value is None else _to(value, device) for name, value in values.items()}
        return RequestBatch(**moved)


def _to(value: Tensor | FieldValues, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, FieldValues) else value.to(device, non_blocking=True)
