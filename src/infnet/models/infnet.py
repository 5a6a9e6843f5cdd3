"""INFNet: categorical, sequence and task tokens exchange information through a few proxies, block by block.

K. Li et al., "INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation Systems", arXiv 2508.11565.
Equation numbers are those of the docstrings throughout this package: 1 to 5 tokens and proxies, 6 to 9 the flows of a
block, 10 and 11 the proxy gated unit, 12 heads, 13 loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from infnet.data.batch import RequestBatch
from infnet.data.layout import Layout
from infnet.layers.attention import CrossAttention, TokenSet, cross_attend, field_tokens, history_tokens, task_tokens
from infnet.layers.gate import ProxyGate
from infnet.layers.heads import TaskHeads
from infnet.layers.proxies import CategoricalProxies, SequenceProxies
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["INFNet", "INFNetConfig"]


class INFNetConfig(ModelConfig):
    """Settings of INFNet; docs/recipe.md says how the defaults were found."""

    width: int = Field(default=32, ge=1)
    """d, width of every token."""
    embedding_width: int | None = Field(default=16, ge=1)
    """Width of the embedding table, projected to the token width; None for the token width itself."""
    num_blocks: int = Field(default=2, ge=1)
    """N."""
    num_cat_proxies: int = Field(default=4, ge=1)
    """m."""
    num_seq_proxies: int = Field(default=1, ge=1)
    """Proxies per behaviour."""
    num_shared_tasks: int = Field(default=2, ge=1)
    """N_s."""
    num_heads: int = Field(default=1, ge=1)
    """Attention heads; folding holds for any number."""
    cat_hidden: tuple[PositiveInt, ...] = (256,)
    """Hidden layers of phi_cat (eq. 2)."""
    cat_skip: bool = True
    """Add a linear map of the item's and the candidate's tokens to phi_cat, so that a proxy can be a candidate's own
    embedding from the start."""
    seq_hidden: tuple[PositiveInt, ...] = ()
    """Hidden layers of phi_seq (eq. 4)."""
    gate_hidden: tuple[PositiveInt, ...] = ()
    """Hidden layers of the gates' MLP (eq. 10)."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Hidden layers of each task's head (eq. 12)."""
    gate_with: Literal["input", "updated"] = "input"
    """Gate by the block's input proxies (the equations) or by the updated ones (the prose)."""
    proxy_residual: bool = True
    """C~' = C~ + (eq. 6), and so for the other proxies."""
    token_residual: bool = False
    """X' = X + PGU(X, X~): channels are scaled by 1 + gate; for tasks T' = T + PGU(T^, T~')."""
    proxy_norm: bool = True
    """LayerNorm on the proxies, initial and updated."""
    head_reads: Literal["task", "task+proxies"] = "task+proxies"
    """Whether heads see T_i alone (the paper) or beside the final categorical proxies."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> INFNetConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        return self

    @classmethod
    def paper(cls) -> INFNetConfig:
        """The equations exactly as printed."""
        return cls(
            width=16,
            embedding_width=None,
            dropout=0.0,
            cat_hidden=(),
            cat_skip=False,
            seq_hidden=(),
            gate_hidden=(),
            event_combine="sum",
            gate_with="input",
            proxy_residual=False,
            token_residual=False,
            proxy_norm=False,
            head_reads="task",
        )


@dataclass(frozen=True)
class _State:
    """What a block hands to the next. a = 1 while candidates share it, N afterwards; constants (1, 1, ..)."""

    cat: Tensor | None
    """C~ (R, N, m, d); None if nobody reads it."""
    seq: Tensor | None
    """S~ (R, a, F * k, d); None if nobody reads it, or without behaviours."""
    shared: Tensor
    """T~ (R, a, N_s, d)."""
    task: Tensor
    """T (R, a, T, d)."""
    cat_gate: Tensor | None = None
    """G_C (R, N, 1, d), the product of the gates so far; None for one."""
    seq_gate: Tensor | None = None
    """G_S likewise."""


_SOURCES = {"cat": ("seq", "task"), "seq": ("cat", "task"), "shared": ("cat", "seq"), "task": ("cat", "seq")}
"""Whom each kind of queries reads (eqs. 6 to 9)."""


def _updates(config: INFNetConfig, has_behaviours: bool) -> tuple[list[set[str]], set[str]]:
    """Which proxies each block must update and which must exist at the start, so that nothing is computed for nobody.

    In the last block nobody reads C', S' and, unless the heads do, C~' and S~' (identity C).
    """
    needed = {"cat"} if config.head_reads == "task+proxies" else set()
    updates = []
    for index in reversed(range(config.num_blocks)):
        gating = {"shared"} if index == config.num_blocks - 1 else {"cat", "seq", "shared"}
        updated = needed | gating if config.gate_with == "updated" else needed
        updates.append(updated)
        needed = updated | gating
    known = {"cat", "seq", "shared"} if has_behaviours else {"cat", "shared"}
    return [updated & known for updated in reversed(updates)], needed & known


class _Block(nn.Module):
    """One block: the flows (eqs. 6 to 9) into the proxies in ``updates`` and the tasks, then the gates (10 and 11)."""

    def __init__(self, config: INFNetConfig, num_seq_proxies: int, updates: set[str], is_last: bool) -> None:
        super().__init__()
        self.config = config
        targets = ["task", *sorted(updates)]
        sources = ("cat", "seq", "task") if num_seq_proxies else ("cat", "task")
        self.reads = {s: [t for t in targets if s in _SOURCES[t]] for s in sources}
        self.arrows = nn.ModuleDict(
            {f"{t}_from_{s}": CrossAttention(config.width, config.num_heads) for s in sources for t in self.reads[s]}
        )
        norms = {t: nn.LayerNorm(config.width) for t in sorted(updates) if config.proxy_norm}
        self.norms = nn.ModuleDict(norms)
        counts = {"shared": config.num_shared_tasks}
        if not is_last:
            counts |= {"cat": config.num_cat_proxies, "seq": num_seq_proxies}
        self.gates = nn.ModuleDict(
            {name: ProxyGate(count, config.width, config.gate_hidden) for name, count in counts.items() if count}
        )

    def forward(self, state: _State, fields: TokenSet, history: TokenSet | None, num_requests: int) -> _State:
        token_sets: dict[str, TokenSet | None] = {
            "cat": fields,
            "seq": history,
            "task": task_tokens(state.task, num_requests),
        }
        old: dict[str, Tensor | None] = {"cat": state.cat, "seq": state.seq, "shared": state.shared, "task": state.task}
        gate = {"cat": state.cat_gate, "seq": state.seq_gate, "task": None}
        new: dict[str, Tensor] = {}
        for source, targets in self.reads.items():
            tokens = token_sets[source]
            if tokens is None or not targets:
                continue
            arrows = [(self._arrow(target, source), _present(old[target])) for target in targets]
            for target, read in zip(targets, cross_attend(tokens, arrows, gate[source]), strict=True):
                new[target] = new[target] + read if target in new else read  # eqs. 6 to 9
        for target in [t for t in new if t != "task"]:
            if self.config.proxy_residual:
                new[target] = new[target] + _present(old[target])
            if self.config.proxy_norm:
                new[target] = self.norms[target](new[target])
        return self._gated(state, new)

    def _arrow(self, target: str, source: str) -> CrossAttention:
        arrow = self.arrows[f"{target}_from_{source}"]
        assert isinstance(arrow, CrossAttention)
        return arrow

    def _gated(self, state: _State, new: dict[str, Tensor]) -> _State:
        """Eqs. 10 and 11: fold the gates of C and S into those so far, gate T."""
        config = self.config
        after = replace(
            state,
            cat=new.get("cat", state.cat),
            seq=new.get("seq", state.seq),
            shared=new.get("shared", state.shared),
        )
        gating = state if config.gate_with == "input" else after
        task = new["task"] * self.gates["shared"](gating.shared)
        after = replace(after, task=state.task + task if config.token_residual else task)
        gates = {}
        for name, so_far in (("cat", state.cat_gate), ("seq", state.seq_gate)):
            if name in self.gates:
                gate = self.gates[name](_present(getattr(gating, name))) + float(config.token_residual)
                gates[f"{name}_gate"] = gate if so_far is None else so_far * gate
        return replace(after, **gates)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


@register_model("infnet")
class INFNet(RankingModel):
    """The network; see :class:`INFNetConfig` for its options."""

    config_type: ClassVar[type[ModelConfig]] = INFNetConfig
    config: INFNetConfig

    def __init__(self, layout: Layout, config: INFNetConfig) -> None:
        super().__init__(layout, config)
        d, m = config.width, config.num_cat_proxies
        updates, initial = _updates(config, bool(layout.behaviours))
        self.cat_proxies = (
            CategoricalProxies(self.inputs.num_tokens, d, m, config.cat_hidden, config.cat_skip, config.dropout)
            if "cat" in initial
            else None
        )
        self.seq_proxies = (
            SequenceProxies(len(layout.behaviours), d, config.num_seq_proxies, config.seq_hidden)
            if "seq" in initial
            else None
        )
        self.task_tokens = nn.Parameter(torch.empty(len(layout.tasks), d).normal_(std=d**-0.5))
        self.shared_tokens = nn.Parameter(torch.empty(config.num_shared_tasks, d).normal_(std=d**-0.5))
        self.norms = nn.ModuleDict({t: nn.LayerNorm(d) for t in sorted(initial)} if config.proxy_norm else {})
        num_seq = len(layout.behaviours) * config.num_seq_proxies
        self.blocks = nn.ModuleList(
            _Block(config, num_seq, update, is_last=i == config.num_blocks - 1) for i, update in enumerate(updates)
        )
        self.heads = TaskHeads(
            len(layout.tasks),
            d,
            config.head_hidden,
            shared_width=m * d if config.head_reads == "task+proxies" else 0,
            dropout=config.dropout,
        )

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits (R, N, T)."""
        tokens = self.tokens(batch)
        inputs = (tokens.request, tokens.item, tokens.own, tokens.candidates)
        fields = field_tokens(*inputs)
        history, cat, seq = None, None, None
        if tokens.events is not None:
            history = history_tokens(tokens.events)
            if self.seq_proxies is not None:
                seq = self._normed("seq", self.seq_proxies(tokens.events))
        if self.cat_proxies is not None:
            cat = self._normed("cat", self.cat_proxies(*inputs))
        state = _State(
            cat=cat,
            seq=seq,
            shared=self._normed("shared", self.shared_tokens)[None, None],
            task=self.task_tokens[None, None],
        )
        for block in self.blocks:
            state = block(state, fields, history, batch.num_requests)
        shared = _present(state.cat).flatten(2) if self.config.head_reads == "task+proxies" else None
        logits: Tensor = self.heads(state.task, shared)
        return logits

    def _normed(self, kind: str, proxies: Tensor) -> Tensor:
        return self.norms[kind](proxies) if self.config.proxy_norm else proxies
