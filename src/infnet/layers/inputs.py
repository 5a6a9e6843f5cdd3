"""What every model starts from: a batch as tokens, once per request, per distinct item or per candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor, nn

from infnet.data.batch import RequestBatch
from infnet.data.layout import Layout
from infnet.layers.embedding import EmbeddingTable
from infnet.layers.events import EventSequence, EventTokens
from infnet.layers.gather import RowIndex
from infnet.layers.mlp import SplitLinear
from infnet.layers.tokens import FieldTokenizer, RowProjection

__all__ = ["InputLinear", "InputTokens", "Inputs"]


@dataclass(frozen=True)
class InputTokens:
    """A batch of R requests with N candidates each, J distinct candidate items, F behaviours, tokens of width d."""

    request: Tensor
    """(R, M_r, d): fields of user and context."""
    item: Tensor
    """(J, M_i, d): fields of each distinct candidate item."""
    own: Tensor
    """(R, N, M_c, d): fields of request and item together."""
    candidates: RowIndex
    """(R, N) row of ``item`` of each candidate."""
    events: EventSequence | None
    """Histories; None for a dataset without behaviours."""
    make_targets: Callable[[], Tensor] | None = field(repr=False)
    """Gives :attr:`targets`, for models that ask; None for a dataset without behaviours."""

    @property
    def num_requests(self) -> int:
        """R."""
        return self.own.shape[0]

    @property
    def num_candidates(self) -> int:
        """N."""
        return self.own.shape[1]

    def fields(self) -> Tensor:
        """All field tokens of each candidate written out: (R, N, M, d)."""
        item = self.candidates.gather(self.item.flatten(1)).unflatten(-1, self.item.shape[1:])
        request = self.request[:, None].expand(-1, self.num_candidates, -1, -1)
        return torch.cat([request, item, self.own], dim=2)

    @cached_property
    def targets(self) -> Tensor:
        """Each distinct candidate item as it would stand in each history: (F, J, d), before position and gap."""
        assert self.make_targets is not None
        return self.make_targets()

    def targets_of_candidates(self) -> Tensor:
        """The same for each candidate: (R, N, F, d)."""
        by_item = self.targets.transpose(0, 1)  # (J, F, d)
        return self.candidates.gather(by_item.flatten(1)).unflatten(-1, by_item.shape[1:])


class Inputs(nn.Module):
    """Turns batches into :class:`InputTokens` (INFNet eqs. 1 and 3).

    Args:
        layout: Of the dataset.
        embedding_width: Of the table.
        width: d; rows of another width are projected to it.
        event_combine: How an event's item fields become one token.
    """

    def __init__(
        self, layout: Layout, embedding_width: int, width: int, event_combine: Literal["sum", "concat"]
    ) -> None:
        super().__init__()
        self.width = width
        self.rows = RowProjection(embedding_width, width)
        self.request = FieldTokenizer(layout, ("user", "context"), width)
        self.item = FieldTokenizer(layout, ("item",), width)
        self.candidate = FieldTokenizer(layout, ("candidate",), width)
        self.events = EventTokens(layout, width, event_combine) if layout.behaviours else None
        self.num_behaviours = len(layout.behaviours)

    @property
    def num_tokens(self) -> tuple[int, int, int]:
        """M_r, M_i, M_c: field tokens of a request, an item, and a candidate's own."""
        return self.request.num_tokens, self.item.num_tokens, self.candidate.num_tokens

    @property
    def num_fields(self) -> int:
        """M."""
        return sum(self.num_tokens)

    def forward(self, table: EmbeddingTable, batch: RequestBatch) -> InputTokens:
        """A batch as tokens."""
        embedded = self.rows(table, batch)
        item = self.item(embedded, batch.item)
        return InputTokens(
            request=self.request(embedded, batch.user, batch.context),
            item=item,
            own=self.candidate(embedded, batch.candidate).unflatten(0, batch.present.shape),
            candidates=RowIndex(batch.candidate_item, item.shape[0]),
            events=None if self.events is None else self.events(embedded, batch),
            make_targets=None if self.events is None else partial(self.events.of_items, embedded, batch.item.ids),
        )


class InputLinear(nn.Module):
    """A linear layer over all field tokens of a candidate and further values, each part multiplied where it lives.

    A request's part is computed once per request, an item's once per distinct item (identity B).

    Args:
        inputs: Whose tokens it reads.
        out_width: Outputs.
        request_width: Of further values that a request's candidates share.
        candidate_width: Of further values of each candidate.
    """

    def __init__(self, inputs: Inputs, out_width: int, *, request_width: int = 0, candidate_width: int = 0) -> None:
        super().__init__()
        of_request, of_item, own = (n * inputs.width for n in inputs.num_tokens)
        self.linear = SplitLinear([of_request + request_width, of_item, own + candidate_width], out_width)

    def forward(self, tokens: InputTokens, request: Tensor | None = None, candidate: Tensor | None = None) -> Tensor:
        """Tokens, and further values (R, request_width) and (R, N, candidate_width) -> (R, N, out_width)."""
        of_request = [tokens.request.flatten(1), *([] if request is None else [request])]
        own = [tokens.own.flatten(2), *([] if candidate is None else [candidate])]
        out = tokens.candidates.gather(self.linear.part(1, tokens.item.flatten(1)))
        out += self.linear.part(0, torch.cat(of_request, dim=1), with_bias=True)[:, None]
        if self.linear.weights[2].shape[1]:
            out += self.linear.part(2, torch.cat(own, dim=2))
        return out
