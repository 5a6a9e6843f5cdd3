"""INFNet's second version: hubs aggregate what they read, then broadcast it to the tokens that they stand for.

After the 2026 revision of K. Li et al., "INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation
Systems", arXiv 2508.11565. docs/model.md has the equations, and says where they are our choice.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from infnet.data.layout import Layout
from infnet.layers.attention import field_tokens
from infnet.layers.behaviour_tokens import BehaviourTokens
from infnet.layers.heads import TaskHeads
from infnet.layers.hubs import HubBlock, HubState
from infnet.layers.inputs import InputTokens
from infnet.layers.proxies import CategoricalProxies, SequenceProxies
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["INFNetV2", "INFNetV2Config"]


class INFNetV2Config(ModelConfig):
    """Settings of INFNet's second version; those that INFNet has too are as it has them."""

    width: int = Field(default=32, ge=1)
    """d, width of every token."""
    embedding_width: int | None = Field(default=16, ge=1)
    """Width of the embedding table, projected to the token width; None for the token width itself."""
    event_position: bool = True
    """Add an embedding of an event's place in its history."""
    event_gap: bool = True
    """Add an embedding of the time since an event."""
    num_blocks: int = Field(default=2, ge=1)
    """N."""
    num_cat_hubs: int = Field(default=4, ge=1)
    """m, hubs of the categorical tokens."""
    num_seq_hubs: int = Field(default=1, ge=1)
    """k, hubs of each behaviour's events."""
    num_shared_tasks: int = Field(default=2, ge=1)
    """N_s, hubs of the task tokens."""
    num_heads: int = Field(default=1, ge=1)
    """Attention heads; folding holds for any number."""
    cat_hidden: tuple[PositiveInt, ...] = (256,)
    """Hidden layers of phi_cat, which makes the first categorical hubs."""
    cat_skip: bool = True
    """Add a linear map of the item's and the candidate's tokens to phi_cat."""
    seq_hidden: tuple[PositiveInt, ...] = ()
    """Hidden layers of phi_seq, which makes the first hubs of events."""
    broadcast_hidden: tuple[PositiveInt, ...] = ()
    """Hidden layers from hubs to scale and shift."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Hidden layers of each task's head."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> INFNetV2Config:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        return self


@register_model("infnet_v2")
class INFNetV2(RankingModel):
    """The network; see :class:`INFNetV2Config` for its options."""

    config_type: ClassVar[type[ModelConfig]] = INFNetV2Config
    config: INFNetV2Config

    def __init__(self, layout: Layout, config: INFNetV2Config) -> None:
        super().__init__(layout, config)
        d, m, num_tasks, num_behaviours = config.width, config.num_cat_hubs, len(layout.tasks), len(layout.behaviours)
        self.cat_hubs = CategoricalProxies(
            self.inputs.num_tokens, d, m, config.cat_hidden, config.cat_skip, config.dropout
        )
        self.seq_hubs = (  # nobody reads those of a last block
            SequenceProxies(num_behaviours, d, config.num_seq_hubs, config.seq_hidden)
            if num_behaviours and config.num_blocks > 1
            else None
        )
        self.task_tokens, self.shared_tokens = (
            nn.Parameter(torch.empty(n, d).normal_(std=d**-0.5)) for n in (num_tasks, config.num_shared_tasks)
        )
        hubs = ["cat", "shared"] if self.seq_hubs is None else ["cat", "seq", "shared"]
        self.norms = nn.ModuleDict({kind: nn.LayerNorm(d) for kind in hubs})
        self.blocks = nn.ModuleList(
            HubBlock(
                num_behaviours,
                {"cat": m, "seq": config.num_seq_hubs, "shared": config.num_shared_tasks},
                d,
                num_heads=config.num_heads,
                hidden=config.broadcast_hidden,
                is_last=index == config.num_blocks - 1,
            )
            for index in range(config.num_blocks)
        )
        self.heads = TaskHeads(num_tasks, d, config.head_hidden, shared_width=m * d, dropout=config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        inputs = (tokens.request, tokens.item, tokens.own, tokens.candidates)
        hubs = {"cat": self.cat_hubs(*inputs), "shared": self.shared_tokens[None, None]}
        history: BehaviourTokens | None = None
        if tokens.events is not None:
            history = BehaviourTokens(tokens.events.padded())
            if self.seq_hubs is not None:
                hubs["seq"] = self.seq_hubs(tokens.events)
        queries = {kind: self.norms[kind](values) for kind, values in hubs.items()}
        state = HubState(queries | {"task": self.task_tokens[None, None]}, affine={})
        fields = field_tokens(*inputs)
        for block in self.blocks:
            state = block(state, fields, history, tokens.num_requests)
        return self.heads(state.queries["task"], state.queries["cat"].flatten(2))
