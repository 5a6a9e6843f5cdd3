"""INFNet: categorical, sequence and task tokens exchange information through a few proxies, block by block.

K. Li et al., "INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation Systems", arXiv 2508.11565.
Equation numbers are those of the docstrings throughout this package: 1 to 5 tokens and proxies, 6 to 9 the flows of a
block, 10 and 11 the proxy gated unit, 12 heads, 13 loss.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from infnet.data.layout import Layout
from infnet.layers.attention import field_tokens, history_tokens
from infnet.layers.averages import field_average, history_average
from infnet.layers.flows import FlowBlock, FlowState, Widths, plan_blocks
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputTokens
from infnet.layers.proxies import CategoricalProxies, SequenceProxies, behaviour_averages
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["INFNet", "INFNetConfig"]


class INFNetConfig(ModelConfig):
    """Settings of INFNet; docs/recipe.md says how the defaults were found."""

    proxy_width: int | None = Field(default=64, ge=1)
    """Width of proxies and task tokens; None for the token width. Few as they are, they can be wide at little cost."""
    num_blocks: int = Field(default=2, ge=1)
    """N."""
    num_cat_proxies: int = Field(default=2, ge=1)
    """m."""
    num_seq_proxies: int = Field(default=1, ge=1)
    """Proxies per behaviour."""
    num_shared_tasks: int = Field(default=2, ge=0)
    """N_s; with none T' = T^, ungated."""
    num_heads: int = Field(default=1, ge=1)
    """Attention heads; folding holds for any number."""
    cat_hidden: tuple[PositiveInt, ...] = (128,)
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
    gate_with: Literal["input", "updated", "none"] = "input"
    """Gate by the block's input proxies (the equations), by the updated ones (the prose), or not at all."""
    proxy_residual: bool = True
    """C~' = C~ + (eq. 6), and so for the other proxies."""
    token_residual: bool = False
    """X' = X + PGU(X, X~): channels are scaled by 1 + gate; for tasks T' = T + PGU(T^, T~')."""
    proxy_norm: bool = False
    """LayerNorm on the proxies, initial and updated. It hides how long a history is, which S~ (a sum) would tell."""
    head_reads: Literal["task", "task+proxies"] = "task+proxies"
    """Whether heads see T_i alone (the paper) or beside the final categorical proxies."""
    task_fusion: Literal["early", "late", "none"] = "early"
    """Task tokens take part in every block (the paper); read in the last block only and are never read; or are left
    out, shared ones too, and heads read the final C~ and S~."""
    attention: Literal["softmax", "mean"] = "softmax"
    """``mean``: every query reads the plain average of the present tokens times W_V, which is how we read the paper's
    "w/o cross attention"."""
    proxies: Literal["few", "all"] = "few"
    """``all``: no proxies but all tokens, C~ = C and S~ = S, at the cost of their product. C~ gates flattened as ever,
    S~, whose tokens may be absent, as the average of each behaviour's."""
    history: Literal["tokens", "pooled"] = "tokens"
    """``pooled``: each behaviour is one token among the categorical ones, the average of its events."""

    @model_validator(mode="after")
    def _settings_agree(self) -> INFNetConfig:
        for name, width in (("width", self.width), ("proxy_width", self.proxy_width or self.width)):
            if width % self.num_heads:
                raise ValueError(f"{name} {width} is not divisible by num_heads {self.num_heads}")
        if self.task_fusion == "none" and self.head_reads == "task":
            raise ValueError("with task_fusion 'none' heads have no task token to read: set head_reads 'task+proxies'")
        return self

    @classmethod
    def paper(cls) -> INFNetConfig:
        """The equations exactly as printed."""
        return cls(
            proxy_width=None,
            num_cat_proxies=4,
            dropout=0.0,
            cat_hidden=(),
            cat_skip=False,
            seq_hidden=(),
            gate_hidden=(),
            event_combine="sum",
            gate_with="input",
            proxy_residual=False,
            token_residual=False,
            head_reads="task",
        )


def _flows(config: INFNetConfig, has_history: bool) -> list[dict[str, tuple[str, ...]]]:
    """Whom each kind of queries reads in each block (eqs. 6 to 9), as far as options and dataset have them."""
    tokens = ("cat", "seq") if has_history else ("cat",)
    sources = (*tokens, "task") if config.task_fusion == "early" else tokens
    of_proxies = {kind: tuple(source for source in sources if source != kind) for kind in tokens}
    of_tasks = dict.fromkeys(("task", "shared") if config.num_shared_tasks else ("task",), tokens)
    first = {"early": 0, "late": config.num_blocks - 1, "none": config.num_blocks}[config.task_fusion]
    return [of_proxies | (of_tasks if index >= first else {}) for index in range(config.num_blocks)]


@register_model("infnet")
class INFNet(RankingModel):
    """The network; see :class:`INFNetConfig` for its options."""

    config_type: ClassVar[type[ModelConfig]] = INFNetConfig
    config: INFNetConfig

    def __init__(self, layout: Layout, config: INFNetConfig) -> None:
        super().__init__(layout, config)
        num_tasks, has_tasks = len(layout.tasks), config.task_fusion != "none"
        d, wide = config.width, config.proxy_width or config.width
        of_proxies = d if config.proxies == "all" else wide
        widths = Widths(
            queries={"cat": of_proxies, "seq": of_proxies, "shared": wide, "task": wide},
            tokens={"cat": d, "seq": d, "task": wide},
        )
        of_request, of_item, of_candidate = self.inputs.num_tokens
        num_histories = len(layout.behaviours)
        if config.history == "pooled":
            of_request, num_histories = of_request + num_histories, 0
        num_fields = (of_request, of_item, of_candidate)
        m, num_seq = config.num_cat_proxies, num_histories * config.num_seq_proxies
        if config.proxies == "all":
            m, num_seq = sum(num_fields), num_histories
        num_proxies = {"shared": config.num_shared_tasks, "cat": m, "seq": num_seq}
        self._read_by_heads = ["cat"] if config.head_reads == "task+proxies" else []
        if num_histories and not has_tasks:
            self._read_by_heads.append("seq")
        plans, self._initial = plan_blocks(
            _flows(config, has_history=num_histories > 0),
            wanted=[*self._read_by_heads, "task"] if has_tasks else self._read_by_heads,
            num_proxies=num_proxies,
            gate_with=config.gate_with,
        )
        mapped = self._initial if config.proxies == "few" else set()
        self.cat_proxies = (
            CategoricalProxies(num_fields, d, m, config.cat_hidden, config.cat_skip, config.dropout, wide)
            if "cat" in mapped
            else None
        )
        self.seq_proxies = (
            SequenceProxies(num_histories, d, config.num_seq_proxies, config.seq_hidden, wide)
            if "seq" in mapped
            else None
        )
        self.task_tokens = _learned(num_tasks, wide) if has_tasks else None
        self.shared_tokens = _learned(config.num_shared_tasks, wide) if "shared" in self._initial else None
        normed = sorted(self._initial - {"task"}) if config.proxy_norm else []
        self.norms = nn.ModuleDict({kind: nn.LayerNorm(widths.queries[kind]) for kind in normed})
        self.blocks = nn.ModuleList(
            FlowBlock(
                plan,
                num_proxies,
                widths,
                num_heads=config.num_heads,
                attention=config.attention,
                gate_with=config.gate_with,
                gate_hidden=config.gate_hidden,
                proxy_residual=config.proxy_residual,
                token_residual=config.token_residual,
                proxy_norm=config.proxy_norm,
            )
            for plan in plans
        )
        head_width = sum(num_proxies[kind] * widths.queries[kind] for kind in self._read_by_heads)
        own_width, shared_width = (wide, head_width) if has_tasks else (head_width, 0)
        self.heads = TaskHeads(num_tasks, own_width, config.head_hidden, shared_width, config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        if self.config.history == "pooled" and tokens.events is not None:
            tokens = replace(tokens, request=torch.cat([tokens.request, tokens.events.means()], dim=1), events=None)
        is_average = self.config.attention == "mean"
        inputs = (tokens.request, tokens.item, tokens.own, tokens.candidates)
        token_sets = {"cat": (field_average if is_average else field_tokens)(*inputs)}
        if tokens.events is not None:
            token_sets["seq"] = (history_average if is_average else history_tokens)(tokens.events)
        state = self._initial_state(tokens)
        for block in self.blocks:
            state = block(state, token_sets, tokens.num_requests)
        return self.predict(state, tokens.num_candidates)

    def predict(self, state: FlowState, num_candidates: int) -> Tensor:
        """Logits (R, N, T) from what the last block left."""
        proxies = [state.proxies(kind).flatten(2).expand(-1, num_candidates, -1) for kind in self._read_by_heads]
        if "task" in state.queries:
            return self.heads(state.queries["task"], torch.cat(proxies, dim=-1) if proxies else None)
        return self.heads(torch.cat(proxies, dim=-1)[:, :, None].expand(-1, -1, len(self.layout.tasks), -1))

    def _initial_state(self, tokens: InputTokens) -> FlowState:
        queries: dict[str, Tensor] = {}
        pool: Tensor | None = None
        if "seq" in self._initial and tokens.events is not None:
            if self.seq_proxies is not None:
                queries["seq"] = self.seq_proxies(tokens.events)
            else:
                history = tokens.events.padded()
                queries["seq"], pool = history.tokens[:, None], behaviour_averages(history)
        if self.cat_proxies is not None:
            queries["cat"] = self.cat_proxies(tokens.request, tokens.item, tokens.own, tokens.candidates)
        elif "cat" in self._initial:
            queries["cat"] = tokens.fields()
        if self.shared_tokens is not None:
            queries["shared"] = self.shared_tokens[None, None]
        queries |= {kind: norm(queries[kind]) for kind, norm in self.norms.items()}
        if self.task_tokens is not None:
            queries["task"] = self.task_tokens[None, None]
        return FlowState(queries, gates={}, pool=pool)


def _learned(num_tokens: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(num_tokens, width).normal_(std=width**-0.5))
