"""What was delivered lately: whose request an event belongs to, and how predictions compare with what happened."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infnet.schema import Task
from infnet.serving.events import IMPRESSION, Event, Sale, Served
from infnet.serving.features import Recent
from infnet.serving.metrics import ServiceMetrics

__all__ = ["ExposureMemory"]


class _Delivered(NamedTuple):
    user: str
    places: dict[str, int]
    predictions: NDArray[np.float64]
    """(n, T)."""
    tasks: tuple[Task, ...]
    seen: set[str]
    """Items with an impression."""
    told: dict[tuple[str, str], float]
    """Labels by item and task, the first of each."""
    sales: Mapping[str, Sale]
    segment: str


class ExposureMemory:
    """The latest requests and what was predicted for the items delivered; safe to use from several threads.

    Args:
        metrics: Gets, per task and segment of calibration, the sum of predictions over impressions and the sum of the
            labels that followed. Of binary tasks the two agree in a calibrated model once their windows have closed.
        limit: Requests to remember.
    """

    def __init__(self, metrics: ServiceMetrics, limit: int = 20_000) -> None:
        self._metrics, self.limit = metrics, limit
        self._delivered: Recent[str, _Delivered] = Recent(limit)
        self._lock = threading.Lock()

    def served(
        self,
        request_id: str,
        user: str,
        items: Sequence[str],
        predictions: NDArray[np.float64],
        tasks: Sequence[Task],
        sales: Mapping[str, Sale] | None = None,
        segment: str = "",
    ) -> None:
        """Remember an answer.

        Args:
            request_id: Its request.
            user: Whose it was.
            items: Those delivered.
            predictions: (n, T) for them.
            tasks: Predicted.
            sales: What ads were sold for.
            segment: Whose calibration the predictions went by; empty if there is one for all.
        """
        places = {item: place for place, item in enumerate(items)}
        self._delivered.put(
            request_id, _Delivered(user, places, predictions, tuple(tasks), set(), {}, sales or {}, segment)
        )

    def asked(self, request_id: str, user: str) -> None:
        """Remember whose a request is that the model did not answer."""
        self._delivered.put(request_id, _Delivered(user, {}, np.zeros((0, 0)), (), set(), {}, {}, ""))

    def recall(self, requests: Sequence[Served], tasks: Sequence[Task]) -> None:
        """Remember answers of an earlier life: those of the same tasks, and those that the model did not give."""
        for served in requests:
            if not served.items:
                self.asked(served.request_id, served.user_id)
            elif all(task.name in served.predictions for task in tasks):
                predictions = np.array([served.predictions[task.name] for task in tasks], np.float64).T
                self.served(
                    served.request_id,
                    served.user_id,
                    served.items,
                    predictions,
                    tasks,
                    served.sales,
                    served.segment,
                )

    def user_of(self, request_id: str) -> str | None:
        """Whose request it was, if it is remembered."""
        found = self._delivered.get(request_id)
        return None if found is None else found.user

    def sales_of(self, request_id: str) -> Mapping[str, Sale] | None:
        """What a request sold, by item; None if it is not remembered."""
        found = self._delivered.get(request_id)
        return None if found is None else found.sales

    def happened(self, event: Event) -> None:
        """Count an event for calibration, if its request is remembered."""
        found, item = self._delivered.get(event.request_id), event.item_id
        place = None if found is None else found.places.get(item)
        if found is None or place is None or not event.value > 0:
            return
        with self._lock:
            if event.type == IMPRESSION and item not in found.seen:
                found.seen.add(item)
                for task, prediction in zip(found.tasks, found.predictions[place].tolist(), strict=True):
                    self._metrics.expected.labels(task.name, found.segment).inc(max(0.0, prediction))
                    self._metrics.observed.labels(task.name, found.segment).inc(found.told.get((item, task.name), 0.0))
            for task in found.tasks:
                if task.event_type == event.type and (item, task.name) not in found.told:
                    label = found.told[item, task.name] = 1.0 if task.kind == "binary" else event.value
                    self._metrics.observed.labels(task.name, found.segment).inc(label if item in found.seen else 0.0)
