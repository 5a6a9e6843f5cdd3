"""The expressions of a spec (behaviour filters, labels, keep, extra splits), checked against the log's real columns.

They are SQL as Polars reads it, over one row at a time: ``is_click == 1 AND tab <> 3``, ``play_time_ms / 1000.0``.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from infnet.data.sources.files import ROW, StagedTable
from infnet.errors import DataError, SpecError, did_you_mean

__all__ = ["columns_of", "resolve_condition", "resolve_number", "text_columns_as_numbers"]


def _parse(sql: str, where: str) -> pl.Expr:
    try:
        return pl.sql_expr(sql)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"{where}: '{sql}' is no expression ({reason}); write SQL such as \"is_click == 1\"") from error


def columns_of(sql: str, where: str, schema: Iterable[str]) -> set[str]:
    """The columns an expression reads.

    Raises:
        SpecError: It is no SQL expression, or names a column that ``schema`` does not have.
    """
    known = set(schema)
    columns = set(_parse(sql, where).meta.root_names())
    for name in sorted(columns - known):
        raise SpecError(f"{where}: '{sql}' names the column '{name}', which does not exist{did_you_mean(name, known)}")
    return columns


def text_columns_as_numbers(table: StagedTable, columns: Iterable[str]) -> dict[str, pl.Expr]:
    """CSV columns for use in expressions: as Int64, Float64 or Boolean if every value reads as one, else as text."""
    names = sorted(columns)
    if not table.is_text or not names:
        return {name: pl.col(name) for name in names}
    readings = {name: _readings(pl.col(name)) for name in names}
    failures = [
        (expr.is_null() & pl.col(name).is_not_null()).any().alias(f"{name} {kind}")
        for name, kinds in readings.items()
        for kind, expr in kinds.items()
    ]
    failed = table.frame.select(failures).collect(engine="streaming").row(0, named=True)
    return {
        name: next((expr for kind, expr in kinds.items() if not failed[f"{name} {kind}"]), pl.col(name))
        for name, kinds in readings.items()
    }


def _readings(text: pl.Expr) -> dict[str, pl.Expr]:
    lower = text.str.to_lowercase()
    return {
        "int": text.cast(pl.Int64, strict=False),
        "float": text.cast(pl.Float64, strict=False),
        "bool": pl.when(lower == "true").then(True).when(lower == "false").then(False),
    }


def resolve_condition(sql: str, where: str, table: StagedTable, typed: dict[str, pl.Expr]) -> pl.Expr:
    """A Boolean expression over the typed columns, never null: missing counts as not true.

    Args:
        typed: How each column is read, from :func:`text_columns_as_numbers`.

    Raises:
        SpecError: The expression does not fit the columns' types, or is no condition.
        DataError: It would, but for a value that is no number; names file, line, column and value.
    """
    expr, dtype = _resolve(sql, where, table, typed)
    if not (dtype == pl.Boolean or dtype.is_numeric()):
        raise _misfit(sql, where, table, typed, f'gives {dtype}, wanted a condition such as "is_click == 1"')
    return expr.cast(pl.Boolean).fill_null(False)


def resolve_number(sql: str, where: str, table: StagedTable, typed: dict[str, pl.Expr]) -> pl.Expr:
    """A Float64 expression over the typed columns; null, NaN and infinities are missing.

    Raises as :func:`resolve_condition` does.
    """
    expr, dtype = _resolve(sql, where, table, typed)
    if not (dtype == pl.Boolean or dtype.is_numeric() or dtype == pl.Null):
        raise _misfit(sql, where, table, typed, f"gives {dtype}, wanted a number")
    number = expr.cast(pl.Float64)
    return pl.when(number.is_finite()).then(number)


def _resolve(sql: str, where: str, table: StagedTable, typed: dict[str, pl.Expr]) -> tuple[pl.Expr, pl.DataType]:
    columns = columns_of(sql, where, table.schema)
    expr = _parse(sql, where)
    empty = pl.DataFrame(schema=table.schema).select(**{name: typed[name] for name in sorted(columns)})
    try:
        result = empty.select(expr.alias("result"))
    except pl.exceptions.PolarsError as error:
        raise _misfit(sql, where, table, typed, str(error).splitlines()[0]) from error
    if columns and result.height:
        raise SpecError(f"{where}: '{sql}' sums up many rows into one; wanted an expression over one row")
    return expr, result.schema["result"]


def _misfit(sql: str, where: str, table: StagedTable, typed: dict[str, pl.Expr], reason: str) -> SpecError | DataError:
    """The value to blame if a CSV column holds text where nearly all is numbers, else the expression."""
    for name in sorted(columns_of(sql, where, table.schema)):
        if not table.is_text or typed[name].meta.root_names() != [name] or not typed[name].meta.is_column():
            continue
        bad = pl.col(name).is_not_null() & pl.col(name).cast(pl.Float64, strict=False).is_null()
        first = table.frame.filter(bad).select(ROW, name).head(1).collect(engine="streaming")
        if first.height:
            row, value = first.row(0)
            return DataError(
                f"{table.where(row)}: column '{name}' is {value!r}, wanted a number ({where} reads it as '{sql}'); "
                "mend the value, or compare with text such as 'a'"
            )
    return SpecError(f"{where}: '{sql}' does not fit the columns ({reason})")
