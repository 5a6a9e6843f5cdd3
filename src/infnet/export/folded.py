"""INFNet behind tables: what is left to compute for a request (identities A to C).

The blocks are the model's own (:mod:`infnet.layers.flows`), over token sets of plain products. Of an item stand in
tables: its tokens, its part of phi_cat's first layer, and what the learned queries of the first block read from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from infnet.errors import SpecError
from infnet.export.networks import ServingNetwork
from infnet.layers.attention import CrossAttention, TokenSet, fold
from infnet.layers.flows import FlowBlock, FlowState
from infnet.layers.gate import apply_gate, repeated
from infnet.models.infnet import INFNet

__all__ = ["FoldedINFNet"]


class FoldedINFNet(ServingNetwork):
    """INFNet with the equations' attention, proxies and histories."""

    model: INFNet

    def __init__(self, model: INFNet, *, padded: bool) -> None:
        for setting, wanted in (("attention", "softmax"), ("proxies", "few"), ("history", "tokens")):
            if (found := getattr(model.config, setting)) != wanted:
                raise SpecError(
                    f"infnet with {setting} '{found}' is for ablations and cannot be exported; train it with '{wanted}'"
                )
        super().__init__(model, padded=padded)
        self._learned = {"task": model.task_tokens, "shared": model.shared_tokens}
        self._kinds = [*self._block(0).reads.get("cat", [])]
        self._is_learned = [self._learned.get(kind) is not None for kind in self._kinds]
        names = ["first"] if model.cat_proxies is not None else []
        self.item_tables = (*names, "reads", "mass") if any(self._is_learned) else tuple(names)

    def of_items(self, item: Tensor) -> dict[str, Tensor]:
        """Parts of phi_cat's first layer (J, 1, w), reads (J, q, d), and their softmaxes' log masses (J, 1, q)."""
        tables = {}
        if self.model.cat_proxies is not None:
            tables["first"] = self.model.cat_proxies.of_items(item)[:, None]
        if any(self._is_learned):
            logits = self._constants() @ item.mT  # (J, q, M_i)
            tables |= {"reads": logits.softmax(dim=-1) @ item, "mass": logits.logsumexp(dim=-1)[:, None]}
        return tables

    def forward(
        self,
        request: Tensor,
        fields: Tensor,
        own: Tensor,
        tables: Sequence[Tensor],
        events: Sequence[Tensor],
        present: Sequence[Tensor],
    ) -> Tensor:
        """Logits (R, N, T)."""
        model, of_item = self.model, dict(zip(self.item_tables, tables, strict=True))
        field_tokens = _Fields(request, fields)
        first: TokenSet = field_tokens
        if "reads" in of_item:
            first = _FirstFields(field_tokens, own, of_item["reads"], of_item["mass"].squeeze(2), self._is_learned)
        tokens: dict[str, TokenSet] = {"cat": first}
        queries: dict[str, Tensor] = {}
        if events:
            tokens["seq"] = _History(torch.cat([*events], dim=1), torch.cat([*present], dim=1) if self.padded else None)
            if model.seq_proxies is not None:  # eq. 4
                phi = model.seq_proxies.phi
                sums = [here[:, None] @ phi(each) for each, here in zip(events, present, strict=True)]
                queries["seq"] = (
                    torch.cat(sums, dim=1).unflatten(-1, (-1, model.seq_proxies.width)).flatten(1, 2)[:, None]
                )
        if model.cat_proxies is not None:  # eq. 2
            queries["cat"] = model.cat_proxies.of_candidates(of_item["first"].squeeze(2), request, own)
        if model.shared_tokens is not None:
            queries["shared"] = model.shared_tokens[None, None]
        queries |= {kind: norm(queries[kind]) for kind, norm in model.norms.items()}
        if model.task_tokens is not None:
            queries["task"] = model.task_tokens[None, None]
        state = FlowState(queries, gates={})
        for block in model.blocks:
            state = block(state, tokens, request.shape[0])
            tokens["cat"] = field_tokens
        return model.predict(state, fields.shape[1])

    def _block(self, index: int) -> FlowBlock:
        block = self.model.blocks[index]
        assert isinstance(block, FlowBlock)
        return block

    def _constants(self) -> Tensor:
        """(q, d) with which the first block's learned queries look at fields."""
        folded = []
        for kind, is_learned in zip(self._kinds, self._is_learned, strict=True):
            tokens = self._learned.get(kind)
            if is_learned and tokens is not None:
                arrow = self._block(0).arrows[f"{kind}_from_cat"]
                assert isinstance(arrow, CrossAttention)
                queries = tokens[None, None]
                if kind in self.model.norms:
                    queries = self.model.norms[kind](queries)
                folded += fold(queries, [arrow])
        return torch.cat(folded, dim=2)[0, 0]


class _History:
    """Events of each request (R, n, d); where some are padding, their presence (R, n)."""

    def __init__(self, tokens: Tensor, present: Tensor | None) -> None:
        self.tokens = tokens
        # A finite floor, not -inf: softmax over an empty row would be NaN. It reads its padding, which is zeros.
        self._bias = None if present is None else ((present - 1) * 1e30)[:, None]

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """(R or 1, a, q, d) each -> (R, a, q, d), in one product."""
        tokens, after = self.tokens, None
        if gate is not None and gate.shape[1] == 1:
            tokens = tokens * gate[:, 0]  # few events are cheaper to gate than many queries
        elif gate is not None:
            queries, after = [apply_gate(q, gate) for q in queries], gate
        rows = [_expanded(q, tokens.shape[0], 1).flatten(1, 2) for q in queries]
        logits = _joined(rows, dim=1) @ tokens.mT
        read = (logits if self._bias is None else logits + self._bias).softmax(dim=-1) @ tokens
        parts = _split(read, [part.shape[1] for part in rows], dim=1)
        found = [part.unflatten(1, q.shape[1:3]) for part, q in zip(parts, queries, strict=True)]
        return found if after is None else [apply_gate(part, after) for part in found]


class _Fields:
    """Tokens of each request (R, M_r, d), and of each candidate (R, N, M_i + M_c, d)."""

    def __init__(self, request: Tensor, candidate: Tensor) -> None:
        self.request, self.candidate = request, candidate

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """(R or 1, a, q, d) each -> (R, N, q, d)."""
        num_requests, num_candidates = self.candidate.shape[:2]
        sizes = [q.shape[2] for q in queries]
        stacked = _joined([_expanded(q, num_requests, num_candidates) for q in queries], dim=2)
        stacked = stacked if gate is None else apply_gate(stacked, gate)
        of_request = (stacked.flatten(1, 2) @ self.request.mT).unflatten(1, stacked.shape[1:3])
        logits = torch.cat([of_request, stacked @ self.candidate.mT], dim=-1)
        on_request, on_candidate = logits.softmax(dim=-1).split(
            [self.request.shape[1], self.candidate.shape[2]], dim=-1
        )
        of_request = (on_request.flatten(1, 2) @ self.request).unflatten(1, stacked.shape[1:3])
        read = of_request + on_candidate @ self.candidate
        return _split(read if gate is None else apply_gate(read, gate), sizes, dim=2)


class _FirstFields:
    """The same for the first block, whose learned queries have read the items beforehand.

    Args:
        fields: For queries that are not learned.
        own: (R, N, M_c, d), the part of the fields that is no item's.
        reads: (R, N, q, d) from the item's tokens.
        mass: (R, N, q), the logarithm of the softmax's mass there.
        is_learned: Of each kind of queries.
    """

    def __init__(self, fields: _Fields, own: Tensor, reads: Tensor, mass: Tensor, is_learned: Sequence[bool]) -> None:
        self.fields, self.own, self.reads, self.mass, self.is_learned = fields, own, reads, mass, is_learned

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """(R or 1, a, q, d) each -> (R, N, q, d)."""
        kinds = list(zip(queries, self.is_learned, strict=True))
        learned = self._merged([q for q, is_learned in kinds if is_learned])
        others = [q for q, is_learned in kinds if not is_learned]
        rest = self.fields.read(others) if others else []
        return [learned.pop(0) if is_learned else rest.pop(0) for is_learned in self.is_learned]

    def _merged(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """Reads of the request, of the item and of the candidate's own tokens, weighed by their softmaxes' masses."""
        constant, request = torch.cat([*queries], dim=2)[0, 0], self.fields.request  # (q, d), (R, M_r, d)
        num_queries, width = constant.shape
        logits = constant @ request.mT
        on_request = logits.softmax(dim=-1) @ request  # (R, q, d)
        of_request = logits.logsumexp(dim=-1)[:, None].expand(-1, self.mass.shape[1], -1)
        own = self.own.unbind(dim=2)
        masses = [of_request, self.mass, *(each @ constant.T for each in own)]  # (R, N, q) each
        top = reduce(torch.maximum, masses)
        parts = [(mass - top).exp() for mass in masses]
        total = sum(parts[1:], parts[0])
        shares = [part / total for part in parts]
        apart = torch.eye(num_queries)[:, :, None] * on_request[:, :, None]  # (R, q, q, d)
        read = shares[0] @ apart.flatten(2) + _spread(shares[1], width) * self.reads.flatten(2)
        for share, each in zip(shares[2:], own, strict=True):
            read = read + _spread(share, width) * repeated(each, num_queries)
        return _split(read.unflatten(-1, constant.shape), [q.shape[2] for q in queries], dim=2)


def _spread(values: Tensor, width: int) -> Tensor:
    """(..., q) -> (..., q * width), each value ``width`` times; as a product, like :func:`repeated`."""
    return values @ torch.eye(values.shape[-1]).repeat_interleave(width, dim=1)


# What follows leaves out what would change nothing, since a runtime copies for it all the same.


def _expanded(queries: Tensor, num_requests: int, num_candidates: int) -> Tensor:
    """(R or 1, a or 1, q, d) -> (R, a, q, d)."""
    sizes = [
        wanted if has == 1 and wanted != 1 else -1
        for has, wanted in zip(queries.shape[:2], (num_requests, num_candidates), strict=True)
    ]
    return queries if sizes == [-1, -1] else queries.expand(*sizes, -1, -1)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim=dim)


def _split(tensor: Tensor, sizes: Sequence[int], dim: int) -> list[Tensor]:
    return [tensor] if len(sizes) == 1 else list(tensor.split([*sizes], dim=dim))
