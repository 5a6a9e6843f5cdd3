"""The interaction log as typed rows: keys, time, events, labels and what the features of a request read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from infnet.data.expressions import columns_of, resolve_condition, resolve_number, text_columns_as_numbers
from infnet.data.log_check import check_log, raw_values
from infnet.data.log_columns import event_column, label_column, raw_column, value_column
from infnet.data.report import LogReport
from infnet.data.sources.files import ROW, SIGNATURE, RawTable, StagedTable
from infnet.errors import SpecError
from infnet.features import Clock, Feature, as_text, as_time_ms, text_as_time_ms
from infnet.schema import DatasetSpec, LogTable

__all__ = ["Log", "check_readable", "read_log"]

_EPOCH_FACTOR = {"s": 1000.0, "ms": 1.0, "us": 0.001}


@dataclass(frozen=True)
class Log:
    """The log after its first check."""

    table: StagedTable
    rows: pl.LazyFrame
    """Readable rows that the spec keeps: ROW, SIGNATURE, ``user`` and ``item`` (text), ``time`` (ms), ``extra`` (0,
    or 1 + k for the k-th extra split), and the event, label, value and raw columns."""
    request_features: tuple[Feature, ...]
    """Features whose value columns ``rows`` has; those that read a column of the item table are still to come."""
    report: LogReport
    first_ms: int
    last_ms: int


def read_log(spec: DatasetSpec, raw: Path, staging: Path, quarantine: Path) -> Log:
    """Find, check and type the log; rows without a readable key or time are set aside in ``quarantine``.

    Raises:
        SpecError: The spec names a column that does not exist, or an expression that does not fit the columns.
        DataError: A file is missing or damaged, a value does not fit its use, or too many rows are unreadable.
    """
    raw_table = RawTable(raw, spec.log.files, "the log")
    features = _request_features(spec)
    log_features = [f for f in features if f.reads == "column" or (f.reads == "item" and spec.item is None)]
    for feature in features:
        if spec.log.time is None and feature.reads in ("time", "item"):
            raise SpecError(f"feature '{feature.name}' of kind {feature.kind} reads the clock, but log.time is null")
    expressions = _expressions(spec)
    side_columns = _side_columns(spec, raw_table)
    for column, used_by in (
        (spec.log.user, "log.user"),
        (spec.log.item, "log.item"),
        *([] if spec.log.time is None else [(spec.log.time, "log.time")]),
        *((f.source, f"feature '{f.name}'") for f in log_features),
    ):
        raw_table.require(column, used_by)
    for feature in log_features:
        check_readable(feature, raw_table.schema[feature.source])
    used = {name for where, sql in expressions.items() for name in columns_of(sql, where, raw_table.schema)}
    keys = {spec.log.user, spec.log.item, *([spec.log.time] if spec.log.time else [])}
    raw_used = keys | {f.source for f in log_features} | side_columns
    table = raw_table.stage(used | raw_used, staging, signature=True)

    typed = text_columns_as_numbers(table, used)
    frame = table.frame.select(
        ROW, SIGNATURE, *(pl.col(name).alias(raw_column(name)) for name in sorted(raw_used)), **typed
    )
    # Expressions see the log's own names, so they come before columns of our making that a log may have as well.
    resolved = frame.select(
        *(ROW, SIGNATURE),
        *(raw_column(name) for name in sorted(raw_used)),
        _kept(spec, table, typed).alias("keep"),
        _extra(spec, table, typed).alias("extra"),
        *(
            resolve_condition(b.filter, f"behaviour '{b.name}'", table, typed).alias(event_column(b.name))
            for b in spec.behaviours
        ),
        *(resolve_number(t.label, f"task '{t.name}'", table, typed).alias(label_column(t.name)) for t in spec.tasks),
        _key(table, spec.log.user).alias("user"),
        _key(table, spec.log.item).alias("item"),
        _time(table, spec).alias("time"),
    )
    ready = [f for f in features if f.reads != "item" or spec.item is None]
    rows = resolved.with_columns(
        _problem(spec.log).alias("problem"),
        *(_value(f, table, spec.timezone).alias(value_column(f.name)) for f in ready),
    )
    report, first_ms, last_ms = check_log(spec, table, rows, [f for f in ready if f.reads != "time"], quarantine)
    wanted = [
        *(ROW, SIGNATURE, "user", "item", "time", "extra"),
        *(event_column(b.name) for b in spec.behaviours),
        *(label_column(t.name) for t in spec.tasks),
        *(value_column(f.name) for f in ready),
        *(raw_column(name) for name in sorted(side_columns)),
    ]
    kept = rows.filter(pl.col("problem").is_null() & pl.col("keep")).select(wanted)
    return Log(table, kept, tuple(ready), report, first_ms, last_ms)


def check_readable(feature: Feature, dtype: pl.DataType) -> None:
    """Raise a ``SpecError`` if the feature's kind cannot read a column of this type at all."""
    clock = Clock(pl.lit(0, dtype=pl.Int64), "UTC")
    try:
        pl.DataFrame(schema={"raw": dtype}).select(feature.read(pl.col("raw"), dtype, clock))
    except (SpecError, pl.exceptions.PolarsError) as error:
        raise SpecError(
            f"feature '{feature.name}': column '{feature.source}' is of type {dtype}, which kind '{feature.kind}' "
            "cannot read; declare another kind (tags or vector for lists)"
        ) from error


def _request_features(spec: DatasetSpec) -> list[Feature]:
    return [f for f in spec.features if f.side in ("context", "candidate")]


def _side_columns(spec: DatasetSpec, table: RawTable) -> set[str]:
    """Columns of the log that describe users or items, where these have no table of their own."""
    columns = set()
    for side, declared in (("user", spec.user), ("item", spec.item)):
        for feature in spec.features:
            if feature.side == side and declared is None and feature.reads == "column":
                table.require(feature.source, f"feature '{feature.name}'")
                columns.add(feature.source)
    return columns


def _expressions(spec: DatasetSpec) -> dict[str, str]:
    found = {f"behaviour '{b.name}'": b.filter for b in spec.behaviours}
    found |= {f"task '{t.name}'": t.label for t in spec.tasks}
    found |= {f"split.extra '{name}'": sql for name, sql in spec.split.extra.items()}
    return found | ({} if spec.log.keep is None else {"log.keep": spec.log.keep})


def _key(table: StagedTable, column: str) -> pl.Expr:
    return as_text(pl.col(raw_column(column)), table.schema[column])


def _time(table: StagedTable, spec: DatasetSpec) -> pl.Expr:
    """Int64 ms since 1970; the row's number if the file's order is the clock."""
    if spec.log.time is None:
        return pl.col(ROW)
    raw, dtype = pl.col(raw_column(spec.log.time)), table.schema[spec.log.time]
    if dtype.is_temporal():
        return as_time_ms(raw, dtype, spec.timezone)
    if spec.log.time_unit == "text":
        return text_as_time_ms(raw.cast(pl.String), spec.timezone)
    factor = _EPOCH_FACTOR[spec.log.time_unit]
    whole = raw.cast(pl.Int64, strict=False)
    number = (raw.cast(pl.Float64, strict=False) * factor).round().cast(pl.Int64, strict=False)
    if dtype.is_float():
        return number
    scaled = whole // 1000 if factor < 1 else whole * int(factor)
    return pl.coalesce(scaled, number)


def _problem(log: LogTable) -> pl.Expr:
    time = "" if log.time is None else f"no readable {log.time}"
    return (
        pl.when(pl.col("user").is_null())
        .then(pl.lit(f"no {log.user}"))
        .when(pl.col("item").is_null())
        .then(pl.lit(f"no {log.item}"))
        .when(pl.col("time").is_null())
        .then(pl.lit(time))
    )


def _kept(spec: DatasetSpec, table: StagedTable, typed: dict[str, pl.Expr]) -> pl.Expr:
    return pl.lit(True) if spec.log.keep is None else resolve_condition(spec.log.keep, "log.keep", table, typed)


def _extra(spec: DatasetSpec, table: StagedTable, typed: dict[str, pl.Expr]) -> pl.Expr:
    code = pl.lit(0, dtype=pl.Int8)
    for index, (name, sql) in reversed(list(enumerate(spec.split.extra.items()))):
        condition = resolve_condition(sql, f"split.extra '{name}'", table, typed)
        code = pl.when(condition).then(pl.lit(index + 1, dtype=pl.Int8)).otherwise(code)
    return code


def _value(feature: Feature, table: StagedTable, timezone: str) -> pl.Expr:
    return feature.read(*raw_values(feature, table), Clock(pl.col("time"), timezone))
