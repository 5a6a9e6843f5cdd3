"""Where the gradients of two tasks point against each other: which sum of them to follow.

Both methods act on the gradients' inner products alone, and say how much of each gradient goes into the update; so
neither has to keep or change a long vector.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["CAGrad", "PCGrad", "Surgery"]

_TINY = 1e-8
_SHARP = 1e6
"""One over the error of CAGrad's weights, about."""


class Surgery(Protocol):
    """A way to settle conflicts."""

    def coefficients(self, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much (T,) of each task's gradient to follow, from their inner products (T, T); ones for the plain sum."""


class PCGrad:
    """Each task gives up what points against another (Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS
    2020, algorithm 1).

    Task i's gradient is projected, one after another in random order, onto the normal plane of each gradient that it
    points against: g_i - (g_i . g_j / |g_j|^2) g_j where g_i . g_j < 0. The update is the sum of what is left.
    The order comes from PyTorch's global random numbers.
    """

    def coefficients(self, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """(T, T) -> (T,)."""
        num_tasks = len(gram)
        total = np.zeros(num_tasks)
        for task in range(num_tasks):
            own = np.zeros(num_tasks)  # of the task's projected gradient, in terms of all tasks' gradients
            own[task] = 1.0
            for other in torch.randperm(num_tasks).tolist():
                product = own @ gram[:, other]
                if other != task and product < 0.0 < gram[other, other]:
                    own[other] -= product / gram[other, other]
            total += own
        return total


class CAGrad:
    """The update near the plain sum that helps the worst-off task most (Liu et al., "Conflict-Averse Gradient Descent
    for Multi-task Learning", NeurIPS 2021, algorithm 1).

    With g_0 the mean gradient and g_w = sum_i w_i g_i, the weights w on the simplex minimise
    g_w . g_0 + c |g_0| |g_w|; the update is T (g_0 + c |g_0| g_w / |g_w|), which for c = 0 is the plain sum.

    Args:
        c: Radius around the mean gradient to search, as a share of its norm; from 0 to below 1.
    """

    def __init__(self, c: float) -> None:
        self.c = c

    def coefficients(self, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """(T, T) -> (T,)."""
        square = gram.mean()  # |g_0|^2
        if self.c == 0 or not square > _TINY * np.trace(gram):  # the tasks cancel out, or a gradient is no number
            return np.ones(len(gram))
        weights, norm = self.solve(gram / square)
        return 1.0 + len(gram) * self.c * weights / norm

    def solve(self, gram: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Weights (T,) and |g_w| that solve the dual problem, for gradients in units of |g_0|.

        Where the tasks admit no common descent g_w vanishes, and g_w over the second result is still the direction to
        add, of length at most 1: an interior point method (Boyd & Vandenberghe, "Convex Optimization", 2004, 11.6) on
        min w . g + c t subject to |g_w| <= t, whose Newton steps are damped such that they stay inside.
        """
        num_tasks = len(gram)
        w, linear = np.full(num_tasks, 1.0 / num_tasks), gram.mean(axis=1)  # g_i . g_0
        t, sharpness = 2.0, 1.0
        system = np.zeros((num_tasks + 2, num_tasks + 2))
        while sharpness < _SHARP:
            products = gram @ w
            gap = t * t - w @ products
            slope = np.append(sharpness * linear - 1.0 / w + 2.0 * products / gap, sharpness * self.c - 2.0 * t / gap)
            outward = np.append(products, -t) / gap
            curve = system[:-1, :-1]
            curve[:] = 4.0 * np.outer(outward, outward)
            curve[:-1, :-1] += 2.0 * gram / gap
            curve[-1, -1] -= 2.0 / gap
            unit = np.append(w, t)  # in which all numbers are of one size, however small a weight becomes
            curve *= np.outer(unit, unit)
            curve[range(num_tasks), range(num_tasks)] += 1.0
            system[-1, :num_tasks] = system[:num_tasks, -1] = w  # weights keep their sum
            step = np.linalg.solve(system, np.append(-slope * unit, 0.0))[:-1]
            decrement = math.sqrt(max(0.0, -(slope * unit) @ step))
            step *= unit / (1.0 + decrement)
            w, t = w + step[:-1], t + step[-1]
            if decrement < 0.5:
                sharpness *= 10.0
        return w / w.sum(), t
