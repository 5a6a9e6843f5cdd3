"""What every ranking model is: a RequestBatch in, one logit per request, candidate and task out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from infnet.data.batch import RequestBatch
from infnet.data.layout import Layout, TaskLayout
from infnet.errors import SpecError, did_you_mean
from infnet.layers.embedding import EmbeddingTable
from infnet.layers.inputs import Inputs, InputTokens

__all__ = ["ModelConfig", "RankingModel", "build_model", "model_names", "predictions", "register_model"]


class ModelConfig(BaseModel):
    """Settings that every model has."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    width: int = Field(default=16, ge=1)
    """d, width of every token."""
    embedding_width: int | None = Field(default=None, ge=1)
    """Width of the embedding table, projected to the token width; the token width itself by default."""
    embedding_std: float = Field(default=0.01, gt=0)
    """Of the embedding table's initial values."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """On the hidden layers."""
    event_combine: Literal["sum", "concat"] = "concat"
    """How an event's item fields become one token: added, or joined and projected, by each behaviour in its own way."""
    event_position: bool = False
    """Add an embedding of an event's place in its history, even where the dataset's spec asks for none."""
    event_gap: bool = False
    """Add an embedding of the time since an event, even where the dataset's spec asks for none."""


class RankingModel(nn.Module):
    """Base of all models.

    A model owns exactly one :class:`EmbeddingTable`, :attr:`embedding`, whose gradient is sparse; all other
    parameters are dense.
    """

    config_type: ClassVar[type[ModelConfig]] = ModelConfig
    name: ClassVar[str]

    def __init__(self, layout: Layout, config: ModelConfig) -> None:
        super().__init__()
        self.layout = layout = layout.with_event_embeddings(position=config.event_position, gap=config.event_gap)
        self.config = config
        width = self.token_width(layout, config)
        self.embedding = EmbeddingTable(layout.num_rows, config.embedding_width or width, config.embedding_std)
        self.inputs = Inputs(layout, self.embedding.width, width, config.event_combine)

    @classmethod
    def token_width(cls, layout: Layout, config: ModelConfig) -> int:
        """Width of the input tokens: d, unless a model keeps several embeddings of a value side by side."""
        return config.width

    def tokens(self, batch: RequestBatch) -> InputTokens:
        """The batch as tokens: where every forward pass begins."""
        tokens: InputTokens = self.inputs(self.embedding, batch)
        return tokens

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits (R, N, T); for a regression task the standardised value. Padded candidates hold anything finite."""
        return self.score(self.tokens(batch))

    def score(self, tokens: InputTokens) -> Tensor:
        """The same from tokens, wherever they come from."""
        raise TypeError(f"{type(self).__name__} has no forward pass")

    def auxiliary_loss(self) -> Tensor | None:
        """A loss of the model's own for the batch seen last, such as DIEN's; None for most."""
        return None

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that every task uses, whose gradients GradNorm balances; the embedding table unless said."""
        return [self.embedding.weight]


_MODELS: dict[str, type[RankingModel]] = {}
_M = TypeVar("_M", bound=type[RankingModel])


def register_model(name: str) -> Callable[[_M], _M]:
    """Register a class under the name that ``--model`` takes."""

    def register(cls: _M) -> _M:
        cls.name = name
        _MODELS[name] = cls
        return cls

    return register


def model_names() -> list[str]:
    """Every registered model."""
    return sorted(_MODELS)


def build_model(name: str, layout: Layout, settings: dict[str, Any] | None = None) -> RankingModel:
    """A fresh model for a dataset.

    Raises:
        SpecError: The name or a setting is unknown, or a value is out of range.
    """
    if name not in _MODELS:
        raise SpecError(f"unknown model '{name}'{did_you_mean(name, _MODELS)}")
    cls = _MODELS[name]
    settings = settings or {}
    for key in settings:
        if key not in cls.config_type.model_fields:
            raise SpecError(f"model '{name}' has no setting '{key}'{did_you_mean(key, cls.config_type.model_fields)}")
    try:
        config = cls.config_type.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"]) or "settings"
        message = first["msg"].removeprefix("Value error, ")
        raise SpecError(f"model '{name}', {path}: {message}, found {first['input']!r}") from error
    return cls(layout, config)


def predictions(logits: Tensor, tasks: tuple[TaskLayout, ...]) -> Tensor:
    """Logits (..., T) -> what they mean: probabilities (INFNet eq. 12), or values in the label's unit."""
    columns = []
    for index, task in enumerate(tasks):
        z = logits[..., index].double()
        if task.kind == "binary":
            columns.append(z.sigmoid())
        elif task.loss == "log_mse":
            columns.append(z.clamp(max=60.0).expm1().clamp(min=0.0))
        else:
            columns.append(z * task.std + task.mean)
    return torch.stack(columns, dim=-1)
