"""Aggregate and broadcast: hubs read, then scale and shift the tokens that they stand for (second version of INFNet).

Names are those of :mod:`infnet.layers.flows`: hubs of the categorical tokens (``cat``), of each behaviour's events
(``seq``) and of the task tokens (``shared``), and the task tokens themselves (``task``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

from infnet.layers.attention import CrossAttention, TokenSet, cross_attend, fold, project, task_tokens
from infnet.layers.behaviour_tokens import BehaviourTokens
from infnet.layers.mlp import GroupedLinear, SplitLinear

__all__ = ["Broadcast", "HubBlock", "HubState"]

_VIEWS = {
    "cat": ("cat", "seq", "task"),
    "seq": ("own", "seq", "task"),
    "shared": ("cat", "seq", "task"),
    "task": ("cat", "seq"),
}
"""Whom each kind of queries reads; ``own`` are the events of the hub's behaviour alone."""


class Broadcast(nn.Module):
    """Scale sigmoid(alpha) and shift beta for the tokens of each of G groups, from the group's k hubs flattened."""

    def __init__(self, num_groups: int, num_hubs: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.num_groups = num_groups
        widths = [num_hubs * width, *hidden, 2 * width]
        self.layers = nn.ModuleList(GroupedLinear(num_groups, i, o) for i, o in pairwise(widths))

    def forward(self, hubs: Tensor) -> tuple[Tensor, Tensor]:
        """(R, a, G * k, d) -> (R, a, G, d) twice."""
        x = hubs.unflatten(2, (self.num_groups, -1)).flatten(3)
        for index, layer in enumerate(self.layers):
            x = layer(torch.relu(x) if index else x)
        alpha, beta = x.chunk(2, dim=-1)
        return alpha.sigmoid(), beta


@dataclass(frozen=True)
class HubState:
    """What a block hands to the next. a = 1 while candidates share it, N afterwards; constants (1, 1, ..)."""

    queries: dict[str, Tensor]
    """(R, a, q, d) of each kind."""
    affine: dict[str, tuple[Tensor, Tensor]]
    """A and B of ``cat`` (R, a, 1, d) and of ``seq`` (R, a, F, d): tokens are x * A + B; missing for one and zero."""


class HubBlock(nn.Module):
    """One block.

    Args:
        num_behaviours: F.
        num_hubs: Of the kinds ``cat``, ``seq`` (for each behaviour) and ``shared``.
        width: d.
        num_heads: Attention heads.
        hidden: Hidden layers from hubs to scale and shift.
        is_last: Nobody reads the tokens of fields and events again, nor the hubs of events.
    """

    def __init__(
        self,
        num_behaviours: int,
        num_hubs: dict[str, int],
        width: int,
        *,
        num_heads: int,
        hidden: Sequence[int],
        is_last: bool,
    ) -> None:
        super().__init__()
        self._num_behaviours = num_behaviours
        kinds = ["cat", "shared", "task"] if is_last or not num_behaviours else ["cat", "seq", "shared", "task"]
        self.views = {
            kind: [view for view in _VIEWS[kind] if num_behaviours or view not in {"own", "seq"}] for kind in kinds
        }
        self.arrows = nn.ModuleDict(
            {f"{kind}_from_{view}": CrossAttention(width, num_heads) for kind in kinds for view in self.views[kind]}
        )
        hubs = [kind for kind in kinds if kind != "task"]
        self.merges = nn.ModuleDict({kind: SplitLinear([width] * len(self.views[kind]), width) for kind in hubs})
        self.norms = nn.ModuleDict({kind: nn.LayerNorm(width) for kind in hubs})
        groups = {kind: num_behaviours if kind == "seq" else 1 for kind in hubs}
        self.broadcasts = nn.ModuleDict(
            {kind: Broadcast(groups[kind], num_hubs[kind], width, hidden) for kind in (["shared"] if is_last else hubs)}
        )

    def forward(
        self, state: HubState, fields: TokenSet, history: BehaviourTokens | None, num_requests: int
    ) -> HubState:
        """Tokens of the fields and of the history as they were before the first block."""
        old, new, affine = state.queries, dict(state.queries), dict(state.affine)
        read = self._read(state, {"cat": fields, "task": task_tokens(old["task"], num_requests)}, history)
        for kind, norm in self.norms.items():  # aggregate
            new[kind] = norm(old[kind] + self._merge(kind, read))
        for kind, broadcast in self.broadcasts.items():
            scale, shift = broadcast(new[kind])
            if kind == "shared":
                flow = reduce(torch.add, (read["task", view] for view in self.views["task"]))
                new["task"] = flow * scale + shift
            elif kind in affine:
                A, B = affine[kind]
                affine[kind] = (A * scale, B * scale + shift)
            else:
                affine[kind] = (scale, shift)
        return HubState(new, affine)

    def _read(
        self, state: HubState, token_sets: dict[str, TokenSet], history: BehaviourTokens | None
    ) -> dict[tuple[str, str], Tensor]:
        """What each kind sees in each of its views: (R, a, q, d) by kind and view."""
        arrows = {(kind, view): self._arrow(kind, view) for kind, views in self.views.items() for view in views}
        gates, shifts = ({view: affine[i] for view, affine in state.affine.items()} for i in range(2))
        found = cross_attend(token_sets, state.queries, arrows, gates, shifts)
        if history is not None:
            of_all, of_own = (
                {pair: fold(state.queries[pair[0]], [arrow])[0] for pair, arrow in arrows.items() if pair[1] == view}
                for view in ("seq", "own")
            )
            by_behaviour = [part for hubs in of_own.values() for part in hubs.chunk(self._num_behaviours, dim=2)]
            all_read, own_read = history.read([*of_all.values()], by_behaviour, state.affine.get("seq"))
            found |= zip(of_all, all_read, strict=True)
            found |= {pair: torch.cat(own_read, dim=2) for pair in of_own}
        return {pair: project([part], [arrows[pair]]) for pair, part in found.items()}

    def _merge(self, kind: str, read: dict[tuple[str, str], Tensor]) -> Tensor:
        """The views side by side, projected."""
        merge = self.merges[kind]
        assert isinstance(merge, SplitLinear)
        parts = [merge.part(i, read[kind, view], with_bias=i == 0) for i, view in enumerate(self.views[kind])]
        return reduce(torch.add, parts)

    def _arrow(self, kind: str, view: str) -> CrossAttention:
        arrow = self.arrows[f"{kind}_from_{view}"]
        assert isinstance(arrow, CrossAttention)
        return arrow
