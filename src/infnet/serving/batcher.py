"""Threads that answer tickets: small requests that wait at the same moment are computed together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from infnet.errors import InfnetError, StoreError
from infnet.serving.service import RankingService
from infnet.serving.ticket import Ticket
from infnet.serving.wire import RankReply

__all__ = ["Batcher", "Outcome"]

_log = structlog.get_logger(__name__)
_SMALL, _TOGETHER = 64, 512
"""Requests of at most so many candidates are computed together, up to so many candidates in all."""

_MARGIN_S, _MARGIN_SHARE = 0.01, 0.1
"""Before its deadline a ticket is given up: so long, and no more than such a share of its time."""

Outcome = RankReply | InfnetError


class Batcher:
    """Answers tickets in a few threads, in the order they came.

    A free thread takes the first that waits, and with a small one all other small ones that wait behind it: nothing
    waits for a batch to fill unless ``wait_s`` says so.

    Args:
        service: Answers.
        workers: Threads.
        queue: Tickets that may wait.
        most: Requests that are computed together.
        wait_s: How long a small request waits for others to join it.
        shed_share: Share of a request's time that it may spend waiting, going by what requests took lately; one that
            would wait longer is not taken.
    """

    def __init__(
        self,
        service: RankingService,
        *,
        workers: int = 2,
        queue: int = 256,
        most: int = 32,
        wait_s: float = 0.0,
        shed_share: float = 0.5,
    ) -> None:
        self.service = service
        self._limit, self._most, self._wait_s, self._shed_share = queue, most, wait_s, shed_share
        self._waiting: deque[tuple[Ticket, Callable[[Outcome], None]]] = deque()
        self._condition = threading.Condition()
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"ranking-{index}", daemon=True) for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def has_room(self, budget_s: float, more: int = 1) -> bool:
        """Whether requests that come now are likely to be answered in time."""
        if len(self._waiting) + more > self._limit:
            return False
        before = self.num_waiting
        is_soon = self.service.costs.wait_s(before + more - 1, len(self._threads)) <= self._shed_share * budget_s
        if not is_soon and not before:
            self.service.costs.shed()
        return is_soon

    @property
    def num_waiting(self) -> int:
        """Tickets that wait; not those that were given up, which take no time."""
        with self._condition:
            return sum(not ticket.is_answered for ticket, _ in self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether every thread works."""
        return all(thread.is_alive() for thread in self._threads)

    async def answer(self, ticket: Ticket) -> Outcome:
        """The outcome of a ticket; when its deadline comes too near, the order by prior scores."""
        margin_s = min(_MARGIN_S, _MARGIN_SHARE * (ticket.deadline - ticket.arrived))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def resolve(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        def hand_over(outcome: Outcome) -> None:
            loop.call_soon_threadsafe(resolve, outcome)

        self._put(ticket, hand_over)
        try:
            return await asyncio.wait_for(future, max(0.0, ticket.deadline - margin_s - time.perf_counter()))
        except TimeoutError:
            decided = ticket.give_up()
            if decided is not None:
                return decided
            loop.run_in_executor(None, self.service.log_unranked, ticket)  # the disk may be why time is over
            return self.service.popular(ticket)

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    def _put(self, ticket: Ticket, resolve: Callable[[Outcome], None]) -> None:
        with self._condition:
            if self._is_closing:
                raise StoreError("the service is shutting down; ask another server")
            self._waiting.append((ticket, resolve))
            self._condition.notify()

    def _work(self) -> None:
        while taken := self._take():
            tickets = [ticket for ticket, _ in taken]
            for (_, resolve), outcome in zip(taken, self._outcomes(tickets), strict=True):
                resolve(outcome)

    def _outcomes(self, tickets: Sequence[Ticket]) -> Sequence[Outcome]:
        try:
            return self.service.answer(tickets)
        except Exception:  # a thread that ended would leave the service without answers
            _log.exception("ranking_failed", request_ids=[ticket.request_id for ticket in tickets])
            return [StoreError("internal error")] * len(tickets)

    def _take(self) -> list[tuple[Ticket, Callable[[Outcome], None]]]:
        """The next to answer; nothing once closed and empty."""
        with self._condition:
            while True:
                while not self._waiting:
                    if self._is_closing:
                        return []
                    self._condition.wait()
                first = self._waiting.popleft()
                if not first[0].is_answered:
                    break
            taken = [first]
            if len(first[0].items) > _SMALL:
                return taken
            if self._wait_s and not self._is_closing:
                self._condition.wait_for(lambda: len(self._waiting) >= self._most or self._is_closing, self._wait_s)
            largest, passed = len(first[0].items), []
            while self._waiting and len(taken) < self._most:
                entry = self._waiting.popleft()
                size = max(largest, len(entry[0].items))
                if entry[0].is_answered:
                    continue
                if size > _SMALL or size * (len(taken) + 1) > _TOGETHER:
                    passed.append(entry)
                    break
                taken.append(entry)
                largest = size
            self._waiting.extendleft(reversed(passed))
            return taken
