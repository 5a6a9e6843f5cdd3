"""What can be had at once: the Pareto front of several objectives, its knee, and the best under limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from infnet.errors import SpecError, did_you_mean

__all__ = ["best_kept", "knee", "pareto", "parse_limits"]

_EXAMPLE = "watch_time=-0.5%"
_ROUNDING = 1e-9
"""Of normalised distances."""


def pareto(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Places of the points that no other one dominates, by the first objective, the highest first.

    A point dominates another if it is at least as good in every objective and better in one. Of equal points the first
    is taken.

    Args:
        points: (n, M), more is better; one with a NaN is never taken.
    """
    usable = np.flatnonzero(~np.isnan(points).any(axis=1))
    _, first = np.unique(points[usable], axis=0, return_index=True)
    places = usable[np.sort(first)]
    found = points[places]
    at_least = (found[:, None, :] >= found[None, :, :]).all(axis=2)  # of different points, as good is better in one
    front = places[at_least.sum(axis=0) == 1]  # by itself alone
    order: NDArray[np.intp] = np.lexsort((front, *-points[front].T[::-1]))
    return front[order]


def knee(front: NDArray[np.float64]) -> int | None:
    """Place of the point beyond which a little more of one objective costs much of the others.

    It is the one that lies farthest beyond the chord between the front's ends, of three or more objectives the plane
    through their best points, on axes from the worst to the best value of the front (I. Das, "On Characterizing the
    'Knee' of the Pareto Curve Based on Normal-Boundary Intersection", Structural Optimization 18, 1999).

    Args:
        front: (n, M), more is better, none dominated.

    Returns:
        None where no point lies beyond the chord, as on a front that is straight or has two points; the only point of
        a front of one.
    """
    if len(front) <= 1:
        return 0 if len(front) else None
    low, high = front.min(axis=0), front.max(axis=0)
    scaled = (front - low) / np.where(high > low, high - low, 1.0)
    ends = scaled[scaled.argmax(axis=0)]
    outward = _beyond(ends)
    distances = (scaled - ends[0]) @ outward
    best = int(distances.argmax())
    return best if distances[best] > _ROUNDING else None


def best_kept(points: NDArray[np.float64], goal: int, limits: Mapping[int, float]) -> int | None:
    """Place of the point with the most of one objective among those that keep limits on others; None if none does.

    Args:
        points: (n, M), more is better.
        goal: The objective.
        limits: By objective, the least that is wanted of it.
    """
    kept = np.ones(len(points), dtype=np.bool_)
    for objective, least in limits.items():
        kept &= points[:, objective] >= least
    if not kept.any():
        return None
    return int(np.where(kept, points[:, goal], -np.inf).argmax())


def parse_limits(texts: Sequence[str], objectives: Sequence[str]) -> dict[str, float]:
    """Least changes by objective, from texts such as ``watch_time=-0.5%``: -0.005.

    Raises:
        SpecError: A text is no such thing, names another objective or one twice, or all objectives have a limit.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, equals, amount = (part.strip() for part in text.rpartition("="))
        if not equals or not name:
            raise SpecError(f"--keep '{text}': wanted OBJECTIVE=CHANGE%, such as {_EXAMPLE}")
        if name not in objectives:
            raise SpecError(f"--keep '{text}': '{name}' is not among --objectives{did_you_mean(name, objectives)}")
        if name in limits:
            raise SpecError(f"--keep '{text}': '{name}' has a limit already; give one")
        limits[name] = _change(text, amount)
    if len(limits) == len(objectives):
        raise SpecError(f"--keep limits all of {', '.join(objectives)}; leave one without, which is to be raised")
    return limits


def _change(text: str, amount: str) -> float:
    try:
        change = float(amount.removesuffix("%")) / 100
    except ValueError:
        change = math.nan
    if not amount.endswith("%") or not math.isfinite(change) or change < -1:
        raise SpecError(f"--keep '{text}': '{amount}' is no change in percent from -100% on; write it as {_EXAMPLE}")
    return change


def _beyond(ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """The unit vector towards more of everything, square to what lies between the ends (M, M)."""
    more = np.ones(ends.shape[1])
    _, sizes, axes = np.linalg.svd(ends[1:] - ends[0])
    spanned = axes[: int((sizes > _ROUNDING).sum())]
    outward = more - spanned.T @ (spanned @ more)
    length = float(np.linalg.norm(outward))
    if length < _ROUNDING:
        return more / math.sqrt(len(more))
    unit: NDArray[np.float64] = outward / length
    return unit
