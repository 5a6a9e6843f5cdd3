"""Making predictions right as numbers: a curve per task, of its own for each segment that has enough rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from infnet.errors import DataError, SpecError

__all__ = ["CalibrationMethod", "Curve", "Isotonic", "Platt", "TaskCalibration", "fit_calibration"]

CalibrationMethod: TypeAlias = Literal["isotonic", "platt"]

_LEAST_ROWS, _LEAST_POSITIVES = 1000, 50
"""With labels, of a curve: with fewer, chance would say more than the curve."""
_ORDER = 1e-6
"""So much of a prediction is mixed into an isotonic curve, which keeps the order of what is on one step."""
_EPS = 1e-12


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Isotonic(_Record):
    """The monotone curve nearest to the labels (Zadrozny and Elkan, KDD 2002), linear between its knots."""

    kind: Literal["isotonic"] = "isotonic"
    predictions: tuple[float, ...] = Field(min_length=1)
    """Ascending."""
    values: tuple[float, ...]
    """Never falling."""

    @model_validator(mode="after")
    def _rises(self) -> Isotonic:
        if len(self.values) != len(self.predictions):
            raise ValueError(f"has {len(self.values)} values for {len(self.predictions)} predictions")
        if (np.diff(self.predictions) < 0).any() or (np.diff(self.values) < 0).any():
            raise ValueError("falls; wanted a curve that rises")
        return self

    def apply(self, predictions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated predictions (n,), in the order that they came with."""
        steps: NDArray[np.float64] = np.interp(predictions, self.predictions, self.values)
        return (1 - _ORDER) * steps + _ORDER * predictions


class Platt(_Record):
    """A straight line through the logits (Platt 1999)."""

    kind: Literal["platt"] = "platt"
    slope: float = Field(gt=0)
    intercept: float

    def apply(self, predictions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probabilities (n,)."""
        return 1.0 / (1.0 + np.exp(-(self.slope * _logits(predictions) + self.intercept)))


Curve: TypeAlias = Annotated[Isotonic | Platt, Field(discriminator="kind")]


class TaskCalibration(_Record):
    """The curves of a task."""

    overall: Curve
    segments: Mapping[str, Curve] = {}
    """By value of the feature that tells segments apart; other values go by ``overall``."""


def fit_calibration(
    labels: ArrayLike,
    predictions: ArrayLike,
    kind: Literal["binary", "regression"],
    method: CalibrationMethod,
    segments: ArrayLike | None = None,
) -> TaskCalibration | None:
    """Fit the curves of a task; None with too few labels.

    Args:
        labels: (n,) what happened; NaN where unknown.
        predictions: (n,) for the same rows, which the model has not learnt from.
        kind: Of the task.
        method: ``platt`` is for binary tasks; regressions get isotonic curves with either.
        segments: (n,) text of each row's segment.

    Raises:
        SpecError: scikit-learn is not installed.
        DataError: The labels of all rows together fall where the predictions rise.
    """
    known = ~np.isnan(np.asarray(labels, dtype=np.float64))
    truth = np.asarray(labels, dtype=np.float64)[known]
    given = np.asarray(predictions, dtype=np.float64)[known]
    overall = _curve(truth, given, kind, method)
    if overall is None:
        return None
    curves: dict[str, Isotonic | Platt] = {}
    if segments is not None:
        names = np.asarray(segments)[known]
        for name in np.unique(names):
            here = names == name
            try:
                curve = _curve(truth[here], given[here], kind, method)
            except DataError:  # as chance will have it in one segment of many
                continue
            if curve is not None:
                curves[str(name)] = curve
    return TaskCalibration(overall=overall, segments=curves)


def _curve(
    labels: NDArray[np.float64],
    predictions: NDArray[np.float64],
    kind: Literal["binary", "regression"],
    method: CalibrationMethod,
) -> Isotonic | Platt | None:
    positives = int((labels > 0).sum())
    if len(labels) < _LEAST_ROWS or positives < _LEAST_POSITIVES:
        return None
    if kind == "binary" and len(labels) - positives < _LEAST_POSITIVES:
        return None
    try:
        from sklearn.isotonic import IsotonicRegression
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise SpecError("calibration needs scikit-learn; install it with: pip install 'infnet[export]'") from error
    if kind == "binary" and method == "platt":
        model = LogisticRegression(C=np.inf).fit(_logits(predictions)[:, None], labels > 0)
        slope = float(model.coef_[0, 0])
        if slope <= 0:
            raise DataError(
                f"labels fall where predictions rise (slope {slope:.3g}); the model has learnt nothing of this task: "
                "train it longer, or export without calibration"
            )
        return Platt(slope=slope, intercept=float(model.intercept_[0]))
    fitted = IsotonicRegression(out_of_bounds="clip").fit(predictions, labels)
    return Isotonic(
        predictions=tuple(fitted.X_thresholds_.tolist()),
        values=tuple(fitted.y_thresholds_.tolist()),
    )


def _logits(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(probs, _EPS, 1 - _EPS)
    return np.log(clipped) - np.log1p(-clipped)
