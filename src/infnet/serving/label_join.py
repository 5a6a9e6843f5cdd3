"""The label join: impressions of the event log meet what followed them, and become samples."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import polars as pl

from infnet.errors import DataError
from infnet.schema import DatasetSpec
from infnet.serving.attribution import IDS, attribute, is_within, turned_positive, window_ms
from infnet.serving.events import IMPRESSION
from infnet.serving.log_lines import read_lines
from infnet.serving.samples import Fates, JoinState, alone, last_state, scan_parts, states_since, write_part
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
        raise DataError(
            f"{events}: holds no event log (no served/ and no events/); give the directory a service writes to"
        )
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    with alone(out):
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
        self.lines = read_lines(
            log, self.state.decided, due_ms=now - horizon, reach_ms=self.reach_ms, looks_ahead=self.is_correcting
        )
        events = [pl.col("type") == task.event_type for task in spec.tasks]
        self.callbacks = self.lines.known.filter(~pl.col("is_copy"), pl.any_horizontal(events))
        self.fates: dict[str, int] = {}

    def run(self) -> JoinReport:
        impressions, requests = self._accepted()
        samples = attribute(impressions, self.callbacks, self.spec.tasks)
        corrections, their_requests = self._corrections()
        self._count_others(samples, corrections)

        newest = samples["impression_ms"].to_numpy().max(initial=-1)
        report = JoinReport(None, Fates(**self.fates), self.lines.pending.height, int(newest) if len(samples) else None)
        if samples.is_empty() and corrections.is_empty() and self.lines.num_passed < _MOST_LINES_AGAIN:
            return report
        received = samples["received_ms"].to_numpy().max(initial=self.state.newest_received_ms)
        state = JoinState(
            part=self.state.part + 1,
            decided=self.lines.decided,
            read=self.lines.read,
            newest_received_ms=int(received),
            newest_impression_ms=report.newest_impression_ms,
            fates=report.fates,
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
    def _states(self) -> list[JoinState]:
        """Of the partitions with samples that lines may belong to."""
        return states_since(self.out, self.lines.since_ms)

    @cached_property
    def _decided(self) -> pl.DataFrame:
        """Earlier samples that lines are of: ``part``, ``impression_ms`` and labels."""
        if not self._states:
            return pl.DataFrame(schema=dict.fromkeys(IDS, pl.String) | {"impression_ms": pl.Int64, "part": pl.Int64})
        samples, _ = scan_parts(self.out, [state.part for state in self._states])
        ids = self.lines.known.lazy().select(IDS).unique()
        found = samples.filter(~pl.col("is_correction")).join(ids, on=IDS, how="semi")
        return found.select(*IDS, "part", "impression_ms", pl.col("^label_.*$")).collect()

    def _accepted(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Impressions that become samples, and requests with theirs among them."""
        impressions = self.lines.impressions.select(*IDS, "received_ms", impression_ms="time_ms")
        lookup = ServedLookup(self.log, self.out / "places", self.spec)
        oldest = impressions["received_ms"].to_numpy().min(initial=self.lines.since_ms + self.reach_ms)
        delivered, requests = lookup.find(impressions.select(IDS).unique(), int(oldest) - self.reach_ms)
        found = impressions.join(delivered, on=IDS, maintain_order="left")
        came = pl.max_horizontal("impression_ms", "received_ms")
        in_time = found.filter(came <= pl.col("time_ms") + self.max_age_ms)
        # They are in the order of their arrival.
        first = in_time.unique(IDS, keep="first", maintain_order=True).join(self._decided, on=IDS, how="anti")
        self.fates |= {
            "samples": first.height,
            "duplicate_impressions": in_time.height - first.height,
            "late_impressions": found.height - in_time.height,
            "orphans": impressions.height - found.height,
        }
        return first.with_columns(is_correction=False).sort("impression_ms", *IDS), requests

    def _corrections(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows for labels of earlier samples that have turned positive, and their requests."""
        wrong = []
        for task in self.spec.tasks if self.is_correcting else ():
            if task.kind == "binary":
                positive = turned_positive(self._decided, self.callbacks.filter("is_new"), task)
                wrong.append(positive.with_columns(task=pl.lit(task.name)))
        if not wrong or not self._states:
            return pl.DataFrame(), pl.DataFrame()
        ids = pl.concat(wrong).lazy()
        samples, requests = scan_parts(self.out, [state.part for state in self._states])
        corrected = pl.coalesce(
            pl.when(pl.col(f"label_{task.name}").is_not_null()).then(pl.lit(task.name)) for task in self.spec.tasks
        )
        done = samples.filter("is_correction").select(*IDS, task=corrected)
        ids = ids.join(done, on=[*IDS, "task"], how="anti")
        labels = [
            pl.when(pl.col("task") == task.name).then(1.0).cast(pl.Float32).alias(f"label_{task.name}")
            for task in self.spec.tasks
        ]
        rows = samples.filter(~pl.col("is_correction")).join(ids, on=IDS)
        rows = rows.with_columns(*labels, is_correction=True).sort("impression_ms", *IDS, "task").drop("part", "task")
        return rows.collect(), requests.join(ids, on="request_id", how="semi").collect()

    def _count_others(self, samples: pl.DataFrame, corrections: pl.DataFrame) -> None:
        """Fates of lines that are no impressions."""
        passed = self.lines.known.filter("is_new", "is_passed")
        events = passed.filter(~pl.col("is_copy"), pl.col("type") != IMPRESSION)
        of_task = pl.col("type").is_in([task.event_type for task in self.spec.tasks])
        of_behaviour = pl.col("type").is_in([behaviour.event_type for behaviour in self.spec.behaviours])
        callbacks = self._with_impressions(events.filter(of_task), samples)
        windows = [
            pl.when(pl.col("type") == task.event_type).then(is_within(window_ms(task))) for task in self.spec.tasks
        ]
        # Known when its impression became a sample, or good for a correction still.
        counted = pl.col("part").is_null() | pl.col("is_seen")
        if self.is_correcting:
            binary = [task.event_type for task in self.spec.tasks if task.kind == "binary"]
            counted |= pl.col("type").is_in(binary) & (pl.col("value") > 0)
        known = callbacks.filter(pl.col("impression_ms").is_not_null())
        used = known.filter(pl.any_horizontal(windows), counted)
        self.fates |= {
            "callbacks": used.height,
            "late_callbacks": known.height - used.height,
            "callbacks_without_impression": callbacks.height - known.height,
            "other_events": events.filter(~of_task & of_behaviour).height,
            "duplicate_events": int(passed["is_copy"].sum()),
            "unknown_types": events.filter(~of_task & ~of_behaviour).height,
            "damaged": self.lines.damaged,
            "corrections": corrections.height,
        }

    def _with_impressions(self, callbacks: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
        """Callbacks with ``impression_ms`` of theirs and, of those that became a sample earlier, its ``part`` and
        whether the callback was known then."""
        ids = [*IDS, "impression_ms"]
        impressions = pl.concat(
            [
                self._decided.select(*ids, "part"),
                samples.select(ids),
                self.lines.pending.select(*IDS, impression_ms="time_ms").unique(IDS, keep="first", maintain_order=True),
            ],
            how="diagonal",
        ).unique(IDS, keep="first", maintain_order=True)
        ends = [(s.part, w, n, end) for s in self._states for w, (n, end) in reached(s.read).items()]
        schema = {"part": pl.Int64, "writer": pl.String, "read_number": pl.Int64, "read_end": pl.Int64}
        read = pl.DataFrame(ends, schema=schema, orient="row")
        is_seen = (pl.col("number") < pl.col("read_number")) | (
            (pl.col("number") == pl.col("read_number")) & (pl.col("end") <= pl.col("read_end"))
        )
        found = callbacks.join(impressions, on=IDS, how="left").join(read, on=["part", "writer"], how="left")
        return found.with_columns(is_seen=is_seen.fill_null(False))
