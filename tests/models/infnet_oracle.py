"""INFNet's equations written out, row by row and token by token: the oracle the folded implementation must equal.

Reads the same parameters, shares no code: every candidate is a row of its own, tokens are gated and projected in
every block, and attention is a softmax over explicit logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infnet.data.batch import RequestBatch
from infnet.models.infnet import INFNet


def attend(arrow, queries: Tensor, tokens: Tensor, present: Tensor | None = None) -> Tensor:
    """CA(Q, X, X) for one row: queries (q, d), tokens (n, d) -> (q, d); nothing present reads zeros."""
    if present is not None:
        tokens = tokens[present]
    if tokens.shape[0] == 0:
        return torch.zeros_like(queries)
    heads = []
    for W_Q, W_K, W_V in zip(arrow.query, arrow.key, arrow.value, strict=True):
        logits = (queries @ W_Q) @ (tokens @ W_K).T / math.sqrt(W_Q.shape[1])
        heads.append(torch.softmax(logits, dim=1) @ (tokens @ W_V))
    return torch.cat(heads, dim=1)


def written_out(model: INFNet, batch: RequestBatch) -> Tensor:
    """Logits (R, N, T)."""
    R, N = batch.present.shape
    rows = [[_row(model, batch, r, c) for c in range(N)] for r in range(R)]
    return torch.stack([torch.stack(row) for row in rows])


def _embed(model: INFNet, batch: RequestBatch, position: int) -> Tensor:
    return model.inputs.rows.project(model.embedding.weight[batch.rows[position]])


def _mean(model: INFNet, batch: RequestBatch, positions: list[int]) -> Tensor:
    found = [_embed(model, batch, p) for p in positions if p >= 0]
    return torch.stack(found).mean(0) if found else torch.zeros(model.config.width, dtype=model.task_tokens.dtype)


def _field_tokens(model: INFNet, batch: RequestBatch, tokenizer, indices: dict[str, int]) -> list[Tensor]:
    """Tokens of the fields of some sides; ``indices`` says which row of each side."""
    layout = model.layout
    tokens, dense = {}, iter(tokenizer.dense)
    for side, index in indices.items():
        values = getattr(batch, side)
        for field in layout.side(side):
            if field.storage == "dense":
                columns = layout.dense_columns(side)[field.name]
                linear = next(dense)
                tokens[field.name] = linear.weight @ values.dense[index, columns].to(linear.weight.dtype) + linear.bias
            else:
                ids = values.ids[index, layout.id_columns(side)[field.name]].tolist()
                is_single = field.storage == "id"
                tokens[field.name] = _embed(model, batch, ids[0]) if is_single else _mean(model, batch, ids)
    return [tokens[name] for name in tokenizer.names]


def _event_token(model: INFNet, batch: RequestBatch, request: int, behaviour: int, rank: int) -> Tensor:
    layout = model.layout
    declared = layout.behaviours[behaviour]
    at = sum(b.length for b in layout.behaviours[:behaviour]) + rank
    columns, start, where = layout.id_columns("item"), 0, {}
    for name in layout.event_fields:
        width = columns[name].stop - columns[name].start
        where[name] = slice(start, start + width)
        start += width
    ids = batch.event_ids[batch.history[request, at]]
    parts = []
    for name in declared.fields:
        values = ids[where[name]].tolist()
        is_tags = name.endswith("_tags")
        parts.append(_mean(model, batch, values) if is_tags else _embed(model, batch, values[0]))
    if model.config.event_combine == "sum":
        token = sum(parts)
    else:
        linear = model.inputs.events.projections[behaviour]
        token = linear.weight @ torch.cat(parts) + linear.bias
    if declared.position:
        token = token + model.inputs.events.position[behaviour][rank]
    if declared.gap:
        token = token + model.inputs.events.gap[behaviour][batch.history_gap[request, at]]
    return token


def _gate(gate, proxies: Tensor) -> Tensor:
    return torch.sigmoid(gate.mlp(proxies.reshape(-1)))


def _row(model: INFNet, batch: RequestBatch, r: int, c: int) -> Tensor:
    config, layout = model.config, model.layout
    d = config.width
    C = torch.stack(
        _field_tokens(model, batch, model.inputs.request, {"user": r, "context": r})
        + _field_tokens(model, batch, model.inputs.item, {"item": int(batch.candidate_item[r, c])})
        + _field_tokens(model, batch, model.inputs.candidate, {"candidate": r * batch.num_candidates + c})
    )
    has_cat, has_seq = model.cat_proxies is not None, model.seq_proxies is not None  # else nobody reads them
    C_proxy = None
    if has_cat:
        phi_cat = model.cat_proxies
        W_item = torch.cat([phi_cat.item, phi_cat.own], dim=1)  # first layer and skip, one below the other
        C_request, C_item = (
            C[: model.inputs.request.num_tokens].reshape(-1),
            C[model.inputs.request.num_tokens :].reshape(-1),
        )
        H = len(phi_cat.request)
        C_proxy = phi_cat.rest(phi_cat.request @ C_request + W_item[:H] @ C_item + phi_cat.bias)
        if config.cat_skip:
            C_proxy = C_proxy + W_item[H:] @ C_item
        C_proxy = C_proxy.reshape(config.num_cat_proxies, d)  # eq. 2

    present = batch.history_present[r]
    S_tokens, S_proxies, at = [], [], 0
    for a, behaviour in enumerate(layout.behaviours):
        tokens = [_event_token(model, batch, r, a, i) for i in range(behaviour.length)]
        if has_seq:
            total = torch.zeros(config.num_seq_proxies * d, dtype=C.dtype)
            for i, token in enumerate(tokens):  # eq. 4
                if present[at + i]:
                    total = total + model.seq_proxies.phi(token)
            S_proxies.append(total.reshape(config.num_seq_proxies, d))
        S_tokens += tokens
        at += behaviour.length
    S = torch.stack(S_tokens) if S_tokens else C.new_zeros(0, d)
    S_proxy = torch.cat(S_proxies) if S_proxies else None
    T, T_proxy = model.task_tokens, model.shared_tokens
    if config.proxy_norm:
        T_proxy = model.norms["shared"](T_proxy)
        C_proxy = model.norms["cat"](C_proxy) if C_proxy is not None else None
        S_proxy = model.norms["seq"](S_proxy) if S_proxy is not None else None

    for index, block in enumerate(model.blocks):
        last = index == len(model.blocks) - 1
        arrow = dict(block.arrows.items())

        def flow(target, Q, *sources, arrow=arrow, C=C, S=S, T=T):
            total = torch.zeros_like(Q)
            for source in sources:
                if source == "seq" and not layout.behaviours:
                    continue
                tokens = {"cat": C, "seq": S, "task": T}[source]
                total = total + attend(
                    arrow[f"{target}_from_{source}"], Q, tokens, present if source == "seq" else None
                )
            return total

        def proxies(target, Q, *sources, block=block, flow=flow):
            out = flow(target, Q, *sources)
            if config.proxy_residual:
                out = out + Q
            return block.norms[target](out) if config.proxy_norm else out

        new_C = new_S = new_T = None
        if "cat_from_task" in arrow:
            new_C = proxies("cat", C_proxy, "seq", "task")  # eq. 6
        if "seq_from_task" in arrow:
            new_S = proxies("seq", S_proxy, "cat", "task")  # eq. 7
        if "shared_from_cat" in arrow:
            new_T = proxies("shared", T_proxy, "cat", "seq")  # eq. 8
        T_hat = flow("task", T, "cat", "seq")  # eq. 9
        updated = config.gate_with == "updated"
        gated = T_hat * _gate(block.gates["shared"], new_T if updated else T_proxy)  # eqs. 10, 11
        T = T + gated if config.token_residual else gated
        if not last:
            gate = _gate(block.gates["cat"], new_C if updated else C_proxy)
            C = C + C * gate if config.token_residual else C * gate
            if layout.behaviours:
                gate = _gate(block.gates["seq"], new_S if updated else S_proxy)
                S = S + S * gate if config.token_residual else S * gate
        C_proxy = C_proxy if new_C is None else new_C
        S_proxy = S_proxy if new_S is None else new_S
        T_proxy = T_proxy if new_T is None else new_T
    return _heads(model, T, C_proxy)


def _heads(model: INFNet, T: Tensor, C_proxy: Tensor) -> Tensor:
    logits = []
    for i in range(T.shape[0]):  # eq. 12
        layers = list(model.heads.own)
        out = T[i] @ layers[0].weight[i] + layers[0].bias[i]
        if model.heads.shared is not None:
            size = out.shape[0]
            out = out + model.heads.shared.weight[i * size : (i + 1) * size] @ C_proxy.reshape(-1)
        for layer in layers[1:]:
            out = torch.relu(out) @ layer.weight[i] + layer.bias[i]
        logits.append(out[0])
    return torch.stack(logits)
