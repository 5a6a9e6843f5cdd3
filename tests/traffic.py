"""Users who ask a running service for pages and tell it what they saw, until they are stopped."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from infnet.export.bundle import Bundle
from served import Service

__all__ = ["Answer", "Traffic"]


@dataclass(frozen=True)
class Answer:
    """What a request for a page came back with."""

    at: float
    """When it was sent, by ``time.monotonic``."""
    status: int
    seconds: float
    degraded: tuple[str, ...] = ()
    version: str | None = None


@dataclass
class Traffic:
    """Threads that browse; a context manager.

    Every page is followed by an impression of each of its items, one of which is clicked. What could not be sent, or
    came back with another status than 200, was not acknowledged.
    """

    service: Service
    bundle: Bundle
    threads: int = 2
    pause_s: float = 0.01
    """Between a user's pages."""
    answers: list[Answer] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    """Ids of the events that were accepted."""
    event_statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    """Requests that got no answer at all."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._users = self.bundle.users.keys(np.arange(1, len(self.bundle.users) + 1))
        self._items = self.bundle.items.keys(np.arange(1, len(self.bundle.items) + 1))
        self._threads = [threading.Thread(target=self._browse, args=(seed,)) for seed in range(self.threads)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int, within_s: float = 30.0) -> None:
        """Until so many more pages were delivered."""
        wanted = self.num_good + more
        self.wait_until(lambda: self.num_good >= wanted, within_s)

    @staticmethod
    def wait_until(happened: Any, within_s: float = 30.0) -> None:
        """Until something is the case."""
        end = time.monotonic() + within_s
        while not happened():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)

    @property
    def num_good(self) -> int:
        """Pages that were delivered."""
        return sum(answer.status == 200 for answer in self.answers)

    def statuses(self) -> Counter[int]:
        """How often each was answered to requests for pages."""
        return Counter(answer.status for answer in self.answers)

    def _browse(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.service.port}", timeout=10)
        with client:
            while not self._stop.is_set():
                try:
                    self._page(client, rng)
                except httpx.TransportError:
                    self.unanswered += 1
                    time.sleep(0.05)
                self._stop.wait(self.pause_s)

    def _page(self, client: httpx.Client, rng: np.random.Generator) -> None:
        request_id = f"page-{next(self._numbers)}"
        items = [self._items[i] for i in rng.choice(len(self._items), min(20, len(self._items)), replace=False)]
        body = {"request_id": request_id, "user_id": str(rng.choice(self._users)), "item_ids": items, "limit": 5}
        began = time.monotonic()
        reply = client.post("/v1/rank", json=body)
        seconds = time.monotonic() - began
        if reply.status_code != 200:
            self.answers.append(Answer(began, reply.status_code, seconds))
            return
        page = reply.json()
        told = (tuple(page["degraded"]), page["model_version"])
        self.answers.append(Answer(began, 200, seconds, *told))
        shown = [item["item_id"] for item in page["items"]]
        events = [{"type": "impression", "item_id": item} for item in shown]
        events.append({"type": "click", "item_id": str(rng.choice(shown))})
        for event in events:
            event |= {"request_id": request_id, "event_id": f"{request_id}/{event['item_id']}/{event['type']}"}
        answer = client.post("/v1/events", json=events)
        self.event_statuses[answer.status_code] += 1
        if answer.status_code == 200:
            assert answer.json()["accepted"] == len(events)
            self.acknowledged += [event["event_id"] for event in events]
