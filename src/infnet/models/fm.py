"""FM: a weight for every value and an inner product for every pair of values.

S. Rendle, "Factorization Machines", ICDM 2010. A model of one label, so every task has a copy of its own, with nothing
shared; over the same tokens as INFNet, histories mean-pooled. Without hidden layers there is nothing to drop out.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn

from infnet.data.layout import Layout
from infnet.layers.inputs import InputTokens
from infnet.layers.tokens import FieldTokenizer
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["FM", "FMConfig"]


class FMConfig(ModelConfig):
    """Settings of FM; ``width`` is the number of factors of a value for one task."""

    event_combine: Literal["sum"] = "sum"
    """An event's factors are the sum of its item fields' factors: an FM has no projections."""

    @field_validator("embedding_width")
    @classmethod
    def _is_the_width(cls, value: int | None) -> None:
        if value is not None:
            raise ValueError("an FM reads its factors as the table holds them; leave it out and set width")


@register_model("fm")
class FM(RankingModel):
    """All field tokens and one mean-pooled token per behaviour; a token is T times d factors v and one weight w.

    logit = bias + sum_i w_i + sum_(i<j) <v_i, v_j>, the pairs as (|sum_i v_i|^2 - sum_i |v_i|^2) / 2.
    """

    config_type: ClassVar[type[ModelConfig]] = FMConfig
    config: FMConfig

    def __init__(self, layout: Layout, config: FMConfig) -> None:
        super().__init__(layout, config)
        self.bias = nn.Parameter(torch.zeros(len(layout.tasks)))
        for tokenizer in (self.inputs.request, self.inputs.item, self.inputs.candidate):
            _start_small(tokenizer, config.embedding_std)

    @classmethod
    def token_width(cls, layout: Layout, config: ModelConfig) -> int:
        """T * (d + 1)."""
        return len(layout.tasks) * (config.width + 1)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        request = self._terms(tokens.request)
        if tokens.events is not None:
            request = request + self._terms(tokens.events.means())
        terms = tokens.candidates.gather(self._terms(tokens.item)) + request[:, None] + self._terms(tokens.own)
        sums = terms.unflatten(-1, (len(self.bias), -1))
        return self.bias + sums[..., -1] + 0.5 * sums[..., :-1].square().sum(dim=-1)

    def _terms(self, tokens: Tensor) -> Tensor:
        """What a set of tokens (..., n, T * (d + 1)) adds for each task, side by side (..., T * (d + 1)).

        The factors' sum, whose square needs all sets, and after it what does not: sum_i w_i - sum_i |v_i|^2 / 2.
        """
        shape = (len(self.bias), -1)
        sums, squares = tokens.sum(dim=-2).unflatten(-1, shape), tokens.square().sum(dim=-2).unflatten(-1, shape)
        alone = sums[..., -1:] - 0.5 * squares[..., :-1].sum(dim=-1, keepdim=True)
        return torch.cat([sums[..., :-1], alone], dim=-1).flatten(-2)


def _start_small(tokenizer: FieldTokenizer, std: float) -> None:
    """Begin the factors of dense values like those of ids."""
    for linear in tokenizer.dense:
        assert isinstance(linear, nn.Linear)
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
