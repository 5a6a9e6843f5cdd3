"""The ranker: a bundle that answers requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infnet.errors import SpecError, did_you_mean
from infnet.export.bundle import BackendName, Bundle
from infnet.export.engine import EncodedRequest
from infnet.export.keys import Key
from infnet.models.base import predictions
from infnet.serving.encoding import RankRequest, RequestEncoder, UserState

__all__ = ["RankedItem", "Ranker"]


@dataclass(frozen=True)
class RankedItem:
    """One place of an order."""

    item_id: str
    score: float
    tasks: dict[str, float]


class Ranker:
    """Scores items for users; every method is safe to call from several threads.

    Attributes:
        bundle: What it answers from.
        encoder: Raw values to the bundle's numbering.
        tasks: Names of what it predicts, in the order of its scores.
    """

    def __init__(self, bundle: Bundle, *, backend: BackendName | None = None, threads: int = 1) -> None:
        self.bundle = bundle
        self.encoder = RequestEncoder(bundle)
        self.tasks = bundle.layout.task_names
        self._engine = bundle.engine(backend, threads=threads)
        self._segments = _segments(bundle)

    @classmethod
    def load(cls, path: Path | str, *, backend: BackendName | None = None, threads: int = 1) -> Ranker:
        """Open a bundle, check it, and make it ready.

        Args:
            path: A directory that 'infnet export' wrote.
            backend: ``onnx`` or ``torch``; the one that was faster when the bundle was made by default.
            threads: CPU threads of one request, in ONNX Runtime.

        Raises:
            ArtifactError: It is no bundle, is damaged, or another version of this package wrote it.
            SpecError: ONNX Runtime is not installed.
        """
        return cls(Bundle.open(path), backend=backend, threads=threads)

    def score(
        self,
        user: Key | UserState,
        candidates: Sequence[Key],
        *,
        context: Mapping[str, Any] | None = None,
        candidate_values: Mapping[str, Sequence[Any]] | None = None,
        time_ms: int | None = None,
    ) -> NDArray[np.float64]:
        """What every task predicts for every candidate (INFNet eq. 12): (N, T), in the candidates' order.

        Probabilities, and of a regression task values in its label's unit, by the bundle's calibration if it has one.
        See :class:`RankRequest` for the arguments.

        Raises:
            DataError: A feature is unknown, or its value cannot be read.
        """
        return self.score_many([RankRequest(user, candidates, context or {}, candidate_values or {}, time_ms)])[0]

    def score_many(self, requests: Sequence[RankRequest]) -> list[NDArray[np.float64]]:
        """The same for several requests, computed together where that is faster: (N, T) each."""
        return self.score_encoded([self.encoder.encode(request) for request in requests])

    def score_encoded(self, requests: Sequence[EncodedRequest]) -> list[NDArray[np.float64]]:
        """The same for requests that :attr:`encoder` gave."""
        layout, calibration = self.bundle.layout, self.bundle.calibration
        found = [predictions(torch.from_numpy(z), layout.tasks).numpy() for z in self._engine.logits(requests)]
        if calibration is None:
            return found
        return [calibration.apply(each, layout, r) for each, r in zip(found, requests, strict=True)]

    def segment(self, request: EncodedRequest) -> str:
        """Whose calibration a request's predictions go by: the value of the feature that tells segments apart.

        ``other`` where the value has no curve of its own; empty if the bundle has none of segments.
        """
        if not self._segments:
            return ""
        calibration = self.bundle.calibration
        assert calibration is not None
        return self._segments.get(calibration.segment(self.bundle.layout, request) or "", "other")

    def rank(self, request: RankRequest, by: str | None = None) -> list[RankedItem]:
        """The candidates, best first; equal ones in the order they came.

        Args:
            request: Whom to rank what for.
            by: The task whose prediction is the score; the first by default.

        Raises:
            SpecError: There is no such task.
            DataError: A feature is unknown, or its value cannot be read.
        """
        by = by or self.tasks[0]
        if by not in self.tasks:
            raise SpecError(f"no task is called '{by}'{did_you_mean(by, self.tasks)}")
        scores = self.score_many([request])[0]
        column = scores[:, self.tasks.index(by)]
        return [
            RankedItem(
                str(request.candidates[i]), float(column[i]), dict(zip(self.tasks, scores[i].tolist(), strict=True))
            )
            for i in np.argsort(-column, kind="stable")
        ]


def _segments(bundle: Bundle) -> dict[str, str]:
    """By id of a segment that has calibration curves of its own, its value."""
    calibration = bundle.calibration
    if calibration is None or calibration.settings.by is None:
        return {}
    ids = sorted({int(each) for curves in calibration.tasks.values() for each in curves.segments})
    return dict(zip(map(str, ids), bundle.encoder.text(calibration.settings.by, ids), strict=True))
