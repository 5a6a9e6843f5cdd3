"""CSV files line by line: whether they are whole, which line is to blame, and how to say so."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import polars as pl

from infnet.errors import DataError

__all__ = ["check_lines", "check_lines_exactly", "open_text", "unreadable"]


def unreadable(path: Path, error: Exception) -> DataError:
    """That a file is not what its name says."""
    kind = "CSV" if path.name.endswith((".csv", ".csv.gz")) else "Parquet"
    reason = " ".join(str(error).split("\n\n")[0].split())[:200]
    return DataError(f"{path}: cannot be read as {kind} ({reason}); write the file again, {kind} in UTF-8")


def open_text(path: Path) -> IO[str]:
    """A CSV file as text, unpacked if it ends in .gz."""
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def check_lines(path: Path, num_columns: int) -> None:
    """Every line has as many fields as the header; Polars would fill up short ones in silence.

    Raises:
        DataError: One has not; names file, line, found and wanted.
    """
    line = pl.col("line")
    fields = pl.when(line.str.contains('"', literal=True)).then(line.str.replace_all(r'"[^"]*"', "")).otherwise(line)
    wrong = (fields.str.count_matches(",", literal=True) != num_columns - 1) & (line.str.len_bytes() > 0)
    try:
        suspects = pl.scan_lines(path).select(wrong.sum()).collect(engine="streaming").item()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(path, error) from error
    if suspects:  # or fields with line breaks inside: look again, slowly and exactly
        check_lines_exactly(path, num_columns)


def check_lines_exactly(path: Path, num_columns: int) -> None:
    """The same, slower, for fields with line breaks inside as well; also finds quotes that never close."""
    try:
        with open_text(path) as lines:
            for line, found, is_last in _field_counts(lines):
                if found != num_columns:
                    raise DataError(f"{path}, line {line}: {_complaint(found, num_columns, is_last)}")
    except csv.Error as error:
        line = error.args[-1]
        raise DataError(
            f'{path}, line {line}: has a quote that is not closed; write the field as ".." and a quote inside as ""'
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        raise unreadable(path, error) from error


def _complaint(found: int, wanted: int, is_last: bool) -> str:
    if found > wanted:
        return f"has {found} fields where the header names {wanted} columns; quote values that contain a comma"
    if is_last:
        return f"ends after {found} of {wanted} columns: the file is cut short; fetch or write it again"
    return f"has {found} of {wanted} columns; mend or remove the line"


def _field_counts(lines: IO[str]) -> Iterator[tuple[int, int, bool]]:
    """Line number, fields and whether it is the last, of every line that is not blank.

    Raises:
        csv.Error: With the number of the line that cannot be split as its last argument.
    """
    reader = csv.reader(lines, strict=True)
    before: tuple[int, int] | None = None
    while True:
        begins = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise csv.Error(str(error), begins) from error
        if not fields:
            continue
        if before is not None:
            yield (*before, False)
        before = (begins, len(fields))
    if before is not None:
        yield (*before, True)
