"""What another policy would have earned, from a log of one that left something to chance.

Inverse propensity scoring, its self-normalised form (Swaminathan and Joachims, "The Self-Normalized Estimator for
Counterfactual Learning", NIPS 2015) and the doubly robust estimator (Dudik, Langford and Li, "Doubly Robust Policy
Evaluation and Learning", ICML 2011), over decisions such as "which item stands at this position".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infnet.errors import DataError

__all__ = ["Decisions", "Estimate", "OffPolicy", "evaluate_offline"]

_Z = 1.959963985
_LEAST_EFFECTIVE = 100.0
"""Effective sample size below which an answer is not to be trusted: a few decisions make it."""
_LARGEST_SHARE = 0.1
"""Of all weight: nor is one that a single decision makes so much of."""


@dataclass(frozen=True)
class Decisions:
    """Logged decisions, (n,) each.

    Raises:
        DataError: Lengths differ, a chance is not within (0, 1], or a number is none.
    """

    request: NDArray[np.intp]
    """Number of the request; a request may have several decisions, such as one per position."""
    user: NDArray[np.intp]
    """Number of the user, who is what chance is counted by."""
    reward: NDArray[np.float64]
    """Of what was done."""
    propensity: NDArray[np.float64]
    """The chance with which the log's policy did it."""
    wanted: NDArray[np.float64]
    """The chance with which the other policy would do it."""
    expected: NDArray[np.float64]
    """A model's reward of what was done; 0 without a model."""
    expected_wanted: NDArray[np.float64]
    """The same of what the other policy would do, its mean where that is left to chance."""

    @classmethod
    def of(
        cls,
        request: ArrayLike,
        user: ArrayLike,
        reward: ArrayLike,
        propensity: ArrayLike,
        wanted: ArrayLike,
        expected: ArrayLike | None = None,
        expected_wanted: ArrayLike | None = None,
    ) -> Decisions:
        """From anything like arrays; see the attributes."""
        rewards = np.asarray(reward, dtype=np.float64)
        nothing = np.zeros(len(rewards))
        made = cls(
            np.unique(np.asarray(request), return_inverse=True)[1].astype(np.intp),
            np.unique(np.asarray(user), return_inverse=True)[1].astype(np.intp),
            rewards,
            np.asarray(propensity, dtype=np.float64),
            np.asarray(wanted, dtype=np.float64),
            nothing if expected is None else np.asarray(expected, dtype=np.float64),
            nothing if expected_wanted is None else np.asarray(expected_wanted, dtype=np.float64),
        )
        for name in ("request", "user", "propensity", "wanted", "expected", "expected_wanted"):
            if len(getattr(made, name)) != len(rewards):
                raise DataError(f"there are {len(rewards)} rewards and {len(getattr(made, name))} of {name}")
        for name in ("reward", "propensity", "wanted", "expected", "expected_wanted"):
            if not np.isfinite(getattr(made, name)).all():
                raise DataError(f"{name} of decision {_first(~np.isfinite(getattr(made, name)))} is no number")
        if ((made.propensity <= 0) | (made.propensity > 1)).any():
            bad = _first((made.propensity <= 0) | (made.propensity > 1))
            raise DataError(
                f"the propensity of decision {bad} is {made.propensity[bad]:g}, wanted more than 0, at most 1"
            )
        return made

    def minus(self, other: Decisions) -> Estimate:
        """How much more this policy would have earned than another one on the same decisions: doubly robust."""
        num = int(self.request.max()) + 1
        weights = (self.wanted - other.wanted) / self.propensity
        change = self.expected_wanted - other.expected_wanted + weights * (self.reward - self.expected)
        return _estimate(_per_request(self.request, change, num), _users(self, num))


@dataclass(frozen=True)
class Estimate:
    """Reward per request."""

    value: float
    low: float
    """Of a 95% interval, by the normal approximation over users."""
    high: float


@dataclass(frozen=True)
class OffPolicy:
    """What a policy would have earned per request."""

    ips: Estimate
    snips: Estimate
    """Mostly the one to read: a little biased, and far less at the mercy of chance."""
    doubly_robust: Estimate
    effective: float
    """Effective sample size, (sum of weights)^2 / sum of their squares."""
    requests: int
    doubt: str | None
    """Why the answer is not to be trusted; None if it may be."""


def evaluate_offline(decisions: Decisions) -> OffPolicy:
    """Estimate what the other policy would have earned.

    Raises:
        DataError: There are no decisions.
    """
    d = decisions
    if not len(d.reward):
        raise DataError("the log holds no decision that was left to chance; nothing can be said about other policies")
    weights = d.wanted / d.propensity
    num, total = int(d.request.max()) + 1, float(weights.sum())
    ips = _per_request(d.request, weights * d.reward, num)
    robust = _per_request(d.request, d.expected_wanted + weights * (d.reward - d.expected), num)
    user = _users(d, num)
    effective = total**2 / float((weights**2).sum()) if total > 0 else 0.0
    if total > 0:
        slots, ratio = len(d.reward) / num, float((weights * d.reward).sum()) / total
        # The ratio's value per slot, linearised for its error, for as many slots as a request has.
        parts = slots * (ratio + _per_request(d.request, weights * (d.reward - ratio), num) * num / total)
        snips = _estimate(parts, user, value=slots * ratio)
    else:
        snips = Estimate(math.nan, math.nan, math.nan)
    return OffPolicy(_estimate(ips, user), snips, _estimate(robust, user), effective, num, _doubt(weights, effective))


def _users(decisions: Decisions, num: int) -> NDArray[np.intp]:
    """Of each request."""
    user = np.zeros(num, dtype=np.intp)
    user[decisions.request] = decisions.user
    return user


def _per_request(request: NDArray[np.intp], values: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    return np.bincount(request, weights=values, minlength=num).astype(np.float64)


def _estimate(parts: NDArray[np.float64], user: NDArray[np.intp], value: float | None = None) -> Estimate:
    """The mean of requests' parts; requests of one user are one observation."""
    mean = float(parts.mean())
    by_user = np.bincount(user, weights=parts - mean)
    num = len(by_user)
    half = _Z * math.sqrt(float((by_user**2).sum()) * num / max(1, num - 1)) / len(parts)
    centre = mean if value is None else value
    return Estimate(centre, centre - half, centre + half)


def _doubt(weights: NDArray[np.float64], effective: float) -> str | None:
    if effective < _LEAST_EFFECTIVE:
        return (
            f"it rests on some {effective:.0f} decisions, wanted at least {_LEAST_EFFECTIVE:.0f}; "
            "log more random orders, or compare policies that differ less"
        )
    largest = float(weights.max() / weights.sum())
    if largest > _LARGEST_SHARE:
        return f"a single decision makes {largest:.0%} of it; wanted chances that differ less"
    return None


def _first(is_bad: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(is_bad)[0])
