"""The weights of a policy that can be searched: all but one, since only their ratios matter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from infnet.errors import SpecError
from infnet.ranking.policy import Policy

__all__ = ["WeightSpace"]

_ZERO = -1.1
"""The lowest exponent: those below -1, a twentieth of the range, stand for weight 0."""


class WeightSpace:
    """Weights around the declared ones, by exponents: 0 is the declared one, 1 so many times more, -1 as much less.

    The largest weight, of equal ones the first, stays as it is. A declared weight of 0 is searched around the largest
    one's size.

    Args:
        policy: The policy.
        factor: Times more or less than declared at most.

    Attributes:
        names: Of all objectives.
        fixed: The one that keeps its weight.
        free: The others.

    Raises:
        SpecError: There is a single objective, the factor is no number above 1, or weights so large may overflow.
    """

    lowest, highest = _ZERO, 1.0

    def __init__(self, policy: Policy, factor: float) -> None:
        spec = policy.spec
        if len(spec.objectives) < 2:
            raise SpecError(
                f"policy '{spec.name}' has the objective '{next(iter(spec.objectives))}' alone, so that there are no "
                "weights to choose between; declare two or more"
            )
        if not 1 < factor < 1e6:
            raise SpecError(f"--range: {factor:g} is not between 1 and 1e6; wanted such as 100, times more or less")
        declared = {name: each.weight for name, each in spec.objectives.items()}
        self.names = tuple(declared)
        self.fixed = max(declared, key=lambda name: abs(declared[name]))
        self.free = tuple(name for name in declared if name != self.fixed)
        self._factor, self._declared = factor, declared
        self._may_vanish = spec.combine != "rank_fusion"  # which wants weights above 0
        highest = self.weights(dict.fromkeys(self.free, self.highest)).tolist()
        try:
            policy.with_weights(dict(zip(self.names, highest, strict=True)))
        except SpecError as error:
            raise SpecError(f"{error}, or a smaller --range") from error

    @property
    def declared(self) -> dict[str, float]:
        """Exponents of the declared weights, by objective that is free."""
        return {name: 0.0 if self._declared[name] else self._least for name in self.free}

    def corners(self) -> list[dict[str, float]]:
        """Exponents to begin with: those declared, then each free one at its least and its most."""
        ends = [self.declared | {name: end} for name in self.free for end in (self._least, self.highest)]
        return [self.declared, *ends]

    def weights(self, exponents: Mapping[str, float]) -> NDArray[np.float64]:
        """(K,) weights, in the order of the declaration, in as many digits as a file shows."""
        return np.array([self._weight(name, exponents.get(name, 0.0)) for name in self.names])

    @property
    def _least(self) -> float:
        return self.lowest if self._may_vanish else -1.0

    def _weight(self, name: str, exponent: float) -> float:
        declared = self._declared[name]
        if name == self.fixed or (exponent == 0 and declared):
            return declared
        if exponent < -1 and self._may_vanish:
            return 0.0
        centre = declared or abs(self._declared[self.fixed])
        return float(f"{centre * math.pow(self._factor, max(exponent, -1.0)):.4g}")
