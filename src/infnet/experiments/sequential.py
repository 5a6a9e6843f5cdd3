"""Intervals that may be looked at every day: always-valid inference by a normal mixture.

R. Johari, P. Koomen, L. Pekelis, D. Walsh, "Always Valid Inference: Continuous Monitoring of A/B Tests", Operations
Research 70 (2022). With mixing = rho^2 n variance the boundary is that of the asymptotic confidence sequence of
I. Waudby-Smith, D. Arbour, R. Sinha, E. Kennedy, A. Ramdas, "Time-uniform Central Limit Theory and Asymptotic
Confidence Sequences", Annals of Statistics 52 (2024): means and ratios need not be normal, only many.
"""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["sequential_half_width", "sequential_p"]

Numbers = NDArray[np.float64]


@overload
def sequential_p(difference: float, variance: float, mixing: float) -> float: ...
@overload
def sequential_p(difference: Numbers, variance: Numbers, mixing: float) -> Numbers: ...
def sequential_p(difference: float | Numbers, variance: float | Numbers, mixing: float) -> float | Numbers:
    """P-value of no difference; the chance that it is ever below alpha, at whatever look, is at most alpha.

    Args:
        difference: Of the means, any shape.
        variance: Of the difference itself, such as ``var_c / n_c + var_t / n_t``.
        mixing: Variance of the differences that are expected before the experiment. Its choice costs width, never
            validity; an interval is narrowest where its variance is an eighth of this.
    """
    total = variance + mixing
    # log of the mixture likelihood ratio
    evidence = 0.5 * np.log(variance / total) + 0.5 * np.square(difference) * mixing / (variance * total)
    p = np.exp(-np.maximum(evidence, 0.0))
    return p if isinstance(difference, np.ndarray) else float(p)


@overload
def sequential_half_width(variance: float, mixing: float, alpha: float) -> float: ...
@overload
def sequential_half_width(variance: Numbers, mixing: float, alpha: float) -> Numbers: ...
def sequential_half_width(variance: float | Numbers, mixing: float, alpha: float) -> float | Numbers:
    """Half the width of the interval of differences whose :func:`sequential_p` is at least alpha."""
    total = variance + mixing
    width = np.sqrt(variance * total / mixing * (np.log(total / variance) - 2 * np.log(alpha)))
    return width if isinstance(variance, np.ndarray) else float(width)
