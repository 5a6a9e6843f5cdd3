"""The synthetic world: how a user reacts to an item at an hour and a position, in closed form.

With u a user, i an item, t the clock hour, k an interest, p the position from 1:

    strength_k(t) = s_k (1 + v (0.6 cos 2pi(t/slow_k + phase_k1) + 0.4 cos 2pi(t/fast_k + phase_k2)))     drift v
    interest      = sum_k strength_k(t) * sim(topic_k, topics_i),  four liked topics, one disliked
    appeal        = 1.5 interest + 0.5 style_u . style_i / sqrt(S) + quality_i - 0.15 log(1 + age in days)
    P(click)      = p^-0.15 * sigmoid(b_click + bias_u + tab + hour + appeal)                  position bias
    play | click  = t0 + X, capped at twice the duration; t0 = min(7 s, duration), X log-logistic of shape 2, scale
                    a = exp(b_long + patience_u + 0.5 appeal + 0.5 log(duration / 20 s)) seconds
    long view     = play >= min(18 s, duration),   so P(long view | click) = 1 / (1 + (x / a)^2), x = threshold - t0
    E[play]       = P(click) (t0 + a arctan((cap - t0) / a)) + (1 - P(click)) t0 / 4,   play | no click = t0 U^3
    P(like)       = P(click) sum over long view or not of P(it | click) sigmoid(b_like + like_u + 0.5 appeal + 1.2 it)
    P(purchase)   = P(click) sigmoid(b_buy + spend_u + 0.6 appeal) for ads, 0 for the rest; revenue = the item's price
    P(return)     = sigmoid(b_return + return_u + 4 (joy - its usual level)), joy = mean P(long view) of a user's day

The intercepts b are solved on a pilot sample so that click, long view and like meet the configured rates. A click is a
play of at least t0, as in KuaiRand. Time enters by the clock hour alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from infnet.data.sources.exposure import HOUR_MS, TABS, Policy, Visits, interest_strengths
from infnet.data.sources.latent import Floats, Ints, Items, Users, draw_items, draw_users, topic_similarity
from infnet.data.sources.reaction import Intercepts, Reaction, sigmoid
from infnet.errors import DataError

__all__ = ["World", "WorldConfig"]

_TAB_EFFECT = np.array([0.1, -0.6, 0.35, -0.3, 0.6], np.float32)
_HOUR_EFFECT = (0.2 * np.cos(2 * np.pi * (np.arange(24) - 21) / 24)).astype(np.float32)
_EXAMINATION = -0.15


class WorldConfig(BaseModel):
    """Size, seed and rates of a world."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_users: int = Field(default=10_000, ge=1)
    num_items: int = Field(default=4_000, ge=2)
    num_days: int = Field(default=14, ge=1, le=3650)
    seed: int = Field(default=0, ge=0)
    first_day: date = date(2024, 1, 1)
    sessions_per_day: float = Field(default=2.0, gt=0, le=12)
    """Of an average user on a day on which the user comes."""
    session_length: float = Field(default=8.0, ge=1, le=30)
    """Mean impressions per session."""
    num_topics: int = Field(default=40, ge=2, le=1000)
    drift: float = Field(default=1.0, ge=0, le=1)
    """How far interests swing over days; 0 for users who stay as they are."""
    random_share: float = Field(default=0.01, ge=0, lt=1)
    """Share of impressions whose item was drawn at random from all items (``is_rand``)."""
    click_rate: float = Field(default=0.38, gt=0.01, lt=0.8)
    long_view_rate: float = Field(default=0.25, gt=0.01, lt=0.8)
    like_rate: float = Field(default=0.02, gt=0.0005, lt=0.5)


@dataclass(frozen=True)
class World:
    """Users, items and how they get on. The same config gives the same world."""

    config: WorldConfig
    users: Users
    items: Items
    similarity: Floats
    """(T, T) of topics."""
    intercepts: Intercepts

    @classmethod
    def create(cls, config: WorldConfig) -> World:
        """Draw a world and solve its intercepts for the configured rates."""
        rng = [np.random.default_rng([config.seed, stream]) for stream in range(4)]
        world = cls(
            config,
            draw_users(config.num_users, config.num_topics, config.num_days, config.drift, rng[0]),
            draw_items(config.num_items, config.num_topics, config.num_days, rng[1]),
            topic_similarity(config.num_topics, rng[2]),
            Intercepts(),
        )
        here = np.flatnonzero(world.users.join_day <= config.num_days // 2)
        here = np.sort(rng[3].choice(here, min(len(here), 5000), replace=False))
        policy = Policy(world.users, world.items, config.num_days // 2)
        pilot = policy.show(here, config.sessions_per_day, config.session_length, config.random_share, rng[3])
        reaction = world.react(pilot.visits, pilot.row, pilot.item, pilot.position)
        return replace(world, intercepts=world._solve(reaction))

    def _solve(self, pilot: Reaction) -> Intercepts:
        """Intercepts, one after the other by bisection, at which the pilot's mean probabilities meet the config."""
        found = Intercepts()
        for name, task, rate in (
            ("click", "p_click", self.config.click_rate),
            ("long_view", "p_long_view", min(self.config.long_view_rate, 0.95 * self.config.click_rate)),
            ("like", "p_like", min(self.config.like_rate, 0.5 * self.config.click_rate)),
        ):
            low, high = -15.0, 15.0
            for _ in range(40):
                middle = (low + high) / 2
                trial = replace(pilot, intercepts=replace(found, **{name: middle}))
                too_high = float(trial.probabilities()[task].mean(dtype=np.float64)) > rate
                low, high = (low, middle) if too_high else (middle, high)
            found = replace(found, **{name: (low + high) / 2})
        return found

    def first_ms(self) -> int:
        """Midnight (UTC) of the first day, in ms since 1970."""
        day = self.config.first_day
        return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000

    def taste(self, visits: Visits) -> Floats:
        """(V, T): how much each visiting user feels like each topic at that hour."""
        strength = interest_strengths(self.users, visits)
        taste = np.zeros((len(visits), self.similarity.shape[0]), np.float32)
        topics = self.users.topics[visits.user]
        for k in range(topics.shape[1]):
            taste += strength[:, k, None] * self.similarity[topics[:, k]]
        return taste

    def react(self, visits: Visits, row: Ints, item: Ints, position: Ints) -> Reaction:
        """How users react: row r shows ``item[r]`` in visit ``row[r]`` at ``position[r]``, counted from 1."""
        users, items = self.users, self.items
        taste = self.taste(visits)
        topics = items.topics[item]
        interest = 0.7 * taste[row, topics[:, 0]] + 0.3 * taste[row, topics[:, 1]]
        user = visits.user[row]
        style = np.einsum("ns,ns->n", users.style[user], items.style[item]) / np.float32(np.sqrt(users.style.shape[1]))
        age_days = np.maximum(visits.hour[row] / 24 - items.upload_day[item], 0.0).astype(np.float32)
        appeal = 1.5 * interest + 0.5 * style + items.quality[item] - 0.15 * np.log1p(age_days)
        readiness = users.click_bias[visits.user] + _TAB_EFFECT[visits.tab] + _HOUR_EFFECT[visits.hour % 24]
        return Reaction(
            intercepts=self.intercepts,
            appeal=appeal.astype(np.float32),
            readiness=readiness[row],
            examination=self.examination(position),
            patience=users.patience[user],
            like_bias=users.like_bias[user],
            spend_bias=users.spend_bias[user],
            duration_ms=items.duration_ms[item],
            price=items.price[item],
        )

    def examination(self, position: Ints) -> Floats:
        """Probability that the user looks at a position, counted from 1."""
        return np.asarray(np.maximum(position, 1).astype(np.float32) ** np.float32(_EXAMINATION))

    def probabilities(
        self, users: ArrayLike, items: ArrayLike, time_ms: ArrayLike, *, position: ArrayLike = 1, tab: ArrayLike = 1
    ) -> dict[str, Floats]:
        """True probability of every task, and expectations, for arguments that broadcast together.

        ``users`` (R, 1) with ``items`` (R, N) gives (R, N). ``time_ms`` is UTC since 1970, ``position`` counts from 1,
        ``tab`` is a value of :data:`TABS`. Keys: see :meth:`Reaction.probabilities`.
        """
        reaction, shape = self._broadcast(users, items, time_ms, position, tab)
        return {name: values.reshape(shape) for name, values in reaction.probabilities().items()}

    def sample_feedback(
        self,
        users: ArrayLike,
        items: ArrayLike,
        time_ms: ArrayLike,
        rng: np.random.Generator,
        *,
        position: ArrayLike = 1,
        tab: ArrayLike = 1,
    ) -> dict[str, NDArray[np.generic]]:
        """Feedback drawn from :meth:`probabilities`, by the log's column names; arguments broadcast likewise."""
        reaction, shape = self._broadcast(users, items, time_ms, position, tab)
        return {name: values.reshape(shape) for name, values in reaction.sample(rng).items()}

    def _broadcast(
        self, users: ArrayLike, items: ArrayLike, time_ms: ArrayLike, position: ArrayLike, tab: ArrayLike
    ) -> tuple[Reaction, tuple[int, ...]]:
        hour = (np.asarray(time_ms, np.int64) - self.first_ms()) // HOUR_MS
        known = np.asarray(tab)[..., None] == TABS
        if not known.any(axis=-1).all():
            strange = np.asarray(tab)[~known.any(axis=-1)].flat[0]
            raise DataError(f"tab {strange} is none of this world's; they are {', '.join(map(str, sorted(TABS)))}")
        tab_index = known.argmax(axis=-1)
        user, hour, tab_index = np.broadcast_arrays(np.asarray(users), hour, tab_index)
        visits = Visits(user.ravel(), hour.ravel(), tab_index.ravel())
        at = np.arange(user.size).reshape(user.shape)
        row, item, place = np.broadcast_arrays(at, np.asarray(items), np.asarray(position))
        return self.react(visits, row.ravel(), item.ravel(), place.ravel()), row.shape

    def return_probability(
        self, users: Ints, joy: Floats | np.float32, was: Literal["here", "away"] = "here"
    ) -> Floats:
        """Probability that users come the next day.

        Args:
            users: (n,) who.
            joy: (n,) mean true ``p_long_view`` of what each was shown today; ignored for those who were away.
            was: Whether they were here today.
        """
        lift = 4.0 * (joy - self.config.long_view_rate) if was == "here" else np.float32(-0.7)
        return sigmoid(self.users.return_bias[users] + np.float32(0.9) + lift)
