"""The closed loop: users come, the service fills their pages, what they do is told to it, and they return or not.

All visits of one clock hour are asked for at once, since no user comes twice within it; what came of them is told
before the next hour begins, so that the service knows each user's past as it would by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from infnet.data.sources.exposure import DAY_MS, HOUR_MS, TABS, Policy, Visits, session_lengths
from infnet.data.sources.presence import first_day, next_day
from infnet.data.sources.world import World
from infnet.errors import ServiceError
from infnet.serving.wire import RankBody, RankReply
from infnet.simulation.client import ServiceClient
from infnet.simulation.ledger import Ledger
from infnet.simulation.pages import Pages
from infnet.simulation.settings import SimulationSettings

__all__ = ["Simulator", "Speed"]

_EVENTS = 1000
"""That travel together."""
_T = TypeVar("_T")


@dataclass
class Speed:
    """What the service did, and how fast."""

    requests: int = 0
    events: int = 0
    ranking_s: float = 0.0
    """Time in which requests were under way."""
    telling_s: float = 0.0
    """Time in which events were under way."""
    degraded: int = 0
    """Answers with something left out."""
    latencies_ms: dict[str, list[float]] = field(default_factory=dict)
    """Of requests that travelled alone, by variant, as the client saw them."""


class Simulator:
    """Users of a world in front of a service that replays (``infnet serve --replay``).

    Args:
        world: Made the log that the service's model was trained on; its days go on.
        client: Of the service.
        settings: See :class:`SimulationSettings`.
        experiment: Name of the experiment whose variants the ledger tells.
        on_day: Called after each day with the days finished, and when the last one of them ends in ms since 1970.

    Raises:
        ServiceError: The service does not answer.
    """

    def __init__(
        self,
        world: World,
        client: ServiceClient,
        settings: SimulationSettings,
        *,
        experiment: str | None = None,
        on_day: Callable[[int, int], None] = lambda done, ends_ms: None,
    ) -> None:
        num = min(settings.num_users or world.config.num_users, world.config.num_users)
        self.world, self._client, self._settings = world, client, settings
        self._experiment, self._on_day = experiment, on_day
        self._types = frozenset(client.model().event_types)
        self.ledger, self.speed = Ledger(np.arange(num)), Speed()

    def run(self) -> None:
        """Simulate all days.

        Raises:
            ServiceError: The service fails for long, or refuses what it is told.
        """
        seed, users, start = self._settings.seed, self.ledger.users, self.world.config.num_days
        here = first_day(self.world, users, np.random.default_rng([seed, 30]))
        for done in range(self._settings.num_days):
            rng = np.random.default_rng([seed, 31, done])
            if here.any():
                self._one_day(start + done, users[here], rng)
            tomorrow, p_return = next_day(self.world, users, here, self.ledger.joy(here), rng)
            self.ledger.end_day(start + done, here, p_return)
            here = tomorrow
            self._on_day(done + 1, self.world.first_ms() + (start + done + 1) * DAY_MS)

    def _one_day(self, day: int, here: NDArray[np.integer], rng: np.random.Generator) -> None:
        world, config = self.world, self.world.config
        policy = Policy(world.users, world.items, day)
        visits = policy.visits(here, config.sessions_per_day, rng)
        lengths = session_lengths(len(visits), config.session_length, rng)
        candidates = policy.candidates(visits, self._settings.num_candidates, rng)
        seen: dict[int, set[int]] = {}
        for hour in range(24):
            at = np.flatnonzero(visits.hour == 24 * day + hour)
            if len(at):
                those = Visits(visits.user[at], visits.hour[at], visits.tab[at])
                self._one_hour(those, lengths[at], candidates[at], seen, rng)

    def _one_hour(
        self,
        visits: Visits,
        lengths: NDArray[np.int64],
        candidates: NDArray[np.int64],
        seen: dict[int, set[int]],
        rng: np.random.Generator,
    ) -> None:
        users, hours, tabs = visits.user.tolist(), visits.hour.tolist(), TABS[visits.tab].tolist()
        requests = []
        for place, user in enumerate(users):
            known = seen.setdefault(user, set())
            items = [item for item in dict.fromkeys(candidates[place].tolist()) if item not in known]
            requests.append(
                RankBody(
                    user_id=user,
                    request_id=f"{hours[place]}-{user}",
                    context={"tab": tabs[place]},
                    packed_item_ids=np.array(items, "<i8").tobytes(),
                    limit=int(lengths[place]),
                    time_ms=self.world.first_ms() + hours[place] * HOUR_MS,
                )
            )
        replies = self._rank(requests)
        shown = [[int(item.item_id) for item in reply.items] for reply in replies]
        for user, page, reply in zip(users, shown, replies, strict=True):
            seen[user].update(page)
            self.speed.degraded += bool(reply.degraded)
            if self._experiment in reply.experiments:
                self.ledger.assigned(user, reply.experiments[self._experiment])
        pages = Pages.seen(self.world, visits, [reply.request_id for reply in replies], shown, rng)
        self.ledger.add(pages)
        self._tell(pages)

    def _rank(self, requests: Sequence[RankBody]) -> list[RankReply]:
        alone = requests[: self._settings.num_timed]
        replies = []
        for request in alone:
            reply, seconds = self._client.rank_one(request)
            replies.append(reply)
            variant = reply.experiments.get(self._experiment or "", "all")
            self.speed.latencies_ms.setdefault(variant, []).append(1000 * seconds)
        began = time.perf_counter()
        replies += self._client.rank(_parted(requests[len(alone) :], self._settings.batch))
        self.speed.ranking_s += time.perf_counter() - began
        self.speed.requests += len(requests) - len(alone)
        return replies

    def _tell(self, pages: Pages) -> None:
        events = pages.events(self._types)
        began = time.perf_counter()
        accepted = self._client.tell(_parted(events, _EVENTS))
        self.speed.telling_s += time.perf_counter() - began
        self.speed.events += len(events)
        if accepted != len(events):
            raise ServiceError(
                f"{self._client.url}: has had {len(events) - accepted} of {len(events)} events before; simulate with "
                "an event log and a feature store of its own"
            )


def _parted(whole: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [whole[i : i + size] for i in range(0, len(whole), size)]
