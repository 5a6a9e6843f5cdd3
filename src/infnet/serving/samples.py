"""Samples: impressions with their labels, in partitions that appear whole, one after the other."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from infnet.data.workspace import replacing
from infnet.errors import ArtifactError, DataError, StoreError
from infnet.serving.segments import Position

__all__ = [
    "Fates",
    "JoinState",
    "alone",
    "last_part",
    "last_state",
    "read_samples",
    "scan_parts",
    "states_since",
    "write_part",
]

_STATE, _SAMPLES, _REQUESTS = "join.json", "samples.parquet", "requests.parquet"
_PART = re.compile(r"part-(\d+)")
_FORMAT = 1


class Fates(msgspec.Struct, frozen=True):
    """What became of the lines of an event log, each of which has one fate. ``corrections`` are rows, not lines."""

    samples: int = 0
    """Impressions that became one."""
    duplicate_impressions: int = 0
    """Of an item and a request that have a sample."""
    late_impressions: int = 0
    """Too long after their request."""
    orphans: int = 0
    """Impressions whose request is not in the log, or did not deliver the item."""
    callbacks: int = 0
    """Events that tell a label of an impression."""
    late_callbacks: int = 0
    """Events after their task's window, or after their impression had become a sample that is not corrected."""
    callbacks_without_impression: int = 0
    other_events: int = 0
    """Of a behaviour that is no task."""
    duplicate_events: int = 0
    """Of an id that came before."""
    unknown_types: int = 0
    """Neither an impression nor of a task or behaviour."""
    damaged: int = 0
    """Lines that cannot be read."""
    corrections: int = 0
    """Labels that turned positive after their sample had been made."""


class JoinState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a label join stands; that of the newest partition holds."""

    part: int
    decided: Position
    """Lines of the log up to here have their fate."""
    read: Position
    """Lines up to here were known when this partition was made."""
    newest_received_ms: int
    """No impression of this partition or an earlier one was received later."""
    newest_impression_ms: int | None
    """The latest impression of this partition."""
    fates: Fates
    """Of the lines that this partition decided about."""
    format: int = _FORMAT


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Meanwhile nobody else writes partitions; the directory is made if it does not exist.

    Raises:
        StoreError: Somebody does already.
        DataError: The directory cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(
            f"{out}: cannot hold samples ({error.strerror}); give another directory or mend its rights"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{out}: another join is at work there; wait for it, or give another directory") from error
        yield
    finally:
        os.close(lock)


def last_part(out: Path) -> int:
    """Number of the newest partition, 0 if there is none."""
    return max(_numbers(out), default=0)


def last_state(out: Path) -> JoinState:
    """Where the join stands.

    Raises:
        ArtifactError: It cannot be read.
    """
    number = last_part(out)
    if not number:
        return JoinState(part=0, decided={}, read={}, newest_received_ms=0, newest_impression_ms=None, fates=Fates())
    return _state(out, number)


def states_since(out: Path, received_ms: int) -> list[JoinState]:
    """Those of the newest partitions, among which are all that have an impression received at this time or later."""
    found = []
    for number in sorted(_numbers(out), reverse=True):
        state = _state(out, number)
        if state.newest_received_ms < received_ms:
            break
        found.append(state)
    return found[::-1]


def read_samples(out: Path, *, since_part: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The samples of all partitions after one, and the requests that they belong to, each once.

    Samples have ``request_id, item_id, user_id, time_ms`` (of the request), ``impression_ms, values`` (JSON of the raw
    candidate values), per task ``label_<task>`` (null: not known) and ``predicted_<task>``, ``version`` (of the model)
    and ``is_correction``: such a row sets the one label that has turned positive since its sample was made.
    Requests have ``request_id, user_id, time_ms, version, context`` (JSON), ``user`` (JSON, null: that of the bundle)
    and per behaviour ``<behaviour>_items`` and ``<behaviour>_times``, most recent first.

    Raises:
        ArtifactError: A partition cannot be read.
    """
    numbers = sorted(number for number in _numbers(out) if number > since_part)
    if not numbers:
        return pl.DataFrame(), pl.DataFrame()
    try:
        samples, requests = scan_parts(out, numbers)
        return samples.drop("part").collect(), requests.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ArtifactError(
            f"{out}: a partition of samples is damaged ({error}); remove {out} to join again"
        ) from error


def scan_parts(out: Path, numbers: Sequence[int]) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Samples, with ``part``, and requests (each once, the latest) of some partitions, at least one."""
    samples = [
        pl.scan_parquet(_path(out, number) / _SAMPLES).with_columns(part=pl.lit(number, dtype=pl.Int64))
        for number in numbers
    ]
    requests = [pl.scan_parquet(_path(out, number) / _REQUESTS) for number in numbers]
    return (
        pl.concat(samples, how="diagonal"),
        pl.concat(requests, how="diagonal").unique("request_id", keep="last", maintain_order=True),
    )


def write_part(out: Path, state: JoinState, samples: pl.DataFrame, requests: pl.DataFrame) -> None:
    """Write a partition, which appears by one rename, after everything in it is on the disk.

    Raises:
        DataError: The disk is full, or the directory cannot be written.
    """
    for left in out.glob(".part-*"):  # by a join that was killed
        shutil.rmtree(left, ignore_errors=True)
    with replacing(_path(out, state.part), _STATE) as directory:
        samples.write_parquet(directory / _SAMPLES)
        requests.write_parquet(directory / _REQUESTS)
        (directory / _STATE).write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
        for path in (*directory.iterdir(), directory):
            _sync(path)
    _sync(out)


def _numbers(out: Path) -> list[int]:
    found = (_PART.fullmatch(path.name) for path in out.iterdir()) if out.is_dir() else ()
    return [int(match[1]) for match in found if match]


def _path(out: Path, number: int) -> Path:
    return out / f"part-{number:06d}"


def _state(out: Path, number: int) -> JoinState:
    path = _path(out, number) / _STATE
    try:
        document: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        if document.get("format") != _FORMAT:
            raise ArtifactError(
                f"{path}: is of format {document.get('format')}, this package reads format {_FORMAT}; "
                f"remove {out} to join again"
            )
        return msgspec.convert(document, JoinState)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, AttributeError) as error:
        raise ArtifactError(f"{path}: is damaged ({error}); remove {out} to join again") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
