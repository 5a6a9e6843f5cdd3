"""The tokens that every model starts from, one field and one event at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from event_oracle import event_tokens
from infnet.data.batch import RequestBatch
from infnet.models import RankingModel


class WrittenInputs:
    """Tokens of a batch, (d,) each.

    Attributes:
        histories: Per request and behaviour its events, most recent first.
    """

    def __init__(self, model: RankingModel, batch: RequestBatch) -> None:
        self.model, self.batch = model, batch
        inputs, layout = model.inputs, model.layout
        self._embedded = torch.stack([inputs.rows.project(model.embedding.weight[row]) for row in batch.rows])
        none: list[list[list[Tensor]]] = [[] for _ in range(batch.num_requests)]
        events = inputs.events
        self.histories = none if events is None else event_tokens(events, layout, self._embedded, batch)

    def request(self, r: int) -> list[Tensor]:
        """Of user and context."""
        return self._fields(self.model.inputs.request, user=r, context=r)

    def item(self, r: int, c: int) -> list[Tensor]:
        """Of the candidate's item."""
        return self._fields(self.model.inputs.item, item=int(self.batch.candidate_item[r, c]))

    def own(self, r: int, c: int) -> list[Tensor]:
        """Of request and item together."""
        return self._fields(self.model.inputs.candidate, candidate=r * self.batch.num_candidates + c)

    def fields(self, r: int, c: int) -> list[Tensor]:
        """All M field tokens of a candidate."""
        return [*self.request(r), *self.item(r, c), *self.own(r, c)]

    def sides(self, r: int, c: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """A candidate's tokens of request, item and both together, as an InputLinear takes them."""
        return self.request(r), self.item(r, c), self.own(r, c)

    def pooled(self, r: int) -> list[Tensor]:
        """Mean token of each behaviour."""
        zeros = self._embedded.new_zeros(self._embedded.shape[1])
        return [torch.stack(tokens).mean(0) if tokens else zeros for tokens in self.histories[r]]

    def targets(self, r: int, c: int) -> list[Tensor]:
        """The candidate's item as an event of each behaviour, without position and gap."""
        layout, events = self.model.layout, self.model.inputs.events
        if events is None:
            return []
        names = [field.name for field in layout.side("item") if field.storage != "dense"]
        of_field = dict(zip(self.model.inputs.item.names, self.item(r, c), strict=True))
        out = []
        for behaviour, project in zip(layout.behaviours, events.projections, strict=True):
            parts = [of_field[name] for name in behaviour.fields if name in names]
            if events.combine == "sum":
                out.append(torch.stack(parts).sum(0))
            else:
                out.append(project.weight @ torch.cat(parts) + project.bias)
        return out

    def _fields(self, tokenizer, **index_by_side: int) -> list[Tensor]:
        by_name, dense = {}, iter(tokenizer.dense)
        for side, index in index_by_side.items():
            values = getattr(self.batch, side)
            for field in self.model.layout.side(side):
                if field.storage == "dense":
                    linear, columns = next(dense), self.model.layout.dense_columns(side)[field.name]
                    by_name[field.name] = linear.weight @ values.dense[index, columns] + linear.bias
                else:
                    ids = values.ids[index, self.model.layout.id_columns(side)[field.name]].tolist()
                    own = [self._embedded[i] for i in ids if i >= 0]
                    zeros = self._embedded.new_zeros(self._embedded.shape[1])
                    by_name[field.name] = torch.stack(own).mean(0) if own else zeros
        return [by_name[name] for name in tokenizer.names]


def heads_written_out(heads, own: Tensor) -> Tensor:
    """Own inputs (T, d) of one candidate -> logits (T,), one task at a time."""
    logits = []
    for task in range(len(own)):
        first, *others = heads.own
        out = own[task] @ first.weight[task] + first.bias[task]
        for layer in others:
            out = out.clamp(min=0) @ layer.weight[task] + layer.bias[task]
        logits.append(out[0])
    return torch.stack(logits)


def layers_written_out(layers, x: Tensor) -> Tensor:
    """The linear layers of a HiddenLayers or MLP after its first, with the ReLU before each: x is pre-activation."""
    for layer in [layer for layer in layers if isinstance(layer, torch.nn.Linear)]:
        x = layer.weight @ x.clamp(min=0) + layer.bias
    return x


def input_linear_written_out(layer, sides, request=(), candidate=()) -> Tensor:
    """An InputLinear of one candidate: its tokens as :meth:`WrittenInputs.sides`, further values as tensors."""
    of_request, of_item, own = sides
    linear = layer.linear
    flat = torch.cat([*of_request, *request, *of_item, *own, *candidate])
    return torch.cat(list(linear.weights), dim=1) @ flat + linear.bias


def shared_bottom_written_out(model: RankingModel, sides, request=(), candidate=()) -> Tensor:
    """Logits (T,) of one candidate: an InputLinear, hidden layers that the tasks share, heads."""
    first = input_linear_written_out(model.first, sides, request, candidate)
    shared = layers_written_out(model.rest, first).clamp(min=0)
    return heads_written_out(model.heads, shared.expand(len(model.layout.tasks), -1))
