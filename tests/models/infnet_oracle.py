"""INFNet's equations written out, row by row and token by token: the oracle the folded implementation must equal.

Reads the same parameters, shares no code: every candidate is a row of its own, tokens are gated and projected in
every block, and attention is a softmax over explicit logits. What the model has no parameters for is NaN here, so that
it would show if anybody read it.
"""

from __future__ import annotations

import math

import torch
from inputs_oracle import WrittenInputs
from torch import Tensor
from written_out import every_candidate

from infnet.data.batch import RequestBatch
from infnet.models.infnet import INFNet


def attend(arrow, queries: Tensor, tokens: Tensor) -> Tensor:
    """CA(Q, X, X) for one row: queries (q, d), tokens (n, d') -> (q, d); no tokens read zeros."""
    if tokens.shape[0] == 0:
        return torch.zeros_like(queries)
    heads = []
    for W_Q, W_K, W_V in zip(arrow.query, arrow.key, arrow.value, strict=True):
        logits = (queries @ W_Q) @ (tokens @ W_K).T / math.sqrt(W_Q.shape[1])
        heads.append(torch.softmax(logits, dim=1) @ (tokens @ W_V))
    return torch.cat(heads, dim=1)


def average(arrow, queries: Tensor, tokens: Tensor) -> Tensor:
    """What stands for CA without attention."""
    if tokens.shape[0] == 0:
        return torch.zeros_like(queries)
    return (tokens @ arrow.value).mean(dim=0).expand(len(queries), -1)


def category_proxies(phi, request: list[Tensor], others: list[Tensor]) -> Tensor:
    """Eq. 2: tokens of the request; of item and candidate -> (m, d)."""
    W_item = torch.cat([phi.item, phi.own], dim=1)  # first layer and skip, one below the other
    of_request, of_item = (torch.cat(part) if part else W_item.new_zeros(0) for part in (request, others))
    H = len(phi.request)
    out = phi.rest(phi.request @ of_request + W_item[:H] @ of_item + phi.bias)
    if len(W_item) > H:
        out = out + W_item[H:] @ of_item
    return out.reshape(phi.shape)


def sequence_proxies(phi, events: list[Tensor]) -> Tensor:
    """Eq. 4 for one behaviour -> (k, d)."""
    total = torch.zeros(phi.num_proxies * phi.width, dtype=next(phi.parameters()).dtype)
    for token in events:
        total = total + phi.phi(token)
    return total.reshape(phi.num_proxies, phi.width)


def heads_of(heads, own: Tensor, shared: Tensor | None) -> Tensor:
    """Eq. 12: own inputs (T, w), values (s,) that all heads see -> logits (T,)."""
    logits = []
    for i in range(len(own)):
        layers = list(heads.own)
        out = own[i] @ layers[0].weight[i] + layers[0].bias[i]
        if shared is not None:
            out = out + heads.shared.weight[i * len(out) : (i + 1) * len(out)] @ shared
        for layer in layers[1:]:
            out = torch.relu(out) @ layer.weight[i] + layer.bias[i]
        logits.append(out[0])
    return torch.stack(logits)


def written_out(model: INFNet, batch: RequestBatch) -> Tensor:
    """Logits (R, N, T)."""
    inputs = WrittenInputs(model, batch)
    return every_candidate(batch, lambda r, c: _row(model, inputs, r, c))


def _row(model: INFNet, inputs: WrittenInputs, r: int, c: int) -> Tensor:
    config, layout, d = model.config, model.layout, model.config.width
    has_tasks, is_pooled = config.task_fusion != "none", config.history == "pooled"
    histories = [] if is_pooled else inputs.histories[r]
    of_request = inputs.request(r) + (inputs.pooled(r) if is_pooled and layout.behaviours else [])
    of_item = inputs.item(r, c) + inputs.own(r, c)
    C = torch.stack(of_request + of_item)
    S = torch.stack([token for events in histories for token in events] or [C.new_zeros(d)])
    if not any(histories):
        S = S[:0]
    nothing = torch.full((1, config.proxy_width or d), torch.nan, dtype=C.dtype)
    T = model.task_tokens if has_tasks else nothing
    T_proxy = nothing if model.shared_tokens is None else model.shared_tokens
    if config.proxies == "all":
        C_proxy, S_proxy = C, S
    else:
        phi_cat, phi_seq = model.cat_proxies, model.seq_proxies
        C_proxy = nothing if phi_cat is None else category_proxies(phi_cat, of_request, of_item)
        S_proxy = torch.cat([nothing if phi_seq is None else sequence_proxies(phi_seq, e) for e in histories] or [S])

    def norm(norms, kind, X):
        return norms[kind](X) if kind in norms else X * (torch.nan if config.proxy_norm else 1)

    def flat(kind, X):
        """Proxies as gates and heads see them."""
        if kind == "seq" and config.proxies == "all":
            parts = X.split([len(events) for events in histories])
            X = torch.stack([part.sum(0) / max(len(part), 1) for part in parts])
        return X.reshape(-1)

    C_proxy, S_proxy, T_proxy = (
        norm(model.norms, kind, X) for kind, X in (("cat", C_proxy), ("seq", S_proxy), ("shared", T_proxy))
    )
    for index, block in enumerate(model.blocks):
        is_fused = config.task_fusion == "early"
        reads_tasks = is_fused or (config.task_fusion == "late" and index == len(model.blocks) - 1)
        tokens = {"cat": C} | ({"seq": S} if histories else {}) | ({"task": T} if is_fused else {})

        def flow(target, Q, *sources, block=block, tokens=tokens):
            total = None
            for source in sources:
                if source in tokens:
                    name = f"{target}_from_{source}"
                    read = attend if config.attention == "softmax" else average
                    part = read(block.arrows[name], Q, tokens[source]) if name in block.arrows else Q * torch.nan
                    total = part if total is None else total + part
            return total

        def proxies(target, Q, *sources, block=block, flow=flow):
            out = flow(target, Q, *sources)
            if out is None:  # nobody to read
                return Q
            return norm(block.norms, target, out + Q if config.proxy_residual else out)

        def gate(kind, before, after, block=block):
            if config.gate_with == "none" or (kind == "shared" and config.num_shared_tasks == 0):
                return 1.0
            if kind not in block.gates:
                return torch.nan
            return torch.sigmoid(block.gates[kind].mlp(flat(kind, after if config.gate_with == "updated" else before)))

        new_C = proxies("cat", C_proxy, "seq", "task")  # eq. 6
        new_S = proxies("seq", S_proxy, "cat", "task")  # eq. 7
        new_T = proxies("shared", T_proxy, "cat", "seq") if reads_tasks else T_proxy  # eq. 8
        if reads_tasks:
            gated = flow("task", T, "cat", "seq") * gate("shared", T_proxy, new_T)  # eqs. 9 to 11
            T = T + gated if config.token_residual else gated
        keep = 1.0 if config.token_residual and config.gate_with != "none" else 0.0
        C = C * (keep + gate("cat", C_proxy, new_C))
        if histories:
            S = S * (keep + gate("seq", S_proxy, new_S))
        C_proxy, S_proxy, T_proxy = new_C, new_S, new_T
    if has_tasks:
        return heads_of(model.heads, T, flat("cat", C_proxy) if config.head_reads == "task+proxies" else None)
    read = torch.cat([flat("cat", C_proxy), *([flat("seq", S_proxy)] if histories else [])])
    return heads_of(model.heads, read.expand(len(layout.tasks), -1), None)
