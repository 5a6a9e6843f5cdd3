"""A log whose every line and time is chosen, and what a label join must make of it, one line at a time."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from infnet.schema import DatasetSpec
from infnet.serving.events import IMPRESSION, Event, Served, ServedHistory
from infnet.serving.segments import Segment


def an_event(request_id: str, item_id: str, kind: str, time_ms: int, **changes: Any) -> Event:
    """Received when it happened, unless told otherwise."""
    given = {"event_id": f"{request_id}/{item_id}/{kind}/{time_ms}", "received_ms": time_ms}
    return Event(request_id=request_id, item_id=item_id, type=kind, time_ms=time_ms, **(given | changes))


def a_request(request_id: str, items: list[str], time_ms: int, **changes: Any) -> Served:
    """Of user ``u``, with a value of its own for each item."""
    given: dict[str, Any] = {
        "user_id": "u",
        "received_ms": time_ms,
        "version": "v1",
        "context": {"tab": "ä", "temperature": 1.50},
        "user": None,
        "histories": {"click": ServedHistory(["9", "8"], [time_ms - 1, time_ms - 2])},
        "values": {"rank": list(range(len(items))), "reasons": ["new,near"] * len(items)},
        "predictions": {"click": [i / 8 for i in range(len(items))]},
        "scores": [0.0] * len(items),
        "degraded": [],
    }
    return Served(request_id=request_id, time_ms=time_ms, items=items, **(given | changes))


@dataclass
class LogFiles:
    """Writes the segments of a log by hand."""

    path: Path
    lines: list[tuple[str, Event]] = field(default_factory=list)
    """Writer and event, in the order of writing."""
    requests: dict[str, Served] = field(default_factory=dict)
    _numbers: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for kind in ("served", "events"):
            (self.path / kind).mkdir(parents=True)

    def serve(self, served: Served, writer: str = "w") -> None:
        self.requests[served.request_id] = served
        self._append("served", writer, served)

    def tell(self, *events: Event, writer: str = "w") -> None:
        for event in events:
            self.lines.append((writer, event))
            self._append("events", writer, event)

    def rotate(self, kind: str = "events", writer: str = "w") -> None:
        self._numbers[kind, writer] += 1

    def _append(self, kind: str, writer: str, record: Event | Served) -> None:
        segment = Segment.named(self.path / kind, writer, self._numbers[kind, writer])
        with segment.path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")


class JoinOracle:
    """The label join as its words say it, over a log's lines in lists.

    Attributes:
        samples: Rows (request, item, impression time, labels by task, the task that it corrects or None), in the order
            in which joins made them.
        fates: Of the last join that was remembered.
    """

    def __init__(self, log: LogFiles, spec: DatasetSpec, delayed: str, max_age_ms: int) -> None:
        self.log, self.spec, self.delayed, self.max_age_ms = log, spec, delayed, max_age_ms
        self.decided: set[int] = set()
        self.samples: list[tuple[str, str, int, dict[str, float | None], str | None]] = []
        self.known_at: dict[tuple[str, str], int] = {}
        self.fates: Counter[str] = Counter()

    def join(self, now_ms: int) -> bool:
        """Whether it made rows; if not, nothing is remembered."""
        tasks = self.spec.tasks
        windows = {task.name: round(task.window_s * 1000) for task in tasks}
        horizon = max(windows.values())
        if self.delayed == "fake_negative":
            horizon = max(
                min(windows.values()), *(windows[task.name] for task in tasks if task.kind == "regression"), 0
            )
        lines = self.log.lines
        passes, blocked = set(self.decided), set()
        for index, (writer, event) in enumerate(lines):
            if index not in self.decided and (writer in blocked or event.received_ms + horizon > now_ms):
                blocked.add(writer)
            else:
                passes.add(index)
        arrival = sorted(
            range(len(lines)), key=lambda i: (i not in self.decided, lines[i][1].received_ms, lines[i][0], i)
        )
        first: dict[str, int] = {}
        for index in arrival:
            first.setdefault(lines[index][1].event_id, index)
        now = [index for index in arrival if index in passes and index not in self.decided]
        real = [lines[index][1] for index in arrival if first[lines[index][1].event_id] == index]

        fates: Counter[str] = Counter()
        made = {(request, item): at for request, item, at, _, corrected in self.samples if corrected is None}
        fresh: list[tuple[str, str, int, dict[str, float | None], str | None]] = []
        rest: list[tuple[int, Event]] = []
        for index in now:
            event = lines[index][1]
            if first[event.event_id] != index:
                fates["duplicate_events"] += 1
            elif event.type != IMPRESSION:
                rest.append((index, event))
            else:
                served = self.log.requests.get(event.request_id)
                key = (event.request_id, event.item_id)
                if served is None or event.item_id not in served.items:
                    fates["orphans"] += 1
                elif max(event.time_ms, event.received_ms) > served.time_ms + self.max_age_ms:
                    fates["late_impressions"] += 1
                elif key in made:
                    fates["duplicate_impressions"] += 1
                else:
                    made[key] = event.time_ms
                    fates["samples"] += 1
                    labels = {task.name: self._label(task, event, real) for task in tasks}
                    fresh.append((*key, event.time_ms, labels, None))

        corrections = [] if self.delayed == "wait" else self._corrections(real, windows)
        fates["corrections"] = len(corrections)
        impressions = dict(made)
        for event in real:
            if event.type == IMPRESSION and not any(lines[i][1] is event for i in passes):
                impressions.setdefault((event.request_id, event.item_id), event.time_ms)
        for index, event in rest:
            mine = [task for task in tasks if task.event_type == event.type]
            key = (event.request_id, event.item_id)
            if not mine:
                ours = any(behaviour.event_type == event.type for behaviour in self.spec.behaviours)
                fates["other_events" if ours else "unknown_types"] += 1
            elif key not in impressions:
                fates["callbacks_without_impression"] += 1
            else:
                is_within = any(abs(event.time_ms - impressions[key]) <= windows[task.name] for task in mine)
                is_known = key not in self.known_at or index < self.known_at[key]
                corrects = self.delayed != "wait" and event.value > 0 and any(t.kind == "binary" for t in mine)
                fates["callbacks" if is_within and (is_known or corrects) else "late_callbacks"] += 1
        assert sum(fates.values()) - fates["corrections"] == len(now)
        if not (fresh or corrections):
            return False
        self.decided, self.fates = passes, fates
        self.samples += [*fresh, *corrections]
        self.known_at |= {(request, item): len(lines) for request, item, *_ in fresh}
        return True

    def _label(self, task: Any, impression: Event, real: list[Event]) -> float:
        mine = [
            event
            for event in sorted(real, key=lambda event: event.time_ms)
            if (event.request_id, event.item_id, event.type)
            == (impression.request_id, impression.item_id, task.event_type)
            and abs(event.time_ms - impression.time_ms) <= task.window_s * 1000
        ]
        if task.kind == "binary":
            return float(any(event.value > 0 for event in mine))
        if not mine:
            return 0.0
        values = [event.value for event in mine]
        label = {"sum": sum(values), "max": max(values), "last": values[-1]}[task.combine]
        return label if task.clip is None else min(label, task.clip)

    def _corrections(
        self, real: list[Event], windows: dict[str, int]
    ) -> list[tuple[str, str, int, dict[str, float | None], str | None]]:
        done = {(request, item, corrected) for request, item, _, _, corrected in self.samples}
        found = []
        for (request, item, at, labels, corrected), task in itertools.product(self.samples, self.spec.tasks):
            if corrected is not None or task.kind != "binary" or labels[task.name] != 0:
                continue
            is_positive = any(
                (event.request_id, event.item_id, event.type) == (request, item, task.event_type)
                and event.value > 0
                and abs(event.time_ms - at) <= windows[task.name]
                for event in real
            )
            if is_positive and (request, item, task.name) not in done:
                only = {other.name: 1.0 if other.name == task.name else None for other in self.spec.tasks}
                found.append((request, item, at, only, task.name))
        return found
