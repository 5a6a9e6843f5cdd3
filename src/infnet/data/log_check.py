"""One look at the whole log: what is wrong in it, how often, and where first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from infnet.data.log_columns import label_column, raw_column
from infnet.data.report import LogReport
from infnet.data.sources.files import ROW, StagedTable
from infnet.errors import DataError
from infnet.features import Clock, Feature
from infnet.schema import DatasetSpec

__all__ = ["check_log", "raw_values"]

_SAMPLE = 1000


def raw_values(feature: Feature, table: StagedTable) -> tuple[pl.Expr, pl.DataType]:
    """What a context or candidate feature reads of the log, and its type."""
    if feature.reads == "time":
        return pl.lit(None), pl.Null()
    return pl.col(raw_column(feature.source)), table.schema[feature.source]


def check_log(
    spec: DatasetSpec, table: StagedTable, rows: pl.LazyFrame, features: list[Feature], quarantine: Path
) -> tuple[LogReport, int, int]:
    """Count what is wrong in one pass, and stop at what cannot go on."""
    readable, clock = pl.col("problem").is_null(), Clock(pl.col("time"), spec.timezone)
    kept = readable & pl.col("keep")
    wrong_label = {
        t: kept & pl.col(label_column(t.name)).is_not_null() & ~pl.col(label_column(t.name)).is_in([0.0, 1.0])
        for t in spec.tasks
        if t.kind == "binary"
    }
    wrong_value = {f: kept & f.unreadable(*raw_values(f, table), clock) for f in features}
    problems = [f"no {spec.log.user}", f"no {spec.log.item}", f"no readable {spec.log.time}"]
    found: dict[str, Any] = (
        rows.select(
            pl.len().alias("rows"),
            kept.sum().alias("kept"),
            (readable & ~pl.col("keep")).sum().alias("not kept"),
            pl.col("time").filter(kept).min().alias("first"),
            pl.col("time").filter(kept).max().alias("last"),
            *((pl.col("problem") == problem).sum().alias(f"problem {problem}") for problem in problems),
            *(wrong.any().alias(f"task {t.name}") for t, wrong in wrong_label.items()),
            *(wrong.any().alias(f"feature {f.name}") for f, wrong in wrong_value.items()),
        )
        .collect(engine="streaming")
        .row(0, named=True)
    )
    dropped = {problem: found[f"problem {problem}"] for problem in problems if found[f"problem {problem}"]}
    if dropped:
        _set_aside(spec, table, rows, sum(dropped.values()) / found["rows"], quarantine)
    for task, wrong in wrong_label.items():
        if found[f"task {task.name}"]:
            row, value = _first(rows, wrong, label_column(task.name))
            raise DataError(
                f"{table.where(row)}: label '{task.name}' ({task.label}) is {value:g}, wanted 0 or 1; "
                "declare the task as regression or map it, such as 'rating >= 4'"
            )
    for feature, wrong in wrong_value.items():
        if found[f"feature {feature.name}"]:
            row, value = _first(rows, wrong, raw_column(feature.source))
            raise DataError(f"{table.where(row)}: column '{feature.source}' {feature.complaint(value)}")
    if spec.log.keep is not None:
        dropped["not kept"] = found["not kept"]
    if not found["kept"]:
        raise DataError(
            f"{table.files[0]}: no row is left of {found['rows']}{_reasons(dropped)}; check log.keep and keys"
        )
    report = LogReport(rows_read=found["rows"], dropped=dropped)
    return report, found["first"], found["last"]


def _reasons(dropped: dict[str, int]) -> str:
    return f" ({', '.join(f'{reason}: {count}' for reason, count in dropped.items())})" if dropped else ""


def _first(rows: pl.LazyFrame, wrong: pl.Expr, column: str) -> tuple[int, Any]:
    first = rows.filter(wrong).select(ROW, column).head(1).collect(engine="streaming")
    row, value = first.row(0)
    return row, value.to_list() if isinstance(value, pl.Series) else value


def _set_aside(spec: DatasetSpec, table: StagedTable, rows: pl.LazyFrame, share: float, quarantine: Path) -> None:
    names = [n for n in table.schema if n in {spec.log.user, spec.log.item, spec.log.time}]
    bad = rows.filter(pl.col("problem").is_not_null()).head(_SAMPLE)
    sample = bad.select(ROW, "problem", *(raw_column(name) for name in names)).collect(engine="streaming")
    if share > spec.log.max_bad_fraction:
        row, problem = sample.row(0)[:2]
        raise DataError(
            f"{table.where(row)}: {problem}, as in {share:.1%} of the rows; wanted at most "
            f"{spec.log.max_bad_fraction:.1%} (log.max_bad_fraction); mend them or check the columns that log names"
        )
    places = [table.where(row, short=True) for row in sample[ROW]]
    sample.select(
        pl.Series("where", places, dtype=pl.String),
        pl.col("problem"),
        *(pl.col(raw_column(name)).cast(pl.String).alias(name) for name in names),
    ).write_parquet(quarantine)
