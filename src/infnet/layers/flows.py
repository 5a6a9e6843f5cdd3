"""One block of INFNet: the flows between tokens and proxies, then the gates (INFNet eqs. 6 to 11).

Four kinds of queries read: the proxies C~, S~ and T~, here ``cat``, ``seq`` and ``shared``, and the task tokens T, here
``task``. Three types of tokens are read: C, S and T, here ``cat``, ``seq`` and ``task``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from infnet.layers.attention import CrossAttention, TokenSet, cross_attend, project, task_tokens
from infnet.layers.averages import AverageRead, task_average
from infnet.layers.gate import ProxyGate, apply_gate

__all__ = ["BlockPlan", "FlowBlock", "FlowState", "Widths", "plan_blocks"]


@dataclass(frozen=True)
class BlockPlan:
    """What one block computes."""

    reads: dict[str, list[str]]
    """Type of tokens -> kinds of queries that read it."""
    gates: list[str]
    """Kinds whose proxies gate their tokens: ``cat``, ``seq``, and ``shared`` for the task tokens."""

    @property
    def updates(self) -> list[str]:
        """Proxies that read."""
        return sorted({target for targets in self.reads.values() for target in targets} - {"task"})


def plan_blocks(
    flows: Sequence[Mapping[str, Sequence[str]]],
    wanted: Collection[str],
    num_proxies: Mapping[str, int],
    gate_with: Literal["input", "updated", "none"],
) -> tuple[list[BlockPlan], set[str]]:
    """Leave out what nobody reads (identity C), such as the gates of C and S in the last block.

    Args:
        flows: Per block and kind of queries, the types of tokens that it may read.
        wanted: Kinds that are read after the last block; ``task`` among them if there are task tokens.
        num_proxies: Of each kind that may gate.
        gate_with: See :class:`FlowBlock`.

    Returns:
        The blocks, and the kinds that must exist before the first.
    """
    gating = [] if gate_with == "none" else [kind for kind, count in num_proxies.items() if count]
    plans: list[BlockPlan] = []
    needed, read_later = set(wanted), set[str]()
    for flow in reversed(flows):
        gates = [kind for kind in gating if kind in read_later or (kind == "shared" and "task" in flow)]
        if gate_with == "updated":
            needed |= set(gates)
        targets: list[str] = [kind for kind in ("task", "cat", "seq", "shared") if kind in needed and flow.get(kind)]
        readers = {source: [t for t in targets if source in flow[t]] for source in ("cat", "seq", "task")}
        reads = {source: names for source, names in readers.items() if names}
        plans.append(BlockPlan(reads, gates))
        needed |= set(gates)
        read_later |= reads.keys()
    return plans[::-1], needed


@dataclass(frozen=True)
class Widths:
    """How wide things are."""

    queries: Mapping[str, int]
    """Of each kind of queries."""
    tokens: Mapping[str, int]
    """Of each type of tokens."""


@dataclass(frozen=True)
class FlowState:
    """What a block hands to the next. a = 1 while candidates share it, N afterwards; constants (1, 1, ..)."""

    queries: dict[str, Tensor]
    """(R, a, q, d) of each kind that somebody reads."""
    gates: dict[str, Tensor]
    """G_C and G_S (R, a, 1, d), the products of the gates so far; missing for one."""
    pool: Tensor | None = None
    """(R, 1, p, q) averages by which the queries of S~ become p proxies; None if they are the proxies."""

    def proxies(self, kind: str) -> Tensor:
        """What gates and heads see of a kind: (R, a, p, d)."""
        queries = self.queries[kind]
        return self.pool @ queries if kind == "seq" and self.pool is not None else queries


class FlowBlock(nn.Module):
    """One block.

    Args:
        plan: What it computes.
        num_proxies: Of each kind that gates.
        widths: Of queries and tokens.
        num_heads: Attention heads.
        attention: ``mean`` for plain averages.
        gate_with: Gate by the block's input proxies, by the updated ones, or not at all.
        gate_hidden: Hidden layers of the gates' MLP.
        proxy_residual: X~' = X~ + what it read.
        token_residual: X' = X + PGU(X, X~).
        proxy_norm: LayerNorm on the updated proxies.
    """

    def __init__(
        self,
        plan: BlockPlan,
        num_proxies: Mapping[str, int],
        widths: Widths,
        *,
        num_heads: int,
        attention: Literal["softmax", "mean"],
        gate_with: Literal["input", "updated", "none"],
        gate_hidden: Sequence[int],
        proxy_residual: bool,
        token_residual: bool,
        proxy_norm: bool,
    ) -> None:
        super().__init__()
        self.reads = plan.reads
        self._is_average, self._gate_with = attention == "mean", gate_with
        self._proxy_residual, self._token_residual = proxy_residual, token_residual
        self.arrows = nn.ModuleDict(
            {
                f"{target}_from_{source}": AverageRead(widths.queries[target], widths.tokens[source])
                if self._is_average
                else CrossAttention(widths.queries[target], num_heads, widths.tokens[source])
                for source, targets in plan.reads.items()
                for target in targets
            }
        )
        normed = plan.updates if proxy_norm else []
        self.norms = nn.ModuleDict({kind: nn.LayerNorm(widths.queries[kind]) for kind in normed})
        gated = {"cat": "cat", "seq": "seq", "shared": "task"}  # proxies -> tokens
        self.gates = nn.ModuleDict(
            {
                kind: ProxyGate(num_proxies[kind], widths.queries[kind], gate_hidden, widths.tokens[gated[kind]])
                for kind in plan.gates
            }
        )

    def forward(self, state: FlowState, tokens: Mapping[str, TokenSet], num_requests: int) -> FlowState:
        """Tokens of the fields (``cat``) and of the history (``seq``), before any gate."""
        old = state.queries
        if "task" in self.reads:
            task = task_average(old["task"]) if self._is_average else task_tokens(old["task"], num_requests)
            tokens = {**tokens, "task": task}
        arrows = {(kind, source): self._arrow(kind, source) for source, kinds in self.reads.items() for kind in kinds}
        found = cross_attend(tokens, old, arrows, state.gates)
        read = {}  # eqs. 6 to 9
        for target in dict.fromkeys(kind for kind, _ in found):
            pairs = [pair for pair in found if pair[0] == target]
            read[target] = project([found[pair] for pair in pairs], [arrows[pair] for pair in pairs])
        flow = read.pop("task", None)
        updated = replace(
            state, queries=old | {kind: self._updated(kind, old[kind], new) for kind, new in read.items()}
        )
        return self._gated(updated, state if self._gate_with == "input" else updated, flow)

    def _arrow(self, target: str, source: str) -> CrossAttention | AverageRead:
        arrow = self.arrows[f"{target}_from_{source}"]
        assert isinstance(arrow, CrossAttention | AverageRead)
        return arrow

    def _updated(self, kind: str, proxies: Tensor, read: Tensor) -> Tensor:
        if self._proxy_residual:
            read = read + proxies
        return self.norms[kind](read) if kind in self.norms else read

    def _gated(self, state: FlowState, gating: FlowState, flow: Tensor | None) -> FlowState:
        """Eqs. 10 and 11: fold the gates of C and S into those so far; T^ is ``flow``."""
        queries, gates = dict(state.queries), dict(state.gates)
        if flow is not None:
            task = flow
            if "shared" in self.gates:
                task = apply_gate(flow, self.gates["shared"](gating.proxies("shared")))
            queries["task"] = queries["task"] + task if self._token_residual else task
        for kind in ("cat", "seq"):
            if kind in self.gates:
                gate = self.gates[kind](gating.proxies(kind))
                gate = gate + 1 if self._token_residual else gate
                gates[kind] = gates[kind] * gate if kind in gates else gate
        return replace(state, queries=queries, gates=gates)
