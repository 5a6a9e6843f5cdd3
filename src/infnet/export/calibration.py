"""The calibration of a bundle: fitted on rows that the model has not learnt from, applied to every prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from infnet.data.dataset import Dataset, SplitRows
from infnet.data.layout import Layout
from infnet.errors import DataError, SpecError, did_you_mean
from infnet.evaluation.calibration import expected_calibration_error, pcoc
from infnet.evaluation.calibrators import CalibrationMethod, TaskCalibration, fit_calibration
from infnet.evaluation.predict import predict
from infnet.export.engine import EncodedRequest
from infnet.models.base import RankingModel

__all__ = ["CALIBRATION", "BundleCalibration", "CalibrationQuality", "CalibrationSettings", "calibrate"]

CALIBRATION = "calibration.json"

_SIDES: tuple[Literal["context", "user"], ...] = ("context", "user")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CalibrationSettings(_Record):
    """How predictions are calibrated."""

    method: CalibrationMethod = "isotonic"
    """Of binary tasks; regressions get isotonic curves."""
    by: str | None = None
    """Feature of the user or the context whose values get curves of their own, where they have rows enough."""


class CalibrationQuality(_Record):
    """Of a binary task, on rows that its curve was not fitted to: each half of them by the other half's curve."""

    pcoc_before: float
    """Predicted over observed; 1 is right."""
    pcoc_after: float
    error_before: float
    """Expected calibration error, bins of equally many rows."""
    error_after: float


class BundleCalibration(_Record):
    """``calibration.json`` of a bundle."""

    settings: CalibrationSettings
    rows: int
    """Fitted to."""
    tasks: Mapping[str, TaskCalibration]
    """Curves by task; of others the predictions stay as they are. Segments are ids of the feature."""
    quality: Mapping[str, CalibrationQuality] = {}
    """By binary task."""

    def apply(self, predictions: NDArray[np.float64], layout: Layout, request: EncodedRequest) -> NDArray[np.float64]:
        """Calibrated predictions of a request, (N, T)."""
        found, segment = predictions.copy(), self.segment(layout, request)
        for column, task in zip(found.T, layout.task_names, strict=True):
            curves = self.tasks.get(task)
            if curves is not None:
                curve = curves.overall if segment is None else curves.segments.get(segment, curves.overall)
                column[:] = curve.apply(column)
        return found

    def segment(self, layout: Layout, request: EncodedRequest) -> str | None:
        """Id of the feature that tells segments apart; None if there is none."""
        by = self.settings.by
        if by is None:
            return None
        for side, values in zip(_SIDES, (request.context, request.user), strict=True):
            columns = layout.id_columns(side)
            if by in columns:
                return str(int(values.ids[columns[by].start]))
        return None


def _check_segment(layout: Layout, by: str) -> None:
    names = [
        field.name for side in _SIDES for field in layout.side(side) if field.storage != "dense" and field.width == 1
    ]
    if by not in names:
        hint = did_you_mean(by, names)
        raise SpecError(f"segments by '{by}': no category of the user or the context is called so{hint}")


def calibrate(
    model: RankingModel,
    dataset: Dataset,
    split: str,
    settings: CalibrationSettings,
    before: BundleCalibration | None = None,
) -> BundleCalibration:
    """Fit a model's calibration.

    Args:
        model: In evaluation mode.
        dataset: With labels.
        split: That the model has not learnt from.
        settings: How.
        before: Of the model that this one is an update of; its curve for all segments together stays where the rows are
            too few, or too noisy, for another.

    Raises:
        SpecError: The feature to tell segments apart by is none, or scikit-learn is not installed.
        DataError: The model has learnt nothing of a task, and there was none before.
    """
    layout, rows, method, by = model.layout, dataset.rows(split), settings.method, settings.by
    if by is not None:
        _check_segment(layout, by)
    found = predict(model, dataset, split)
    segments = None if by is None else _segments(dataset, layout, rows, by)
    halves = np.random.default_rng(0).random(len(rows)) < 0.5
    tasks, quality = dict[str, TaskCalibration](), dict[str, CalibrationQuality]()
    for task, labels, scores in zip(layout.tasks, found.labels.T, found.scores.T, strict=True):
        old = None if before is None else before.tasks.get(task.name)
        try:
            curves = fit_calibration(labels, scores, task.kind, method, segments)
        except DataError:
            if old is None:
                raise
            curves = None
        if curves is None:
            if old is not None:
                tasks[task.name] = TaskCalibration(overall=old.overall)
            continue
        tasks[task.name] = curves
        if task.kind == "binary":
            crossed = _crossed(labels, scores, method, halves)
            if crossed is not None:
                quality[task.name] = crossed
    return BundleCalibration(settings=settings, rows=len(rows), tasks=tasks, quality=quality)


def _segments(dataset: Dataset, layout: Layout, rows: SplitRows, by: str) -> NDArray[np.str_]:
    columns = layout.id_columns("context")
    if by in columns:
        return rows.context[:, columns[by].start].astype(str)
    return dataset.users.ids[rows.user, layout.id_columns("user")[by].start].astype(str)


def _crossed(
    labels: NDArray[np.float32], scores: NDArray[np.float64], method: CalibrationMethod, halves: NDArray[np.bool_]
) -> CalibrationQuality | None:
    known = ~np.isnan(labels)
    calibrated = scores.copy()
    for half in (halves, ~halves):
        try:
            curves = fit_calibration(labels[~half], scores[~half], "binary", method)
        except DataError:
            return None
        if curves is None:
            return None
        calibrated[half] = curves.overall.apply(scores[half])
    truth = labels[known]
    sides: Sequence[NDArray[np.float64]] = (scores[known], calibrated[known].clip(0, 1))
    pcocs, errors = zip(*((pcoc(truth, p), expected_calibration_error(truth, p)) for p in sides), strict=True)
    return CalibrationQuality(pcoc_before=pcocs[0], pcoc_after=pcocs[1], error_before=errors[0], error_after=errors[1])
