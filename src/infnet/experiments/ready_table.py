"""A user table that somebody else made: Parquet or CSV, one row per user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from infnet.errors import DataError, did_you_mean
from infnet.experiments.metrics import PRE_PERIOD, RESERVED, Measure, MetricSpec, metric_name
from infnet.experiments.observed import observed_experiment
from infnet.experiments.spec import Experiment
from infnet.experiments.user_table import UserTable

__all__ = ["ReadyTable"]

_TEXTS = {"user_id": pl.String, "variant": pl.String}
"""007 is another user than 7."""


@dataclass(frozen=True)
class ReadyTable:
    """``user_id``, ``variant``, a number per measure (:attr:`Measure.column`), perhaps the same of the pre-period
    (:attr:`Measure.pre_column`); any other column is a segment."""

    path: Path
    rows: pl.DataFrame

    @classmethod
    def read(cls, path: Path) -> ReadyTable:
        """Read one.

        Raises:
            DataError: It cannot be read, lacks a column, or has a user twice in one variant.
        """
        try:
            if path.suffix == ".csv":
                rows = pl.read_csv(path, infer_schema_length=None, schema_overrides=_TEXTS)
            else:
                rows = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(f"{path}: cannot be read ({first}); give a Parquet or CSV file") from error
        for name in ("user_id", "variant"):
            if name not in rows.columns:
                raise DataError(f"{path}: has no column '{name}'{did_you_mean(name, rows.columns)}")
            if rows[name].null_count():
                raise DataError(
                    f"{path}: column '{name}' is empty in row {_first(rows[name].is_null())}; fill or drop it"
                )
        if not rows.height:
            raise DataError(f"{path}: has no rows; wanted one per user")
        rows = rows.with_columns(pl.col("user_id", "variant").cast(pl.String))
        is_twice = rows.select("user_id", "variant").is_duplicated()
        if is_twice.any():
            user = rows.filter(is_twice)["user_id"][0]
            raise DataError(f"{path}: user '{user}' has two rows in one variant; sum them up to one")
        return cls(path, rows)

    def default_metrics(self) -> list[MetricSpec]:
        """The mean of every column of numbers."""
        return [
            MetricSpec(name=metric_name(name), numerator=Measure(event=name))
            for name, kind in self.rows.schema.items()
            if kind.is_numeric() and name not in RESERVED and not name.endswith(PRE_PERIOD)
        ]

    def observed(self, name: str, control: str | None = None) -> Experiment:
        """The experiment as the table shows it; see :func:`observed_experiment`."""
        return observed_experiment(self.path, name, self.rows["variant"], control)

    def users(
        self, experiment: Experiment | None, metrics: Sequence[MetricSpec], segments: Sequence[str] = ()
    ) -> UserTable:
        """Users of an experiment; with no experiment all users, in the variant ``all``.

        Raises:
            DataError: A column that a metric or a segment needs is missing or holds no finite numbers.
        """
        rows = self.rows
        measures = [measure for metric in metrics for measure in metric.measures]
        pre = [measure.pre_column for measure in measures if measure.pre_column in rows.columns]
        for column in dict.fromkeys([*(measure.column for measure in measures), *pre]):
            rows = rows.with_columns(self._numbers(column))
        for name in segments:
            if name not in rows.columns:
                raise DataError(f"{self.path}: has no column '{name}' to split by{did_you_mean(name, rows.columns)}")
            rows = rows.with_columns(pl.col(name).cast(pl.String).fill_null("(none)"))
        if experiment is None:
            return UserTable(
                self.path, rows.unique("user_id", keep="first", maintain_order=True).with_columns(variant=pl.lit("all"))
            )
        is_forced = pl.col("user_id").is_in(list(experiment.forced))
        forced, rows = rows.filter(is_forced), rows.filter(~is_forced)
        strange = rows.filter(~pl.col("variant").is_in(list(experiment.weights)))
        rows = rows.filter(~pl.col("user_id").is_in(strange["user_id"].implode()))
        is_crossed = rows["user_id"].is_duplicated()
        return UserTable(
            self.path,
            rows.filter(~is_crossed),
            crossed=rows.filter(is_crossed)["user_id"].n_unique(),
            unknown=dict(strange.group_by("variant").len().sort("variant").iter_rows()),
            forced=forced["user_id"].n_unique(),
        )

    def _numbers(self, column: str) -> pl.Series:
        if column not in self.rows.columns:
            hint = did_you_mean(column, self.rows.columns)
            raise DataError(f"{self.path}: has no column '{column}', which a metric needs{hint}")
        values = self.rows[column]
        if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
            raise DataError(f"{self.path}: column '{column}' holds {values.dtype}, wanted numbers")
        values = values.cast(pl.Float64)
        bad = ~values.is_finite().fill_null(False)
        if bad.any():
            raise DataError(
                f"{self.path}: column '{column}' is no finite number in row {_first(bad)}; write 0 for none"
            )
        return values


def _first(is_bad: pl.Series) -> int:
    """Row, from 1, of the first that is."""
    return int(is_bad.arg_true()[0]) + 1
