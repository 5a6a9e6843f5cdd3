"""An event log as an experiment sees it: requests with their variants, and events with their users."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from infnet.errors import DataError, did_you_mean
from infnet.experiments.observed import observed_experiment
from infnet.experiments.spec import Experiment
from infnet.serving.events import IMPRESSION
from infnet.serving.log_reader import parse_lines
from infnet.serving.segments import read_complete

__all__ = ["ExperimentLog"]

_EVENT = {
    "event_id": pl.String,
    "request_id": pl.String,
    "type": pl.String,
    "time_ms": pl.Int64,
    "value": pl.Float64,
    "user_id": pl.String,
}


@dataclass(frozen=True)
class ExperimentLog:
    """What an event log holds that bears on one experiment; every request and every event once."""

    directory: Path
    requests: pl.DataFrame
    """``request_id, user_id, time_ms, took_ms, is_degraded, variant``, and a text column per segment; ``variant`` is
    null if the request was not answered under the experiment."""
    events: pl.DataFrame
    """``user_id, type, time_ms, value``; an event is of its request's user, and not earlier than that request."""
    damaged: int
    """Lines that cannot be read."""
    strayed: int
    """Events of which neither the log nor the event itself says whose they are."""

    @classmethod
    def read(cls, directory: Path, experiment: str | None, segments: Sequence[str] = ()) -> ExperimentLog:
        """Read a log, also while it is being written.

        Args:
            directory: Holds ``served`` and ``events``.
            experiment: Name of the experiment; None for all requests alike.
            segments: Names of context values or user features to split users by.

        Raises:
            DataError: There is no log, nobody was served, or no request names a segment.
        """
        requests, bad_requests = _requests(directory, experiment, segments)
        for name in segments:
            if requests[f"segment:{name}"].null_count() == requests.height:
                raise DataError(
                    f"{directory}: no request has '{name}' in its context or among its user's features; segments are "
                    "named after those"
                )
        events, bad_events, strayed = _events(directory, requests)
        return cls(directory, requests, events, bad_requests + bad_events, strayed)

    @property
    def event_types(self) -> list[str]:
        """Of what users did with what they saw."""
        return sorted(set(self.events["type"].unique()) - {IMPRESSION})

    def observed(self, name: str, control: str | None = None) -> Experiment:
        """The experiment as the log shows it; see :func:`observed_experiment`."""
        found = self.requests["variant"].drop_nulls().unique()
        if not len(found):
            hint = did_you_mean(name, self._named())
            raise DataError(f"{self.directory}: no request was answered under '{name}'{hint}")
        return observed_experiment(self.directory, name, found, control)

    def _named(self) -> set[str]:
        """Experiments that any request was answered under."""
        schema = {"request_id": pl.String, "experiments": pl.String}  # an object read as text stays JSON
        names = set[str]()
        for path in _files(self.directory, "served"):
            texts = parse_lines(read_complete(path), schema)["experiments"].drop_nulls().unique()
            names |= {name for text in texts for name in _keys(text)}
        return names


def _requests(directory: Path, experiment: str | None, segments: Sequence[str]) -> tuple[pl.DataFrame, int]:
    inner = pl.Struct(dict.fromkeys(segments, pl.String))
    schema: dict[str, Any] = {
        "request_id": pl.String,
        "user_id": pl.String,
        "time_ms": pl.Int64,
        "degraded": pl.List(pl.String),
        "took_ms": pl.Float64,
        **({"context": inner, "user": inner} if segments else {}),
        **({} if experiment is None else {"experiments": pl.Struct({experiment: pl.String})}),
    }
    variant = pl.lit("all") if experiment is None else pl.col("experiments").struct.field(experiment)
    frames, damaged = [], 0
    for path in _files(directory, "served"):
        frame, bad = _readable(path, schema, ("request_id", "user_id", "time_ms"))
        damaged += bad
        frames.append(
            frame.select(
                "request_id",
                "user_id",
                "time_ms",
                pl.col("took_ms").fill_null(0.0),
                is_degraded=pl.col("degraded").list.len().fill_null(0) > 0,
                variant=variant,
                **{
                    f"segment:{name}": pl.coalesce(
                        pl.col("context").struct.field(name), pl.col("user").struct.field(name)
                    )
                    for name in segments
                },
            )
        )
    if not sum(frame.height for frame in frames):
        raise DataError(f"{directory / 'served'}: holds no answered request; give the directory of an event log")
    return pl.concat(frames).unique("request_id", keep="first", maintain_order=True), damaged


def _events(directory: Path, requests: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    frames, damaged = [pl.DataFrame(schema=_EVENT)], 0
    for path in _files(directory, "events"):
        frame, bad = _readable(path, _EVENT, ("event_id", "request_id", "type", "time_ms"))
        damaged += bad
        frames.append(frame.select(list(_EVENT)))
    asked = requests.lazy().select("request_id", asked_by="user_id", asked_ms="time_ms")
    events = (
        pl.concat(frames)
        .lazy()
        .unique("event_id", keep="first", maintain_order=True)
        .join(asked, on="request_id", how="left", maintain_order="left")
        .select(
            pl.coalesce("asked_by", "user_id").alias("user_id"),
            "type",
            pl.max_horizontal("time_ms", "asked_ms"),  # clocks of clients may be slow
            pl.col("value").fill_null(1.0),
        )
        .collect()
    )
    owned = events.filter(pl.col("user_id").is_not_null())
    return owned, damaged, events.height - owned.height


def _files(directory: Path, kind: str) -> list[Path]:
    folder = directory / kind
    if not folder.is_dir():
        raise DataError(f"{folder}: is no directory; an event log holds served and events")
    return sorted(folder.glob("*.ndjson"))


def _readable(path: Path, schema: Mapping[str, Any], needed: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """The lines of a file that hold what is needed, and how many do not."""
    lines = parse_lines(read_complete(path), schema)
    readable = lines.filter(pl.all_horizontal(pl.col(list(needed)).is_not_null()))
    return readable, lines.height - readable.height


def _keys(text: str) -> list[str]:
    found = json.loads(text)
    return list(found) if isinstance(found, dict) else []
