"""INFNet's equations written out in PyTorch, batch by batch: what an implementation straight from the paper costs.

Every candidate is a row of its own; keys and values of all tokens are projected for every arrow of every block, gated
tokens are stored, and each arrow is one attention call. Same parameters as the module it wraps, same outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.data.batch import RequestBatch
from infnet.layers.attention import CrossAttention
from infnet.layers.gate import ProxyGate
from infnet.models import INFNet

__all__ = ["WrittenOut"]

COMPLETE = {"cat": ("task", "seq", "shared"), "seq": ("task", "cat", "shared"), "task": ("cat", "seq")}
"""Who reads which tokens in every block (eqs. 6 to 9)."""
MASKED = torch.finfo(torch.float32).min


class WrittenOut(nn.Module):
    """The same function as ``model``, computed as the paper prints it.

    Args:
        model: Gives the parameters, and everything from a batch to tokens.
        is_complete: Compute eqs. 6 to 11 in every block; else leave out what nobody reads (identity C), as ``model``
            does. Arrows and gates that ``model`` has no parameters for get random ones: they change nothing.
    """

    def __init__(self, model: INFNet, *, is_complete: bool = False) -> None:
        super().__init__()
        self.model = model
        self.arrows, self.gates = nn.ModuleList(), nn.ModuleList()
        config, d = model.config, model.config.width
        wide = config.proxy_width or d
        counts = {"cat": config.num_cat_proxies, "shared": config.num_shared_tasks}
        counts["seq"] = config.num_seq_proxies * len(model.layout.behaviours)
        for block in model.blocks:
            arrows, gates = dict(block.arrows.items()), dict(block.gates.items())
            if is_complete:
                for source, targets in COMPLETE.items():
                    for target in targets:
                        token_width = wide if source == "task" else d
                        arrows.setdefault(
                            f"{target}_from_{source}", CrossAttention(wide, config.num_heads, token_width)
                        )
                for kind, width in (("cat", d), ("seq", d), ("shared", wide)):
                    gates.setdefault(kind, ProxyGate(counts[kind], wide, config.gate_hidden, width))
            self.arrows.append(nn.ModuleDict(arrows))
            self.gates.append(nn.ModuleDict(gates))

    @property
    def embedding(self) -> nn.Module:
        """The table, for an optimiser."""
        return self.model.embedding

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits (R, N, T)."""
        model = self.model
        R, N = batch.present.shape
        embedded = model.inputs.rows(model.embedding, batch)
        request = model.inputs.request(embedded, batch.user, batch.context).repeat_interleave(N, dim=0)
        item = model.inputs.item(embedded, batch.item)[batch.candidate_item.long().flatten()]
        C = torch.cat([request, item, model.inputs.candidate(embedded, batch.candidate)], dim=1)  # (B, M, d)
        present = batch.history_present.repeat_interleave(N, dim=0)
        S = self._events(embedded, batch).repeat_interleave(N, dim=0)  # (B, L, d)
        lengths = [b.length for b in model.layout.behaviours]
        return self.equations(C, S.split(lengths, dim=1), present.split(lengths, dim=1)).unflatten(0, (R, N))

    def equations(self, C: Tensor, histories: Sequence[Tensor], presence: Sequence[Tensor]) -> Tensor:
        """Eqs. 2 to 12: C (B, M, d), each behaviour's S (B, n_a, d) and presence (B, n_a) -> logits (B, T)."""
        model, config = self.model, self.model.config
        B, d = C.shape[0], config.proxy_width or config.width
        S, present = torch.cat([*histories], dim=1), torch.cat([*presence], dim=1)
        num_request = model.inputs.num_tokens[0]
        phi_cat = model.cat_proxies
        of_item = torch.cat([phi_cat.item, phi_cat.own], dim=1)
        hidden = len(phi_cat.request)
        weight = torch.cat([phi_cat.request, of_item[:hidden]], dim=1)
        cat = phi_cat.rest(F.linear(C.flatten(1), weight, phi_cat.bias))
        if config.cat_skip:
            cat = cat + F.linear(C[:, num_request:].flatten(1), of_item[hidden:])
        state = {
            "cat": cat.unflatten(-1, (config.num_cat_proxies, d)),  # eq. 2
            "shared": model.shared_tokens.expand(B, -1, -1),
            "task": model.task_tokens.expand(B, -1, -1),
        }
        if model.seq_proxies is not None:  # eq. 4
            pairs = zip(histories, presence, strict=True)
            sums = [(model.seq_proxies.phi(tokens) * here[..., None]).sum(dim=1) for tokens, here in pairs]
            state["seq"] = torch.cat(sums, dim=1).unflatten(-1, (-1, d))
        if config.proxy_norm:
            state |= {name: model.norms[name](state[name]) for name in model.norms}
        for index in range(len(model.blocks)):
            state, C, S = self._block(index, state, C, S, present)
        shared = state["cat"].flatten(1) if config.head_reads == "task+proxies" else None
        logits: Tensor = model.heads(state["task"], shared)
        return logits

    def _events(self, embedded: Tensor, batch: RequestBatch) -> Tensor:
        """Sequence tokens (R, L, d), combined from the fields of every event."""
        parts, at = [], 0
        for behaviour, project in zip(self.model.layout.behaviours, self.model.inputs.events.projections, strict=True):
            index = batch.event_ids[batch.history[:, at : at + behaviour.length].long()].long()
            fields = embedded[index]  # (R, n, fields, d)
            is_concat = self.model.config.event_combine == "concat"
            parts.append(project(fields.flatten(2)) if is_concat else fields.sum(dim=2))
            at += behaviour.length
        return torch.cat(parts, dim=1)

    def _block(
        self, index: int, state: dict[str, Tensor], C: Tensor, S: Tensor, present: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        config, arrows, gates = self.model.config, self.arrows[index], self.gates[index]
        norms = self.model.blocks[index].norms
        tokens = {"cat": (C, None), "seq": (S, present), "task": (state["task"], None)}
        flows: dict[str, Tensor] = {}
        for name, arrow in arrows.items():  # eqs. 6 to 9, one arrow at a time
            target, source = name.split("_from_")
            read = attend(arrow, state[target], *tokens[source])
            flows[target] = flows[target] + read if target in flows else read
        after = dict(state)
        for name, flow in flows.items():
            if name == "task":
                continue
            out = flow + state[name] if config.proxy_residual else flow
            after[name] = norms[name](out) if name in norms else out
        gating = state if config.gate_with == "input" else after

        def gated(name: str, values: Tensor) -> Tensor:  # eq. 10
            return values * gates[name].mlp(gating[name].flatten(1)).sigmoid()[:, None]

        task = gated("shared", flows["task"])
        after["task"] = state["task"] + task if config.token_residual else task
        if "cat" in gates:  # eq. 11
            C = C + gated("cat", C) if config.token_residual else gated("cat", C)
        if "seq" in gates:
            S = S + gated("seq", S) if config.token_residual else gated("seq", S)
        return after, C, S


def attend(arrow: nn.Module, queries: Tensor, tokens: Tensor, present: Tensor | None) -> Tensor:
    """CA(Q, X, X): queries (B, q, d), tokens (B, n, d) projected to keys and values -> (B, q, d)."""
    heads = []
    for query, key, value in zip(arrow.query, arrow.key, arrow.value, strict=True):
        logits = (queries @ query) @ (tokens @ key).mT / math.sqrt(query.shape[-1])
        if present is not None:
            logits = logits.masked_fill(~present[:, None], MASKED)
        weights = logits.softmax(dim=-1)
        if present is not None:
            weights = weights.masked_fill(~present[:, None], 0.0)
        heads.append(weights @ (tokens @ value))
    return torch.cat(heads, dim=-1)
