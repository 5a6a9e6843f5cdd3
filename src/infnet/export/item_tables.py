"""What a bundle keeps of every item, computed by the model's own modules block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infnet.data.batch import FieldValues
from infnet.data.dataset import EntityTable
from infnet.export.bundle import table_precision
from infnet.export.networks import ServingNetwork
from infnet.export.tables import Precision, Table

__all__ = ["dense_parameters", "write_tables"]

_BLOCK = 20_000
_ROWS = 200_000


@torch.no_grad()
def write_tables(network: ServingNetwork, items: EntityTable, directory: Path, precision: Precision) -> None:
    """Write the embedding table and the tables of items.

    Args:
        network: Whose model they belong to.
        items: Of all items, the unknown one first.
        directory: For ``embedding``, ``tokens``, ``events`` and what the network names.
        precision: Of all but the masses of softmaxes.
    """
    model, num_items = network.model, len(items.ids)
    weight = model.embedding.weight.detach()
    rows = (weight[start : start + _ROWS, None] for start in range(0, len(weight), _ROWS))
    Table.write(directory / "embedding", rows, (len(weight), 1, weight.shape[1]), precision)

    def write(name: str, make: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        example = make(*next(_blocks(network, items, 1)))
        blocks = (make(*block) for block in _blocks(network, items, _BLOCK))
        shape = (num_items, example.shape[1], example.shape[2])
        Table.write(directory / name, blocks, shape, table_precision(name, precision))

    num_own = model.inputs.num_tokens[2]
    write("tokens", lambda item, *_: torch.nn.functional.pad(item, (0, 0, 0, num_own)))
    for name in network.item_tables:
        write(name, lambda item, *_, name=name: network.of_items(item)[name])
    of_items = model.inputs.events
    if of_items is not None:
        write("events", lambda _, embedded, ids: _distinct(of_items.of_items(embedded, ids)))


def dense_parameters(network: ServingNetwork) -> dict[str, NDArray[np.float32]]:
    """What :class:`infnet.export.engine.EngineTables` holds as ``dense``."""
    inputs, layout = network.model.inputs, network.model.layout
    found: dict[str, Tensor] = {}
    if isinstance(inputs.rows.project, torch.nn.Linear):
        found["projection"] = inputs.rows.project.weight.T
    for tokenizer in (inputs.request, inputs.candidate):
        names = tokenizer.names[len(tokenizer.names) - len(tokenizer.dense) :]
        for name, linear in zip(names, tokenizer.dense, strict=True):
            assert isinstance(linear, torch.nn.Linear)
            found |= {f"{name}.weight": linear.weight.T, f"{name}.bias": linear.bias}
    if inputs.events is not None:
        for behaviour, position, gap in zip(layout.behaviours, inputs.events.position, inputs.events.gap, strict=True):
            pairs = {f"position.{behaviour.name}": position, f"gap.{behaviour.name}": gap}
            found |= {name: values for name, values in pairs.items() if values.numel()}
    return {name: values.detach().numpy().copy() for name, values in found.items()}


def _blocks(network: ServingNetwork, items: EntityTable, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Item tokens (b, M_i, d), the embedded rows (U, d) they were made of, and items' ids as positions therein."""
    model = network.model
    for start in range(0, len(items.ids), size):
        ids = np.asarray(items.ids[start : start + size])
        rows, positions = np.unique(np.maximum(ids, 0), return_inverse=True)
        places = torch.from_numpy(np.where(ids < 0, -1, positions.reshape(ids.shape)).astype(np.int32))
        embedded = model.inputs.rows.project(model.embedding.weight[torch.from_numpy(rows.astype(np.int64))])
        dense = torch.from_numpy(np.array(items.dense[start : start + size]))
        yield model.inputs.item(embedded, FieldValues(places, dense)), embedded, places


def _distinct(targets: Tensor) -> Tensor:
    """(F, b, d) -> (b, F, d), or (b, 1, d) where an item is the same event under all behaviours."""
    kinds = targets[:1] if targets.stride(0) == 0 else targets
    return kinds.transpose(0, 1)
