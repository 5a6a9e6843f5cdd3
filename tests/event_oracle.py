"""Tokens of past events, one event at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from infnet.data.batch import RequestBatch
from infnet.data.layout import Layout
from infnet.layers.events import EventTokens


def event_tokens(
    module: EventTokens, layout: Layout, embedded: Tensor, batch: RequestBatch
) -> list[list[list[Tensor]]]:
    """Per request and behaviour the tokens (d,) of the events present, most recent first."""
    width = embedded.shape[1]
    columns, start, where = layout.id_columns("item"), 0, {}
    for name in layout.event_fields:
        size = columns[name].stop - columns[name].start
        where[name] = slice(start, start + size)
        start += size

    def field(ids: list[int]) -> Tensor:
        found = [embedded[i] for i in ids if i >= 0]
        return torch.stack(found).mean(0) if found else torch.zeros(width, dtype=embedded.dtype)

    requests = []
    for r in range(batch.num_requests):
        at, behaviours = 0, []
        for a, declared in enumerate(layout.behaviours):
            tokens = []
            for rank in range(declared.length):
                if not batch.history_present[r, at + rank]:
                    continue
                ids = batch.event_ids[batch.history[r, at + rank].long()]
                parts = [field(ids[where[name]].tolist()) for name in declared.fields]
                if module.combine == "sum":
                    token = sum(parts)
                else:
                    token = module.projections[a].weight @ torch.cat(parts) + module.projections[a].bias
                if declared.position:
                    token = token + module.position[a][rank]
                if declared.gap:
                    token = token + module.gap[a][batch.history_gap[r, at + rank].long()]
                tokens.append(token)
            behaviours.append(tokens)
            at += declared.length
        requests.append(behaviours)
    return requests
