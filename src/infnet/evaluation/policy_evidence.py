"""What items earned, and so what a policy would have earned with other weights, user by user."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infnet.errors import DataError
from infnet.ranking.reweighting import Reweighted

__all__ = ["Change", "Earned", "Evidence"]

_Z_975 = 1.959963985


@dataclass(frozen=True)
class Change:
    """A reward relative to the declared policy's, 0 for the same; NaN where nothing can be said."""

    value: float
    low: float
    """Of the 95% interval."""
    high: float


@dataclass(frozen=True)
class Earned:
    """What users earned under one order; U users, M rewards."""

    rewards: NDArray[np.float64]
    """(M, U) sums."""
    counted: NDArray[np.float64]
    """(U,) what sums are divided by: the user's lists, or the weight of his decisions."""
    squared: NDArray[np.float64]
    """(U,) sums of squared weights of his items."""

    def of(self, who: NDArray[np.bool_]) -> Earned:
        """Of some of the users (U,)."""
        return Earned(self.rewards[:, who], self.counted[who], self.squared[who])

    def means(self) -> NDArray[np.float64]:
        """(M,) rewards per list, or per decision; NaN where there is none."""
        counted = self.counted.sum()
        if counted == 0:
            return np.full(len(self.rewards), math.nan)
        means: NDArray[np.float64] = self.rewards.sum(axis=1) / counted
        return means

    @property
    def effective(self) -> float:
        """Effective sample size of weighted decisions, (sum of weights)^2 / sum of their squares."""
        squared = float(self.squared.sum())
        return float(self.counted.sum()) ** 2 / squared if squared else 0.0

    def beside(self, declared: Earned) -> tuple[Change, ...]:
        """(M,) relative changes, with intervals by the delta method in which a user is one observation.

        Both are of the same users, so that what they have in common cancels.
        """
        num, counted = len(self.counted), self.counted.sum()
        found = []
        for own, other in zip(self.rewards, declared.rewards, strict=True):
            if counted == 0 or declared.counted.sum() == 0 or other.sum() == 0:
                found.append(Change(math.nan, math.nan, math.nan))
                continue
            scale = float(declared.counted.sum() / (counted * other.sum()))
            ratio = scale * float(own.sum())
            shares = self.counted / counted + other / other.sum() - declared.counted / declared.counted.sum()
            parts = scale * own - ratio * shares  # one user's part in the ratio, linearised; they add up to 0
            half = _Z_975 * math.sqrt(float((parts**2).sum()) * num / max(1, num - 1))
            found.append(Change(ratio - 1, ratio - 1 - half, ratio - 1 + half))
        return tuple(found)


@dataclass(frozen=True)
class Evidence:
    """Lists of items, what each item earned, and how much that counts where a policy would place it.

    Raises:
        DataError: A reward is no finite number or always 0, or there are fewer than four users.
    """

    about: str
    """What it rests on, for the reader."""
    lists: Reweighted
    """G lists, n items."""
    users: NDArray[np.intp]
    """(G,) the user of each list, numbered from 0."""
    rewards: Mapping[str, NDArray[np.float64]]
    """(n,) by name."""
    weigh: Callable[[NDArray[np.intp]], NDArray[np.float64]]
    """Positions (n,), -1 of what is not shown -> how much each item's reward counts (n,)."""
    is_sampled: bool
    """Whether weights stand for chances, so that rewards are divided by their sum and not by the number of lists."""

    def __post_init__(self) -> None:
        for name, reward in self.rewards.items():
            if not np.isfinite(reward).all():
                raise DataError(f"'{name}' of item {int(np.flatnonzero(~np.isfinite(reward))[0])} is no finite number")
            if not reward.any():
                raise DataError(f"'{name}' is 0 throughout: {self.about}; give an objective that was earned")
        if self.num_users < 4:
            raise DataError(f"there are {self.num_users} users, wanted at least 4: half choose, half report")

    @property
    def num_users(self) -> int:
        """U."""
        return int(self.users.max()) + 1

    def earned(self, weights: NDArray[np.float64]) -> Earned:
        """What the policy would have earned with these weights (K,) of its objectives."""
        counts, users, num = self.weigh(self.lists.positions(weights)), self.users[self.lists.numbers], self.num_users
        rewards = [np.bincount(users, counts * reward, num) for reward in self.rewards.values()]
        counted = np.bincount(users, counts, num) if self.is_sampled else np.bincount(self.users, minlength=num)
        squared = np.bincount(users, counts**2, num).astype(np.float64)
        return Earned(np.stack(rewards), counted.astype(np.float64), squared)
