"""Reads of histories whose behaviours are scaled and shifted, each by vectors of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from infnet.layers.events import PaddedHistory

__all__ = ["BehaviourTokens"]


class BehaviourTokens:
    """A request's events, those of behaviour f as x * A_f + B_f, read without being rewritten.

    logits = (q * A_f) x^t + q B_f^t        output = sum over f of (weights_f x) * A_f + (sum of weights_f) B_f

    Where one softmax runs over several behaviours, q B_f^t does not drop out of it. Nothing present reads zeros.
    """

    def __init__(self, history: PaddedHistory) -> None:
        self._num_requests = len(history.present)
        self._lengths = history.lengths
        self._device = history.tokens.device.type
        tokens = history.tokens.float() if torch.is_autocast_enabled(self._device) else history.tokens
        self._tokens = tokens.split(self._lengths, dim=1)
        self._bias, self._here = [], []
        for present in history.present.split(self._lengths, dim=1):
            # A finite floor, not -inf: softmax over an empty row would be NaN. It reads its padding, times zero.
            bias = torch.zeros_like(present, dtype=tokens.dtype).masked_fill_(~present, torch.finfo(tokens.dtype).min)
            self._bias.append(bias[:, None])
            self._here.append(present.any(dim=1)[:, None, None, None].to(tokens.dtype))
        self._anywhere = torch.stack(self._here).amax(dim=0)

    def read(
        self, queries: Sequence[Tensor], own: Sequence[Tensor], affine: tuple[Tensor, Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Softmax averages; scale and key projection are in the queries already.

        Args:
            queries: (R, a, q, d) each, of all events.
            own: (R, a, q, d) for each behaviour, of its events alone; or none at all.
            affine: A and B (R, a', F, d); None for one and zero.

        Returns:
            What each of ``queries`` and of ``own`` read, for N candidates if a or a' is N.
        """
        if torch.is_autocast_enabled(self._device):  # a softmax over hundreds of logits wants its digits
            queries, own = ([q.float() for q in each] for each in (queries, own))
            affine = None if affine is None else (affine[0].float(), affine[1].float())
        with torch.autocast(self._device, enabled=False):
            return self._read(queries, own, affine)

    def _read(
        self, queries: Sequence[Tensor], own: Sequence[Tensor], affine: tuple[Tensor, Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        scaled, logits = [], []
        for f, (tokens, bias) in enumerate(zip(self._tokens, self._bias, strict=True)):
            scaled = wanted = [*queries, *own[f : f + 1]]
            if affine is not None:
                A, B = (vectors[:, :, f, None] for vectors in affine)
                scaled = [q * A for q in wanted]
            logits.append(torch.bmm(self._rows(scaled), tokens.mT).add_(bias))
            if affine is not None:
                logits[f].add_(self._rows([(q * B).sum(dim=-1, keepdim=True) for q in wanted]))
        shapes = [q.shape[1:3] for q in scaled]
        num_together = sum(shape.numel() for shape in shapes[: len(queries)])
        together = torch.cat([rows[:, :num_together] for rows in logits], dim=-1).softmax(dim=-1)
        found = []
        for f, shares in enumerate(together.split(self._lengths, dim=-1)):
            weights = torch.cat([shares, logits[f][:, num_together:].softmax(dim=-1)], dim=1)
            read = _split(torch.bmm(weights, self._tokens[f]), shapes)
            if affine is not None:
                A, B = (vectors[:, :, f, None] for vectors in affine)
                masses = _split(weights.sum(dim=-1, keepdim=True), shapes)
                read = [part * A + mass * B for part, mass in zip(read, masses, strict=True)]
            found.append(read)
        parts = zip(*(read[: len(queries)] for read in found), strict=True)
        of_own = [read[-1] * here for read, here in zip(found, self._here, strict=True)] if own else []
        return [reduce(torch.add, each) * self._anywhere for each in parts], of_own

    def _rows(self, queries: Sequence[Tensor]) -> Tensor:
        """(R, a, q, d) each -> (R, sum of a * q, d)."""
        return torch.cat([q.expand(self._num_requests, -1, -1, -1).flatten(1, 2) for q in queries], dim=1)


def _split(rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The way back."""
    parts = rows.split([shape.numel() for shape in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
