"""How the cost of a forward pass grows with the number of tokens: INFNet beside attention of all tokens to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from infnet.data.batch import FieldValues, RequestBatch
from infnet.data.layout import BehaviourLayout, FieldLayout, Layout, TaskLayout, Vocabulary
from infnet.evaluation.efficiency import count_flops, seconds_of
from infnet.features import Side
from infnet.layers.heads import TaskHeads
from infnet.models.base import RankingModel
from infnet.models.infnet import INFNet, INFNetConfig

__all__ = ["NUM_EVENTS", "NUM_FIELDS", "AllPairs", "Growth", "GrowthCurve", "measure_growth"]

NUM_EVENTS = (50, 100, 200, 400, 800, 1600)
NUM_FIELDS = (20, 40, 80, 160, 320)
_NUM_ROWS = 16
"""Of the batch that is timed."""

Axis = Literal["events", "fields"]
Measure = Literal["mflops", "ms"]


class AllPairs(RankingModel):
    """Every token attends to every token: INFNet's input tokens through as many plain transformer layers, then heads.

    A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762. The yardstick for growth; it takes
    full histories only.
    """

    config: INFNetConfig

    def __init__(self, layout: Layout, config: INFNetConfig) -> None:
        super().__init__(layout, config)
        d = config.width
        layers = (
            nn.TransformerEncoderLayer(d, config.num_heads, 4 * d, 0.0, batch_first=True)
            for _ in range(config.num_blocks)
        )
        self.layers = nn.Sequential(*layers)
        self.heads = TaskHeads(len(layout.tasks), d, config.head_hidden)

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits (R, 1, T)."""
        tokens = self.tokens(batch)
        history = [] if tokens.events is None else [tokens.events.padded().tokens]
        mixed = self.layers(torch.cat([tokens.fields()[:, 0], *history], dim=1))
        return self.heads(mixed.mean(dim=1)[:, None, None].expand(-1, 1, len(self.layout.tasks), -1))


_MODELS: dict[str, Callable[[Layout, INFNetConfig], RankingModel]] = {"INFNet": INFNet, "all pairs": AllPairs}


class GrowthCurve(BaseModel):
    """One model's cost over the number of tokens of one kind, the other kind held fixed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    axis: Axis
    sizes: tuple[int, ...]
    """Tokens of the kind that grows."""
    mflops: tuple[float, ...]
    """Of one row, counted."""
    ms: tuple[float, ...]
    """Of one row in a batch, measured."""

    def exponent(self, measure: Measure, num_last: int | None = None) -> float:
        """k of the power law cost ~ size^k: the slope of the least-squares line through their logarithms.

        Args:
            measure: Which cost.
            num_last: Fit to so many of the largest sizes; to all if None.
        """
        first = 0 if num_last is None else len(self.sizes) - num_last
        slope, _ = np.polyfit(np.log(self.sizes[first:]), np.log(getattr(self, measure)[first:]), 1)
        return float(slope)


class Growth(BaseModel):
    """Curves of all models over both kinds of tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    fixed: dict[Axis, int]
    """Tokens of a kind while the other grows."""
    curves: tuple[GrowthCurve, ...]

    def as_json(self) -> dict[str, Any]:
        """The curves, each with its exponents."""
        measures: tuple[Measure, ...] = ("mflops", "ms")
        curves = [
            curve.model_dump(mode="json")
            | {"exponent": {m: curve.exponent(m) for m in measures}}
            | {"last_exponent": {m: curve.exponent(m, 2) for m in measures}}
            for curve in self.curves
        ]
        return {"fixed": dict(self.fixed), "curves": curves}

    def as_markdown(self) -> str:
        """A table of exponents (those of the operations over the last two sizes too), then one of all points."""
        lines = [
            "| growing | tokens | model | k of MFLOPs ~ tokens^k | at the end | k of ms |",
            "|---|---|---|---:|---:|---:|",
            *(
                f"| {c.axis} | {c.sizes[0]:,} to {c.sizes[-1]:,} | {c.model} | {c.exponent('mflops'):.2f} "
                f"| {c.exponent('mflops', 2):.2f} | {c.exponent('ms'):.2f} |"
                for c in self.curves
            ),
            "",
            "| growing | tokens | model | MFLOPs / row | ms / row |",
            "|---|---:|---|---:|---:|",
            *(
                f"| {c.axis} | {size:,} | {c.model} | {mflops:,.2f} | {ms:,.3f} |"
                for c in self.curves
                for size, mflops, ms in zip(c.sizes, c.mflops, c.ms, strict=True)
            ),
        ]
        return "\n".join(lines) + "\n"


def measure_growth(
    config: INFNetConfig | None = None,
    *,
    num_events: Sequence[int] = NUM_EVENTS,
    num_fields: Sequence[int] = NUM_FIELDS,
    repeats: int = 5,
) -> Growth:
    """Cost of a forward pass over rising numbers of events and of fields, random ids and full histories.

    While one kind grows, there are as many of the other as its own curve begins with.

    Args:
        config: Width, blocks and heads of both models.
        num_events: Sequence tokens.
        num_fields: Categorical tokens, at least 4.
        repeats: Of each timing.
    """
    config = config or INFNetConfig()
    fixed: dict[Axis, int] = {"events": num_events[0], "fields": num_fields[0]}
    sizes: dict[Axis, Sequence[int]] = {"events": num_events, "fields": num_fields}
    curves = []
    for axis, steps in sizes.items():
        # Models take turns at each size, so that a busy moment of the machine meets both.
        costs = [[_cost_at(model, config, fixed | {axis: n}, repeats) for model in _MODELS.values()] for n in steps]
        for name, points in zip(_MODELS, zip(*costs, strict=True), strict=True):
            mflops, ms = zip(*points, strict=True)
            curves.append(GrowthCurve(model=name, axis=axis, sizes=tuple(steps), mflops=mflops, ms=ms))
    return Growth(fixed=fixed, curves=tuple(curves))


def _cost_at(
    build: Callable[[Layout, INFNetConfig], RankingModel], config: INFNetConfig, sizes: dict[Axis, int], repeats: int
) -> tuple[float, float]:
    """MFLOPs and milliseconds of one row."""
    layout = _layout(sizes["fields"], sizes["events"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(layout, config).eval()
    several = _batch(layout, _NUM_ROWS)
    with torch.inference_mode():
        elapsed_s = seconds_of(lambda: model(several), repeats, 2)
    return count_flops(model, several) / 1e6 / _NUM_ROWS, 1000 * elapsed_s / _NUM_ROWS


def _layout(num_fields: int, num_events: int) -> Layout:
    """Half the fields of the user, half of the item; an event made of two of the item's."""
    of_user = num_fields // 2
    user: Side = "user"
    item: Side = "item"
    sides = [user] * of_user + [item] * (num_fields - of_user)
    num_ids = _NUM_ROWS * (num_fields + 2 * num_events)
    return Layout(
        fields=tuple(
            FieldLayout(name=f"{side}{i}", side=side, storage="id", vocabulary="v") for i, side in enumerate(sides)
        ),
        vocabularies=(Vocabulary(name="v", first=1, size=num_ids),),
        behaviours=(BehaviourLayout(name="click", length=num_events, fields=(f"item{of_user}", f"item{of_user + 1}")),),
        tasks=tuple(TaskLayout(name=name, kind="binary", loss="bce") for name in ("click", "like", "long_view")),
        num_rows=1 + num_ids,
    )


def _batch(layout: Layout, num_rows: int) -> RequestBatch:
    """Rows with a full history and one candidate each, in which every id is another one."""
    num_ids = 0
    num_events = num_rows * layout.seq_len

    def ids(n: int, width: int) -> Tensor:
        nonlocal num_ids
        first, num_ids = num_ids, num_ids + n * width
        return torch.arange(first, num_ids, dtype=torch.int32).view(n, width)

    def values(side: Side) -> FieldValues:
        return FieldValues(ids(num_rows, layout.id_width(side)), torch.zeros(num_rows, 0))

    user, context, item, candidate = values("user"), values("context"), values("item"), values("candidate")
    event_ids = ids(num_events, len(layout.event_fields))
    return RequestBatch(
        rows=1 + torch.arange(num_ids),
        user=user,
        context=context,
        item=item,
        candidate=candidate,
        candidate_item=torch.arange(num_rows, dtype=torch.int32)[:, None],
        present=torch.ones(num_rows, 1, dtype=torch.bool),
        event_ids=event_ids,
        history=torch.arange(num_events, dtype=torch.int32).view(num_rows, -1),
        history_present=torch.ones(num_rows, layout.seq_len, dtype=torch.bool),
        history_gap=torch.zeros(num_rows, 0, dtype=torch.int32),
        labels=None,
        user_index=torch.arange(num_rows),
    )
