"""The label join: impressions of the event log meet what followed them, and become samples."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import polars as pl

from infnet.errors import DataError, StoreError
from infnet.schema import DatasetSpec
from infnet.serving.attribution import IDS, attribute, is_within, turned_positive, window_ms
from infnet.serving.events import IMPRESSION
from infnet.serving.log_lines import ORDER, read_lines
from infnet.serving.samples import Fates, JoinState, last_state, scan_parts, states_since, write_part
from infnet.serving.segments import reached
from infnet.serving.served_lookup import ServedLookup

__all__ = ["Delayed", "JoinReport", "join_labels"]

Delayed = Literal["wait", "fake_negative"]

_SKEW_MS = 3_600_000
"""How far the clocks of several writers may be apart."""
_MOST_LINES_AGAIN = 100_000
"""If no line gives a sample, the next join looks at them again, unless they are so many: then a partition without rows
says that it need not."""


@dataclass(frozen=True)
class JoinReport:
    """What a join did."""

    part: int | None
    """The partition that it wrote; None if there was nothing to write."""
    fates: Fates
    """Of the lines whose turn it was."""
    pending: int
    """Impressions whose turn is yet to come."""
    newest_impression_ms: int | None
    """The latest impression among the new samples."""


def join_labels(
    events: Path,
    out: Path,
    spec: DatasetSpec,
    *,
    now_ms: int | None = None,
    delayed: Delayed = "wait",
    max_age_s: float = 86_400.0,
) -> JoinReport:
    """Turn the impressions of a log whose time has come into samples (:func:`infnet.serving.samples.read_samples`):
    exactly one each, however often this is done and whenever it is killed.

    An event tells a label of the impression with its request and item if it is in the log and its time is within the
    task's window of the impression's, before or after: clocks of clients differ. Any of a positive value makes a binary
    label 1; of a regression task, the values are combined as it says. Without any, the label is 0.

    Args:
        events: Directory of the event log.
        out: Directory of the samples; made if it does not exist.
        spec: Its tasks say which events tell which labels.
        now_ms: As of when; the clock's time if None.
        delayed: ``wait``: an impression becomes a sample when the longest window has passed since it was received.
            ``fake_negative`` (Ktena et al. 2019): when the shortest has (or a regression task's, if longer), with what
            is known by then; a binary label that turns positive later within its window gives one more row, marked
            ``is_correction``, with that label alone.
        max_age_s: An impression that comes longer after its request is too late. What was logged so much (and a window)
            before the oldest line that still waits is not read again.

    Raises:
        DataError: There is no event log, or the disk is full.
        StoreError: Another join is at work in ``out``.
        ArtifactError: The newest partition cannot be read.
    """
    if not any((events / kind).is_dir() for kind in ("served", "events")):
        raise DataError(f"{events}: holds no event log (no served/ and no events/); give the directory a service writes to")
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    with _alone(out):
        return _Join(events, out, spec, delayed, now, round(1000 * max_age_s)).run()


class _Join:
    def __init__(self, log: Path, out: Path, spec: DatasetSpec, delayed: Delayed, now: int, max_age_ms: int) -> None:
        self.log, self.out, self.spec, self.max_age_ms = log, out, spec, max_age_ms
        self.is_correcting = delayed == "fake_negative"
        windows = [window_ms(task) for task in spec.tasks]
        final = [window_ms(task) for task in spec.tasks if task.kind == "regression"]
        horizon = max(min(windows), *final, 0) if self.is_correcting else max(windows)
        self.reach_ms = max_age_ms + max(windows) + _SKEW_MS
        self.state = last_state(out)
        self.lines = read_lines(log, self.state.decided, due_ms=now - horizon, reach_ms=self.reach_ms)
        events = [pl.col("type") == task.event_type for task in spec.tasks]
        self.callbacks = self.lines.known.filter(~pl.col("is_copy"), pl.any_horizontal(events))

    def run(self) -> JoinReport:
        fates = Fates(damaged=self.lines.damaged)
        chosen, requests, fates = self._chosen(fates)
        samples = attribute(chosen, self.callbacks, self.spec.tasks)
        corrections, their_requests = self._corrections()
        fates = self._fates_of_others(fates, samples, corrections)

        newest = samples["impression_ms"].to_numpy().max(initial=-1)
        report = JoinReport(None, fates, self.lines.pending.height, int(newest) if samples.height else None)
        if not (samples.height or corrections.height or self.lines.num_passed >= _MOST_LINES_AGAIN):
            return report
        received = samples["received_ms"].to_numpy().max(initial=self.state.newest_received_ms)
        state = JoinState(
            part=self.state.part + 1,
            decided=self.lines.decided,
            read=self.lines.read,
            newest_received_ms=int(received),
            newest_impression_ms=report.newest_impression_ms,
            fates=fates,
        )
        rows = pl.concat([samples.select(self._columns), corrections], how="diagonal")
        used = pl.concat([requests, their_requests], how="diagonal").unique("request_id", keep="first")
        write_part(self.out, state, rows, used.join(rows, on="request_id", how="semi").sort("request_id"))
        return replace(report, part=state.part)

    @property
    def _columns(self) -> list[str]:
        tasks = [task.name for task in self.spec.tasks]
        told = [*(f"label_{name}" for name in tasks), *(f"predicted_{name}" for name in tasks)]
        return [*IDS, "user_id", "time_ms", "impression_ms", "values", *told, "version", "is_correction"]

    @cached_property
    def _earlier(self) -> tuple[pl.LazyFrame, pl.LazyFrame] | None:
        """Samples and requests of partitions that lines may belong to."""
        numbers = [state.part for state in self._earlier_states]
        return scan_parts(self.out, numbers) if numbers else None

    @cached_property
    def _earlier_states(self) -> list[JoinState]:
        return states_since(self.out, self.lines.since_ms)

    @cached_property
    def _decided(self) -> pl.DataFrame:
        """Earlier samples, of the lines' requests: their labels, times and partitions."""
        if self._earlier is None:
            return pl.DataFrame(schema={name: pl.String for name in IDS} | {"impression_ms": pl.Int64, "part": pl.Int64})
        known = self.lines.known.lazy().select(IDS).unique()
        found = self._earlier[0].filter(~pl.col("is_correction")).join(known, on=IDS, how="semi")
        return found.select(*IDS, "impression_ms", "part", pl.col("^label_.*$")).collect()

    def _chosen(self, fates: Fates) -> tuple[pl.DataFrame, pl.DataFrame, Fates]:
        """Impressions that become samples, and their requests."""
        impressions = self.lines.impressions
        lookup = ServedLookup(self.log, self.out / "places", self.spec)
        oldest = impressions["received_ms"].to_numpy().min(initial=self.lines.since_ms + self.reach_ms)
        delivered, requests = lookup.find(impressions.select(IDS).unique(), int(oldest) - self.reach_ms)
        found = (
            impressions.select(*IDS, *ORDER[:1], impression_ms="time_ms")
            .with_row_index("arrival")
            .join(delivered, on=IDS)
            .sort("arrival")
        )
        in_time = found.filter(pl.max_horizontal("impression_ms", "received_ms") <= pl.col("time_ms") + self.max_age_ms)
        first = in_time.unique(IDS, keep="first", maintain_order=True).join(self._decided, on=IDS, how="anti")
        fates = replace_fates(
            fates,
            samples=first.height,
            duplicate_impressions=in_time.height - first.height,
            late_impressions=found.height - in_time.height,
            orphans=impressions.height - found.height,
        )
        return first.with_columns(is_correction=False).sort("impression_ms", *IDS), requests, fates
