"""How much each task, shared task and proxy token of INFNet reads from each field and each past event."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infnet.data.batch import RequestBatch
from infnet.errors import SpecError
from infnet.layers.attention import TokenSet
from infnet.layers.flows import FlowBlock
from infnet.layers.softmax_read import recorded_weights
from infnet.layers.table_read import plain_reads
from infnet.models.infnet import INFNet

__all__ = ["AttentionMap", "attention_maps"]

Source = Literal["fields", "events"]
_SOURCES: dict[str, Source] = {"cat": "fields", "seq": "events"}


@dataclass(frozen=True)
class AttentionMap:
    """The softmax weights of one block's reads from one type of tokens, averaged over heads."""

    block: int
    """Counted from 1."""
    source: Source
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    """Field names; events as ``click -1`` for the most recent click. Events that nobody has are left out."""
    behaviours: tuple[str, ...]
    """Of each event, a behaviour's events most recent first; empty for fields."""
    weights: NDArray[np.float64]
    """(queries, keys); rows sum to one, unless there is no key at all."""
    relative: NDArray[np.float64]
    """Weights over the even weight, 1 / number of keys, of the requests that have the key; 1 is a plain average."""

    def as_json(self) -> dict[str, Any]:
        """Names and numbers."""
        return {
            "block": self.block,
            "source": self.source,
            "queries": list(self.queries),
            "keys": list(self.keys),
            "weights": self.weights.tolist(),
            "relative": self.relative.tolist(),
        }


def attention_maps(model: INFNet, batch: RequestBatch) -> list[AttentionMap]:
    """What each block reads from the fields and from the history, recorded from the model's own forward pass.

    Several requests are averaged, those without history left out where events are read. An event's place in its
    history is what it is averaged by.

    Args:
        model: Left in the mode it came in.
        batch: Requests with one candidate each, at most 512.

    Raises:
        SpecError: There are more candidates or requests.
    """
    if batch.num_candidates != 1 or batch.num_requests > 512:
        raise SpecError(
            f"attention maps: found {batch.num_requests} requests of {batch.num_candidates} candidates, wanted one "
            "candidate each and at most 512 requests"
        )
    was_training = model.training
    model.eval()
    reads: list[_Read] = []
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(plain_reads())
            for number, block in enumerate(model.blocks, start=1):
                handle = block.register_forward_pre_hook(_Recorder(number, reads))
                stack.callback(handle.remove)
            model(batch)
    finally:
        model.train(was_training)
    names = _query_names(model)
    return [_map_of(read, names, model, batch) for read in reads if any(kind in names for kind in read.kinds)]


@dataclass(frozen=True)
class _Read:
    block: int
    source: Source
    kinds: list[str]
    """Of queries."""
    weights: list[Tensor]
    """(R, q * h, n) of each kind."""


class _Recorder:
    """Before a block runs, has its token sets write down how they are read."""

    def __init__(self, block: int, reads: list[_Read]) -> None:
        self._block, self._reads = block, reads

    def __call__(self, block: FlowBlock, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        state, tokens, num_requests = arguments
        recorded = {
            source: _RecordedTokens(found, self._block, _SOURCES[source], block.reads.get(source, []), self._reads)
            for source, found in tokens.items()
        }
        return state, recorded, num_requests


class _RecordedTokens:
    def __init__(self, tokens: TokenSet, block: int, source: Source, kinds: list[str], reads: list[_Read]) -> None:
        self._tokens, self._block, self._source, self._kinds, self._reads = tokens, block, source, kinds, reads

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """What the tokens give."""
        with recorded_weights() as record:
            found = self._tokens.read(queries, gate)
        if record:  # plain averages have no weights
            parts = record[0].flatten(1, 2).split([q.shape[2] for q in queries], dim=1)
            self._reads.append(_Read(self._block, self._source, self._kinds, list(parts)))
        return found


def _query_names(model: INFNet) -> dict[str, list[str]]:
    """By kind; the tokens themselves are left out where they take the proxies' part."""
    layout, config = model.layout, model.config
    names = {
        "task": list(layout.task_names),
        "shared": [f"shared {i}" for i in range(1, config.num_shared_tasks + 1)],
    }
    if config.proxies == "few":
        names["cat"] = [f"cat proxy {i}" for i in range(1, config.num_cat_proxies + 1)]
        each = range(1, config.num_seq_proxies + 1)
        names["seq"] = [
            f"{b.name} proxy {i}" if len(each) > 1 else f"{b.name} proxy" for b in layout.behaviours for i in each
        ]
    return names


def _map_of(read: _Read, names: dict[str, list[str]], model: INFNet, batch: RequestBatch) -> AttentionMap:
    known = [(kind, part) for kind, part in zip(read.kinds, read.weights, strict=True) if kind in names]
    heads = model.config.num_heads
    each = torch.cat([part.unflatten(1, (-1, heads)).mean(dim=2) for _, part in known], dim=1).double().numpy()
    queries = tuple(name for kind, _ in known for name in names[kind])
    if read.source == "fields":
        keys, weights = _field_names(model), each.mean(axis=0)
        return AttentionMap(read.block, read.source, queries, keys, (), weights, weights * len(keys))
    weights, relative, columns = _by_place(each, batch.history_present.numpy())
    events = [(b.name, f"{b.name} -{place}") for b in model.layout.behaviours for place in range(1, b.length + 1)]
    behaviours, keys = zip(*(events[column] for column in columns), strict=True) if len(columns) else ((), ())
    return AttentionMap(read.block, read.source, queries, keys, behaviours, weights, relative)


def _field_names(model: INFNet) -> tuple[str, ...]:
    inputs = model.inputs
    pooled = tuple(b.name for b in model.layout.behaviours) if model.config.history == "pooled" else ()
    return (*inputs.request.names, *pooled, *inputs.item.names, *inputs.candidate.names)


def _by_place(
    weights: NDArray[np.float64], present: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Averages over requests.

    Args:
        weights: (R, q, n) on each request's present events side by side.
        present: (R, L).

    Returns:
        Weights and relative weights (q, k), and the k columns of ``present`` that any request has.
    """
    spread = np.zeros((*weights.shape[:2], present.shape[1]))
    counts = present.sum(axis=1)
    for own, here, read, count in zip(spread, present, weights, counts, strict=True):
        own[:, here] = read[:, :count]
    columns = np.flatnonzero(present.any(axis=0))
    spread, having = spread[..., columns], present[:, columns].sum(axis=0)
    average = spread.sum(axis=0) / max(1, (counts > 0).sum())
    return average, (spread * counts[:, None, None]).sum(axis=0) / having, columns
