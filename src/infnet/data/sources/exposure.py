"""When users of the synthetic world come, and what the policy that made the log showed them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infnet.data.sources.latent import Floats, Ints, Items, Users

__all__ = [
    "DAY_MS",
    "HOUR_MS",
    "TABS",
    "Impressions",
    "Policy",
    "Visits",
    "interest_strengths",
    "row_times",
    "session_lengths",
]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
TABS: NDArray[np.int8] = np.array([1, 0, 4, 6, 2], np.int8)
"""The tabs users come through, as KuaiRand numbers them; most used first."""
_TAB_SHARES = np.array([0.66, 0.14, 0.09, 0.07, 0.04])
_INTEREST_SHARE = 0.4
_MAX_LENGTH = 40
# When each chronotype comes: share of a day's sessions by hour; one row each, its peak at 8, 13, 18 and 22 o'clock.
_PEAKS = np.array([8, 13, 18, 22])
_RHYTHM = np.exp(1.5 * np.cos(2 * np.pi * (np.arange(24) - _PEAKS[:, None]) / 24))
_RHYTHM /= _RHYTHM.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Visits:
    """V times a user came: each (V,). Rows of a log refer to visits by position."""

    user: Ints
    hour: Ints
    """Clock hours since the first day's midnight (UTC)."""
    tab: Ints
    """Position in :data:`TABS`."""

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Impressions:
    """n items shown, visit by visit."""

    visits: Visits
    row: Ints
    """(n,) visit of each impression, ascending."""
    item: Ints
    """(n,)."""
    position: Ints
    """(n,) in its visit, from 1."""
    is_random: NDArray[np.bool_]
    """(n,) drawn from all uploaded items alike, not by the policy."""


def interest_strengths(users: Users, visits: Visits) -> Floats:
    """(V, K): strength of each interest of each visiting user at that hour, which drifts."""
    turns = visits.hour[:, None, None].astype(np.float32) / users.period_h[visits.user] + users.phase[visits.user]
    swing = np.cos(np.float32(2 * np.pi) * turns)
    slow, fast = np.float32(0.6 * users.drift), np.float32(0.4 * users.drift)
    return users.strength[visits.user] * (1 + slow * swing[..., 0] + fast * swing[..., 1])


def _draw_visits(users: Users, here: Ints, day: int, per_day: float, rng: np.random.Generator) -> Visits:
    """One day's visits of the users ``here``: at most one per clock hour, at least one each; by user, then hour."""
    rate = np.minimum(per_day * users.activity[here], 12.0)[:, None] * _RHYTHM[users.chronotype[here]]
    # Odds of the draw against the rate: below 1 is a visit, and the smallest of a user's is one in any case.
    odds = rng.random(rate.shape) / -np.expm1(-rate)
    comes = odds < 1
    comes[np.arange(len(here)), odds.argmin(axis=1)] = True
    who, hour = np.nonzero(comes)
    user = here[who]
    # Most follow the shares of the tabs; a user's own taste moves the draw.
    draw = (0.5 * rng.random(len(user), dtype=np.float32) + 0.5 * users.tab_taste[user]).astype(np.float64)
    spread = np.where(draw < 0.5, 2 * draw**2, 1 - 2 * (1 - draw) ** 2)  # of two uniforms' mean, so uniform itself
    tab = np.minimum(np.searchsorted(np.cumsum(_TAB_SHARES), spread), len(TABS) - 1)
    return Visits(user, hour + 24 * day, tab)


def session_lengths(num: int, mean: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """(num,) impressions per session, geometric, 40 at most."""
    return np.minimum(rng.geometric(1.0 / mean, num), _MAX_LENGTH)


def row_times(shown: Impressions, play_ms: Ints, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n,) ms since the first midnight: each impression follows when the one before was played; all within the hour."""
    visits, row = shown.visits, shown.row
    start = rng.integers(0, HOUR_MS // 3, len(visits))
    gap = play_ms + 400 + (1500 * rng.standard_exponential(len(row), dtype=np.float32)).astype(np.int64)
    before = np.cumsum(gap) - gap
    elapsed = before - before[np.searchsorted(row, row)]
    total = np.zeros(len(visits), np.int64)
    np.maximum.at(total, row, elapsed)
    # The few sessions that would run past the hour are told faster.
    pace = np.minimum(1.0, (HOUR_MS - 1 - start) / np.maximum(total, 1))
    return np.asarray(visits.hour[row] * HOUR_MS + start[row] + np.floor(elapsed * pace[row]).astype(np.int64))


class Policy:
    """The recommender that made the log, on one day: popular and fresh items, 40% of them from the user's topics."""

    def __init__(self, users: Users, items: Items, day: int) -> None:
        self._users, self._day = users, day
        self._by_topic = np.argsort(items.topics[:, 0], kind="stable")
        age = (day - items.upload_day).astype(np.float64)
        weight = np.where(age >= 0, items.popularity * np.exp(-np.maximum(age, 0) / 20), 0.0)
        self._uploaded = np.flatnonzero(age >= 0)
        self._cumulative = np.cumsum(weight[self._by_topic])
        topics = items.topics[self._by_topic, 0]
        num_topics = int(topics.max()) + 1 if len(topics) else 0
        edge = np.concatenate([[0.0], self._cumulative])
        self._low = edge[np.searchsorted(topics, np.arange(num_topics), side="left")]
        self._high = edge[np.searchsorted(topics, np.arange(num_topics), side="right")]

    def visits(self, here: Ints, per_day: float, rng: np.random.Generator) -> Visits:
        """The day's visits of the users ``here``: at most one per clock hour, at least one each; by user, then hour.

        Args:
            per_day: Mean sessions of an average user.
        """
        return _draw_visits(self._users, here, self._day, per_day, rng)

    def candidates(self, visits: Visits, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(V, num) items that might be shown in each visit, drawn as those of :meth:`show`; some more than once."""
        row = np.repeat(np.arange(len(visits)), num)
        return self._choose(visits, row, 0.0, rng)[0].reshape(len(visits), num)

    def show(
        self, here: Ints, per_day: float, length: float, random_share: float, rng: np.random.Generator
    ) -> Impressions:
        """The day of the users ``here``, by user, then time.

        Args:
            per_day: Mean sessions of an average user.
            length: Mean impressions per session, less the few items that a user had seen that day.
            random_share: Of impressions whose item is drawn from all uploaded ones alike.
        """
        visits = self.visits(here, per_day, rng)
        lengths = session_lengths(len(visits), length, rng)
        row = np.repeat(np.arange(len(visits)), lengths)
        item, is_random = self._choose(visits, row, random_share, rng)
        seen_once = np.unique(visits.user[row] * np.int64(len(self._by_topic)) + item, return_index=True)[1]
        seen_once.sort()
        row, item, is_random = row[seen_once], item[seen_once], is_random[seen_once]
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        visits = Visits(visits.user[row[starts]], visits.hour[row[starts]], visits.tab[row[starts]])
        row = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(row)))
        return Impressions(visits, row, item, np.arange(len(row)) - starts[row] + 1, is_random)

    def _choose(
        self, visits: Visits, row: Ints, random_share: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        count = len(row)
        liked = np.maximum(interest_strengths(self._users, visits), 0.0)
        share = np.cumsum(liked, axis=1)
        total = share[:, -1].copy()
        draw = rng.random(count, dtype=np.float32)
        # One draw decides both whether the item is from the user's topics, and from which.
        target = (draw / np.float32(_INTEREST_SHARE) * total[row])[:, None]
        which = np.minimum((share[row] <= target).sum(axis=1), share.shape[1] - 1)
        topic = np.minimum(self._users.topics[visits.user[row], which], len(self._low) - 1)
        low, high = self._low[topic], self._high[topic]
        everywhere = (draw >= _INTEREST_SHARE) | (high <= low)
        low = np.where(everywhere, 0.0, low)
        high = np.where(everywhere, self._cumulative[-1], high)
        at = np.searchsorted(self._cumulative, low + rng.random(count) * (high - low), side="right")
        item = self._by_topic[np.minimum(at, len(self._by_topic) - 1)]
        is_random = rng.random(count, dtype=np.float32) < random_share
        anything = self._uploaded[rng.integers(0, len(self._uploaded), count)]
        return np.where(is_random, anything, item), is_random
