"""Raw tables: CSV and Parquet files by glob pattern, as one lazy frame that knows which line a row came from."""

from __future__ import annotations

import bisect
import csv
import glob
import gzip
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from infnet.data.sources.csv_lines import check_lines, check_lines_exactly, open_text, unreadable
from infnet.errors import DataError, SpecError, did_you_mean

__all__ = ["ROW", "SIGNATURE", "RawTable", "StagedTable", "find_files", "read_table"]

ROW = " row"
"""Added column, Int64: running number over all rows of all files, in order."""
SIGNATURE = " signature"
"""Added column, UInt64: equal for rows that are equal in every column of the file."""

_CSV = (".csv", ".csv.gz")
_PARQUET = (".parquet", ".pq")


def find_files(raw: Path, patterns: Iterable[str], what: str) -> list[Path]:
    """The files that match, pattern by pattern, each by name.

    Raises:
        DataError: The directory does not exist, or a pattern matches nothing; the message names both.
    """
    if not raw.is_dir():
        raise DataError(f"{raw}: is no directory; give the directory that holds the raw files")
    found: list[Path] = []
    for pattern in patterns:
        matches = sorted(path for path in raw.glob(pattern) if path.is_file() and not _is_hidden(path, raw))
        if not matches:
            raise DataError(
                f"{raw}: no file matches '{pattern}' ({what}); wanted CSV (.csv, .csv.gz) or Parquet (.parquet) "
                f"there{_present(raw)}"
            )
        found += [path for path in matches if path not in found]
    for path in found:
        if not path.name.endswith(_CSV + _PARQUET):
            raise DataError(f"{path}: unknown file type; wanted .csv, .csv.gz or .parquet")
    return found


def _is_hidden(path: Path, raw: Path) -> bool:
    """Such as what this command itself is writing, if that lies below ``raw``."""
    return any(part.startswith(".") for part in path.relative_to(raw).parts)


def _present(raw: Path) -> str:
    names = [path.relative_to(raw).as_posix() for path in sorted(raw.rglob("*")) if path.name.endswith(_CSV + _PARQUET)]
    if not names:
        return ", found none of these"
    return f", found {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True)
class StagedTable:
    """A table ready to be scanned any number of times."""

    what: str
    """For messages: the log, the user table, .."""
    files: tuple[Path, ...]
    starts: tuple[int, ...]
    """Running number of each file's first row."""
    schema: dict[str, pl.DataType]
    """Raw columns and their types; text throughout if ``is_text``."""
    is_text: bool
    frame: pl.LazyFrame
    """The wanted raw columns and :data:`ROW`, with :data:`SIGNATURE` if it was asked for."""

    def where(self, row: int, *, short: bool = False) -> str:
        """File (its name alone if ``short``) and line (CSV) or row (Parquet, from 1) of a running row number."""
        index = bisect.bisect_right(self.starts, row) - 1
        inside = row - self.starts[index]
        file = self.files[index].name if short else self.files[index]
        return f"{file}, " + (f"line {inside + 2}" if self.is_text else f"row {inside + 1}")


class RawTable:
    """Files that are one table, not yet read.

    Attributes:
        schema: Columns by name; all text for CSV.
    """

    def __init__(self, raw: Path, patterns: Sequence[str], what: str) -> None:
        self.what = what
        self.files = find_files(raw, patterns, what)
        self.is_text = self.files[0].name.endswith(_CSV)
        schemas = [_schema(path) for path in self.files]
        self.schema = schemas[0]
        for path, schema in zip(self.files, schemas, strict=True):
            if path.name.endswith(_CSV) != self.is_text:
                raise DataError(f"{path}: CSV and Parquet in one table ({what}); convert one of them")
            for name in [*(self.schema.keys() - schema.keys()), *(schema.keys() - self.schema.keys())]:
                short = path if name not in schema else self.files[0]
                raise DataError(f"{short}: has no column '{name}', which other files of {what} have")
            for name, dtype in schema.items():
                if dtype != self.schema[name]:
                    raise DataError(
                        f"{path}: column '{name}' is {dtype}, but {self.schema[name]} in {self.files[0].name}; "
                        "write both with one type"
                    )

    def require(self, column: str, used_by: str) -> None:
        """Check that a column exists.

        Raises:
            SpecError: It does not; the message names who wants it and the nearest real column.
        """
        if column not in self.schema:
            raise SpecError(
                f"{used_by}: {self.what} has no column '{column}'{did_you_mean(column, self.schema)} ({self.files[0]})"
            )

    def stage(self, columns: Iterable[str], directory: Path, *, signature: bool = False) -> StagedTable:
        """Make the table scannable: CSV is checked line by line and rewritten as Parquet under ``directory``.

        Raises:
            DataError: A file is cut short, has lines of the wrong number of fields, or cannot be read.
        """
        wanted = [name for name in self.schema if name in set(columns)]
        schema = {name: self.schema[name] for name in wanted}
        paths, starts = self.files, [0]
        if self.is_text:
            paths = []
            for index, path in enumerate(self.files):
                paths.append(directory / f"{index:05d}.parquet")
                self._stage_csv(path, wanted, paths[-1], starts[-1], signature)
                starts.append(_after(pl.scan_parquet(paths[-1]), starts[-1]))
            # One scan of many files, not many scans in one frame: of those, Polars holds all rows in memory.
            frame = pl.scan_parquet(paths)
        else:
            for path in self.files:
                starts.append(starts[-1] + pl.scan_parquet(path).select(pl.len()).collect().item())
            frame = _select(pl.scan_parquet(paths, row_index_name=ROW), wanted, self.schema, signature)
        return StagedTable(self.what, tuple(self.files), tuple(starts[:-1]), schema, self.is_text, frame)

    def _stage_csv(self, path: Path, wanted: list[str], staged: Path, start: int, signature: bool) -> None:
        check_lines(path, len(self.schema))
        scan = pl.scan_csv(path, infer_schema=False, row_index_name=ROW, row_index_offset=start)
        scan = scan.filter(~pl.all_horizontal(pl.col(name).is_null() for name in self.schema))  # blank lines
        try:
            _select(scan, wanted, self.schema, signature).sink_parquet(
                staged, compression="lz4", statistics=False, mkdir=True
            )
        except pl.exceptions.ComputeError as error:
            if "No space left" in str(error):
                raise
            check_lines_exactly(path, len(self.schema))  # which knows the line
            raise unreadable(path, error) from error


def read_table(path: Path, what: str) -> pl.DataFrame:
    """A table of one file, in memory; of CSV, every column as text.

    Args:
        path: CSV or Parquet.
        what: For messages.

    Raises:
        DataError: The file is missing or damaged; names it, and the line of a CSV file.
    """
    if not path.is_file():
        raise DataError(f"{path}: is no file ({what}); give a CSV or Parquet file")
    table = RawTable(path.parent, [glob.escape(path.name)], what)
    with tempfile.TemporaryDirectory(prefix="infnet-table-") as staging:
        try:
            return table.stage(table.schema, Path(staging)).frame.drop(ROW).collect()
        except pl.exceptions.PolarsError as error:
            raise unreadable(path, error) from error


def _after(rows: pl.LazyFrame, start: int) -> int:
    """The running number after the last one, or ``start`` if there are no rows."""
    last = rows.select(pl.col(ROW).max()).collect(engine="streaming").item()
    return start if last is None else last + 1


def _select(scan: pl.LazyFrame, wanted: list[str], schema: Iterable[str], signature: bool) -> pl.LazyFrame:
    columns = [pl.col(ROW).cast(pl.Int64), *(pl.col(name) for name in wanted)]
    if signature:
        columns.append(pl.struct(pl.col(name) for name in schema).hash(0).alias(SIGNATURE))
    return scan.select(columns)


def _schema(path: Path) -> dict[str, pl.DataType]:
    try:
        if path.name.endswith(_PARQUET):
            return dict(pl.read_parquet_schema(path))
        with open_text(path) as lines:
            header = next(csv.reader(lines), [])
    except (pl.exceptions.PolarsError, UnicodeDecodeError, EOFError, gzip.BadGzipFile, csv.Error) as error:
        raise unreadable(path, error) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from error
    if not header:
        raise DataError(f"{path}: is empty; wanted a CSV file whose first line names the columns")
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{path}, line 1: column '{name}' stands there twice; rename one")
    return dict.fromkeys(header, pl.String())
