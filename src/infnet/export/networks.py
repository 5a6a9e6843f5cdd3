"""What is left of a model for a request once all that depends on an item alone stands in tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from infnet.errors import SpecError
from infnet.layers.events import EventSequence
from infnet.layers.gather import RowIndex
from infnet.layers.inputs import InputTokens
from infnet.models.base import RankingModel

__all__ = ["GeneralNetwork", "ServingNetwork"]

_SERVED = {
    *("dcnv2", "din", "din_dcnv2_ple", "fm", "gdcn", "mmoe", "omoe", "ple", "shared_bottom", "stem", "wukong"),
}


class ServingNetwork(nn.Module):
    """R requests with N candidates each, in plain products that an exporter can follow.

    Attributes:
        item_tables: Names of what the network reads of an item beside its tokens, made by :meth:`of_items`.
        reads_targets: Whether it reads each candidate's item as an event, (R, N, F, d), the last of the tables.
        padded: False for a graph of one request, whose histories need no padding, so that nothing has to be masked.
    """

    item_tables: tuple[str, ...] = ()
    reads_targets = False

    def __init__(self, model: RankingModel, *, padded: bool) -> None:
        super().__init__()
        self.model, self.padded = model.eval(), padded
        self.num_item_tokens = model.inputs.num_tokens[1]

    def of_items(self, item: Tensor) -> dict[str, Tensor]:
        """Item tokens (J, M_i, d) -> what :attr:`item_tables` hold of them: (J, k, w) each."""
        return {}

    @abstractmethod
    def forward(
        self,
        request: Tensor,
        fields: Tensor,
        own: Tensor,
        tables: Sequence[Tensor],
        events: Sequence[Tensor],
        present: Sequence[Tensor],
    ) -> Tensor:
        """Logits (R, N, T).

        Args:
            request: (R, M_r, d) tokens of user and context.
            fields: (R, N, M_i + M_c, d) tokens of each candidate's item, and behind them those of request and item
                together.
            own: (R, N, M_c, d) the latter again.
            tables: (R, N, k, w) each.
            events: (R, n_a, d) of each behaviour.
            present: (R, n_a) of each behaviour, 1.0 where there is an event and 0.0 where there is none.
        """


class GeneralNetwork(ServingNetwork):
    """Any model that reads tokens, means of histories, and histories behaviour by behaviour."""

    def __init__(self, model: RankingModel, *, padded: bool) -> None:
        if model.name not in _SERVED:
            raise SpecError(
                f"model '{model.name}' cannot be exported; those that can: infnet, {', '.join(sorted(_SERVED))}"
            )
        super().__init__(model, padded=padded)
        self.reads_targets = model.name in ("din", "din_dcnv2_ple") and bool(model.layout.behaviours)

    def forward(
        self,
        request: Tensor,
        fields: Tensor,
        own: Tensor,
        tables: Sequence[Tensor],
        events: Sequence[Tensor],
        present: Sequence[Tensor],
    ) -> Tensor:
        """Logits (R, N, T)."""
        targets = tables[-1].flatten(0, 1).transpose(0, 1) if self.reads_targets else None
        tokens = InputTokens(
            request=request,
            item=fields[:, :, : self.num_item_tokens].flatten(0, 1),
            own=own,
            candidates=_EachItsOwn(fields),
            events=cast(EventSequence, _Histories(events, present)) if events else None,
            make_targets=None if targets is None else lambda: targets,
        )
        return self.model.score(tokens)


class _EachItsOwn(RowIndex):
    """Candidates (R, N) whose items stand in a row of their own each."""

    def __init__(self, fields: Tensor) -> None:
        self.shape = fields.shape[:2]

    def gather(self, table: Tensor) -> Tensor:
        """(R * N, d) -> (R, N, d)."""
        return table.unflatten(0, self.shape)


@dataclass(frozen=True)
class _Histories:
    """The part of :class:`EventSequence`, and of what it gives padded, that served models read."""

    tokens: Sequence[Tensor]
    present: Sequence[Tensor]

    def padded(self) -> _Histories:
        return self

    def by_behaviour(self) -> list[tuple[Tensor, Tensor]]:
        """Tokens (R, n_a, d) and presence (R, n_a) of each behaviour."""
        return [(tokens, here > 0) for tokens, here in zip(self.tokens, self.present, strict=True)]

    def means(self) -> Tensor:
        """(R, F, d)."""
        pairs = zip(self.tokens, self.present, strict=True)
        sums = [
            (here[:, None] @ tokens) / here.sum(dim=1).clamp(min=1)[:, None, None] for tokens, here in pairs
        ]  # (R, 1, d) each
        return torch.cat(sums, dim=1)
