import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.errors import ArtifactError, DataError, StoreError
from infnet.serving import samples as partitions
from infnet.serving.events import IMPRESSION
from infnet.serving.label_join import join_labels
from infnet.serving.samples import alone, last_part, last_state, read_samples
from joined_log import JoinOracle, LogFiles, a_request, an_event
from raw_logs import make_spec

S = 1000
T = 1_800_000_000_000
SPEC = make_spec(
    behaviours=[
        {"name": "click", "filter": "click == 1", "length": 3},
        {"name": "share", "filter": "click == 1", "length": 3, "event": "shared"},
    ],
    tasks=[
        {"name": "click", "label": "click", "window_s": 10},
        {"name": "buy", "label": "buy", "window_s": 60, "event": "order"},
        {"name": "watch", "label": "watch", "kind": "regression", "window_s": 10, "clip": 9},
        {"name": "best", "label": "best", "kind": "regression", "window_s": 5, "event": "watch", "combine": "max"},
        {"name": "final", "label": "final", "kind": "regression", "window_s": 10, "event": "watch", "combine": "last"},
    ],
)
TASKS = [task.name for task in SPEC.tasks]


@pytest.fixture
def log(tmp_path):
    return LogFiles(tmp_path / "log")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "samples"


def labels(out, **options):
    """By request and item, those that are known."""
    samples, _ = read_samples(out, **options)
    return {
        (row["request_id"], row["item_id"]): {t: row[f"label_{t}"] for t in TASKS if row[f"label_{t}"] is not None}
        for row in samples.to_dicts()
    }


def snapshot(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("part-*/*"))}


def test_every_task_takes_its_own_events_within_its_own_window(log, out):
    log.serve(a_request("r", ["a", "b"], T))
    log.tell(
        an_event("r", "a", IMPRESSION, T),
        an_event("r", "b", IMPRESSION, T),
        an_event("r", "a", "click", T + 10 * S),
        an_event("r", "b", "click", T + 10 * S + 1),
        an_event("r", "b", "order", T + 60 * S),
        an_event("r", "a", "watch", T + 1 * S, value=5.0),
        an_event("r", "a", "watch", T + 5 * S, value=3.0),
        an_event("r", "a", "watch", T + 6 * S, value=4.0),
        an_event("r", "b", "watch", T + 3 * S, value=-1.0),
    )
    report = join_labels(log.path, out, SPEC, now_ms=T + 200 * S)
    assert labels(out) == {
        ("r", "a"): {"click": 1, "buy": 0, "watch": 9, "best": 5, "final": 4},
        ("r", "b"): {"click": 0, "buy": 1, "watch": -1, "best": -1, "final": -1},
    }
    assert (report.part, report.fates.samples, report.newest_impression_ms) == (1, 2, T)
    assert (report.fates.callbacks, report.fates.late_callbacks) == (6, 1)


def test_a_sample_says_what_was_served(log, out):
    user = {"age": 30, "name": "Ö"}
    log.serve(a_request("s", ["x"], T + 5, user=user, version="v2", context={}, values={}, histories={}))
    log.serve(a_request("r", ["a", "b", "a"], T, values={"rank": [1, None, 3], "cover": [[0.5, 1], "1,2", []]}))
    log.tell(an_event("r", "b", IMPRESSION, T + 7, user_id="another"), an_event("s", "x", IMPRESSION, T + 9))
    log.tell(an_event("r", "a", IMPRESSION, T + 8))
    join_labels(log.path, out, SPEC, now_ms=T + 100 * S)
    samples, requests = read_samples(out)
    shown = samples.select(
        "request_id", "item_id", "user_id", "time_ms", "impression_ms", "version", "predicted_click", "predicted_buy"
    )
    assert shown.rows() == [
        ("r", "b", "u", T, T + 7, "v1", 0.125, None),
        ("r", "a", "u", T, T + 8, "v1", 0.0, None),
        ("s", "x", "u", T + 5, T + 9, "v2", 0.0, None),
    ]
    assert samples["values"].to_list() == ['{"rank":null,"cover":"1,2"}', '{"rank":1,"cover":[0.5,1]}', "{}"]
    assert requests.rows() == [
        ("r", "u", T, "v1", '{"tab":"ä","temperature":1.5}', None, ["9", "8"], [T - 1, T - 2], [], []),
        ("s", "u", T + 5, "v2", "{}", '{"age":30,"name":"Ö"}', [], [], [], []),
    ]
    kinds = {name: kind for name, kind in samples.schema.items() if name.startswith("label_")}
    assert kinds == {f"label_{task}": pl.Float32 for task in TASKS}
    assert samples["is_correction"].to_list() == [False] * 3


def test_an_impression_waits_for_the_longest_window_and_those_behind_it_too(log, out):
    log.serve(a_request("r", ["a", "b", "c"], T))
    log.tell(an_event("r", "a", IMPRESSION, T), an_event("r", "b", IMPRESSION, T + 1), writer="w")
    log.tell(an_event("r", "c", IMPRESSION, T + 1, received_ms=T), writer="v")
    report = join_labels(log.path, out, SPEC, now_ms=T + 60 * S - 1)
    assert (report.part, report.pending, last_part(out)) == (None, 3, 0)
    report = join_labels(log.path, out, SPEC, now_ms=T + 60 * S)
    assert (report.fates.samples, report.pending) == (2, 1)
    assert labels(out).keys() == {("r", "a"), ("r", "c")}
    join_labels(log.path, out, SPEC, now_ms=T + 60 * S + 1)
    assert labels(out, since_part=1).keys() == {("r", "b")}


def test_events_count_in_any_order_and_from_any_writer(log, out):
    log.tell(an_event("r", "a", "click", T + 1), writer="v")
    log.tell(an_event("r", "a", "order", T - 5, received_ms=T - 5))
    log.rotate()
    log.tell(an_event("r", "a", IMPRESSION, T))
    log.serve(a_request("r", ["a"], T - 9), writer="v")
    report = join_labels(log.path, out, SPEC, now_ms=T + 100 * S)
    assert labels(out)["r", "a"] == {"click": 1, "buy": 1, "watch": 0, "best": 0, "final": 0}
    assert report.fates.callbacks == 2


def test_events_that_were_passed_before_their_impression_came_count(log, out):
    log.serve(a_request("r", ["a", "b"], T))
    log.tell(an_event("r", "a", "click", T + 1), an_event("r", "b", IMPRESSION, T + 2))
    assert join_labels(log.path, out, SPEC, now_ms=T + 100 * S).fates.callbacks_without_impression == 1
    log.tell(an_event("r", "a", IMPRESSION, T, received_ms=T + 5000 * S))
    join_labels(log.path, out, SPEC, now_ms=T + 6000 * S)
    assert labels(out, since_part=1)["r", "a"]["click"] == 1


def test_every_fate_is_counted(log, out):
    log.serve(a_request("r", ["a", "b"], T))
    day = 86_400 * S
    log.tell(
        an_event("r", "a", IMPRESSION, T),
        an_event("r", "a", IMPRESSION, T),
        an_event("r", "a", IMPRESSION, T + 1),
        an_event("r", "z", IMPRESSION, T),
        an_event("q", "a", IMPRESSION, T),
        an_event("r", "a", "watch", T, value=2.0),
        an_event("r", "a", "click", T + 11 * S),
        an_event("q", "a", "click", T),
        an_event("r", "a", "shared", T),
        an_event("r", "a", "nothing", T),
        an_event("r", "b", IMPRESSION, T + day + 1),
    )
    log.tell(an_event("r", "a", "watch", T, value=2.0), writer="v")
    fates = join_labels(log.path, out, SPEC, now_ms=T + 2 * day).fates
    assert msgspec.structs.asdict(fates) == {
        "samples": 1,
        "duplicate_impressions": 1,
        "late_impressions": 1,
        "orphans": 2,
        "callbacks": 1,
        "late_callbacks": 1,
        "callbacks_without_impression": 1,
        "other_events": 1,
        "duplicate_events": 2,
        "unknown_types": 1,
        "damaged": 0,
        "corrections": 0,
    }
    assert json.loads((out / "part-000001/join.json").read_text())["fates"] == msgspec.structs.asdict(fates)
    assert labels(out)["r", "a"]["watch"] == 2


def test_an_impression_of_an_earlier_partition_is_not_taken_again(log, out):
    log.serve(a_request("r", ["a"], T))
    log.tell(an_event("r", "a", IMPRESSION, T))
    join_labels(log.path, out, SPEC, now_ms=T + 100 * S)
    late = T + 80_000 * S
    log.rotate()
    log.tell(an_event("r", "a", IMPRESSION, T), an_event("r", "a", IMPRESSION, late, event_id="new"))
    log.serve(a_request("s", ["a"], late))
    log.tell(an_event("s", "a", IMPRESSION, late))
    fates = join_labels(log.path, out, SPEC, now_ms=late + 100 * S).fates
    assert (fates.samples, fates.duplicate_events, fates.duplicate_impressions) == (1, 1, 1)


def test_a_request_that_was_served_twice_means_the_later_answer(log, out):
    log.serve(a_request("r", ["a"], T, version="first"))
    log.serve(a_request("r", ["b", "a"], T + 1, version="retry"), writer="v")
    log.tell(an_event("r", "a", IMPRESSION, T + 2), an_event("r", "b", IMPRESSION, T + 2))
    join_labels(log.path, out, SPEC, now_ms=T + 100 * S)
    samples, requests = read_samples(out)
    assert samples["version"].to_list() == ["retry", "retry"]
    assert requests["version"].to_list() == ["retry"]


def test_a_positive_that_comes_late_corrects_its_sample_exactly_once(log, out):
    def join(at):
        return join_labels(log.path, out, SPEC, now_ms=T + at * S, delayed="fake_negative").fates

    log.serve(a_request("r", ["a", "b"], T))
    log.tell(
        an_event("r", "a", IMPRESSION, T), an_event("r", "b", IMPRESSION, T), an_event("r", "b", "order", T + 2 * S)
    )
    assert (join(9).samples, join(10).samples) == (0, 2)
    assert labels(out)["r", "a"]["buy"] == 0
    assert labels(out)["r", "b"]["buy"] == 1
    log.tell(an_event("r", "b", "order", T + 12 * S), an_event("r", "a", "order", T + 61 * S, received_ms=T + 12 * S))
    assert join(12).corrections == 0
    log.tell(an_event("r", "a", "order", T + 13 * S), an_event("r", "a", "order", T + 14 * S))
    assert join(14).corrections == 1
    log.tell(an_event("r", "a", "order", T + 15 * S))
    assert [join(at).corrections for at in (15, 30, 90)] == [0, 0, 0]
    samples, requests = read_samples(out, since_part=1)
    (row,) = samples.to_dicts()
    (original,) = (r for r in read_samples(out)[0].to_dicts() if r["item_id"] == "a" and not r["is_correction"])
    assert row == original | {"is_correction": True} | {f"label_{task}": None for task in TASKS} | {"label_buy": 1.0}
    assert requests.rows() == read_samples(out)[1].rows()


def test_waiting_leaves_late_positives_out(log, out):
    log.serve(a_request("r", ["a"], T))
    log.tell(an_event("r", "a", IMPRESSION, T))
    join_labels(log.path, out, SPEC, now_ms=T + 100 * S)
    log.serve(a_request("s", ["a"], T + 90 * S))
    log.tell(
        an_event("r", "a", "order", T + 50 * S, received_ms=T + 101 * S),
        an_event("s", "a", IMPRESSION, T + 101 * S),
    )
    assert join_labels(log.path, out, SPEC, now_ms=T + 900 * S).fates.late_callbacks == 1
    assert labels(out)["r", "a"]["buy"] == 0


def test_lines_of_any_kind_that_cannot_be_read_cost_nothing_else(log, out):
    log.serve(a_request("r", ["a", "b"], T))
    log.serve(a_request("s", ["a"], T))
    log.tell(*(an_event("r", item, IMPRESSION, T) for item in "ab"), an_event("s", "a", IMPRESSION, T))
    log.tell(an_event("r", "a", "click", T))
    for kind, line in (("events", 1), ("served", 1)):
        (path,) = (log.path / kind).iterdir()
        lines = path.read_bytes().splitlines(keepends=True)
        lines[line] = lines[line].replace(b":", b"\xff")
        path.write_bytes(b"".join(lines) + b'{"unfinished')
    fates = join_labels(log.path, out, SPEC, now_ms=T + 100 * S).fates
    assert (fates.damaged, fates.orphans, fates.samples) == (1, 1, 1)
    assert labels(out)["r", "a"]["click"] == 1


def test_nothing_due_writes_nothing(log, out):
    assert join_labels(log.path, out, SPEC).part is None
    log.tell(an_event("r", "a", "click", T))
    log.tell(an_event("r", "a", IMPRESSION, T))
    assert join_labels(log.path, out, SPEC, now_ms=T + 100 * S).part is None
    assert last_part(out) == 0
    assert all(frame.is_empty() for frame in read_samples(out))


def test_many_lines_without_a_sample_are_passed_for_good(log, out, monkeypatch):
    monkeypatch.setattr("infnet.serving.label_join._MOST_LINES_AGAIN", 3)
    log.tell(*(an_event("r", item, IMPRESSION, T) for item in "abc"))
    assert join_labels(log.path, out, SPEC, now_ms=T + 100 * S).part == 1
    assert read_samples(out)[0].is_empty()
    report = join_labels(log.path, out, SPEC, now_ms=T + 100 * S)
    assert (report.part, report.fates.orphans) == (None, 0)


def test_what_is_older_than_it_can_matter_is_not_read(log, out):
    age = 100
    log.serve(a_request("old", ["a"], T))
    log.tell(an_event("old", "a", IMPRESSION, T))
    join_labels(log.path, out, SPEC, now_ms=T + 100 * S, max_age_s=age)
    for kind in ("served", "events"):
        log.rotate(kind)
    later = T + (age + 60 + 3600) * S + 1
    log.serve(a_request("new", ["a"], later))
    log.tell(an_event("new", "a", IMPRESSION, later))
    log.rotate()
    log.tell(an_event("new", "a", "click", later))
    for kind in ("served", "events"):  # as who may not be read
        next(path for path in sorted((log.path / kind).iterdir())).write_bytes(b'{"received_ms":%d}\n' % T + b"\0" * 99)
    (out / "part-000001/samples.parquet").write_bytes(b"")
    join_labels(log.path, out, SPEC, now_ms=later + 100 * S, max_age_s=age)
    assert labels(out, since_part=1)["new", "a"]["click"] == 1


def fill(log, requests=60):
    for number in range(requests):
        writer, at = f"w{number % 2}", T + number * S
        log.serve(a_request(f"r{number}", ["a", "b"], at), writer)
        log.tell(*(an_event(f"r{number}", item, IMPRESSION, at) for item in "ab"), writer=writer)
        log.tell(an_event(f"r{number}", "b", "click", at + S), writer="w0")
        if number % 20 == 19:
            log.rotate("events", writer)
            log.rotate("served", writer)


class KilledError(BaseException):
    """Passes every handler, as a kill does."""


def test_a_join_that_dies_at_any_stage_gives_the_same_bytes_when_it_is_done_again(log, tmp_path, monkeypatch):
    fill(log)
    times = [T + 80 * S, T + 300 * S]
    for now in times:
        join_labels(log.path, tmp_path / "whole", SPEC, now_ms=now)
    wanted, out = snapshot(tmp_path / "whole"), tmp_path / "killed"

    def killing(real, turn):
        calls = iter(range(1000))

        def call(*args, **options):
            if next(calls) == turn:
                raise KilledError
            return real(*args, **options)

        return call

    stages = [(pl.DataFrame, "write_parquet"), (Path, "write_bytes"), (Path, "replace"), (partitions, "_sync")]
    for now in times:
        for owner, name in stages:
            for turn in range(3):
                with monkeypatch.context() as patch, suppress(KilledError):
                    patch.setattr(owner, name, killing(getattr(owner, name), turn))
                    join_labels(log.path, out, SPEC, now_ms=now)
        join_labels(log.path, out, SPEC, now_ms=now)
    assert snapshot(out) == wanted
    assert not list(out.glob(".*"))


def test_a_join_that_is_killed_at_any_moment_gives_the_same_bytes_when_it_is_done_again(log, tmp_path):
    fill(log, 20)
    out, script = tmp_path / "killed", "import sys, joined_child; joined_child.main(*sys.argv[1:])"
    (tmp_path / "spec.json").write_text(SPEC.model_dump_json())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path])}
    command = [sys.executable, "-c", script, str(tmp_path / "spec.json"), str(log.path), str(out), str(T)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    for _ in range(4):
        process.stdout.readline()
        time.sleep(0.013)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    killed_at = last_part(out)
    assert 0 < killed_at < 20
    for target in (out, tmp_path / "whole"):
        for at in range(60, 60 + 25):
            join_labels(log.path, target, SPEC, now_ms=T + at * S)
    assert snapshot(out) == snapshot(tmp_path / "whole")
    assert len(labels(out)) == read_samples(out)[0].height == 40


def test_two_joins_do_not_run_at_once(log, out):
    with alone(out), pytest.raises(StoreError, match="another join"):
        join_labels(log.path, out, SPEC)
    join_labels(log.path, out, SPEC)


def test_what_is_no_log_and_what_is_damaged_is_refused(log, out, tmp_path):
    with pytest.raises(DataError, match="holds no event log"):
        join_labels(tmp_path / "nothing", out, SPEC)
    fill(log, 1)
    join_labels(log.path, out, SPEC, now_ms=T + 900 * S)
    state = out / "part-000001/join.json"
    whole = state.read_bytes()
    for damaged, message in ((whole[:50], "is damaged"), (whole.replace(b'"format": 1', b'"format": 9'), "format 9")):
        state.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=message):
            join_labels(log.path, out, SPEC)
    (out / "part-000001/samples.parquet").write_bytes(b"")
    with pytest.raises(ArtifactError, match="partition of samples is damaged"):
        read_samples(out)


def test_finished_segments_of_requests_are_looked_through_once(log, out, monkeypatch):
    fill(log)
    join_labels(log.path, out, SPEC, now_ms=T + 80 * S)
    kept = list((out / "places").iterdir())
    assert len(kept) == 2  # of each writer all but the segment being written
    kept[0].write_bytes(b"junk")
    join_labels(log.path, out, SPEC, now_ms=T + 900 * S)
    assert len(labels(out)) == 120


EVENTS = st.tuples(
    st.sampled_from("pqr"),  # request; p was not served
    st.sampled_from("abz"),  # item; z was not delivered
    st.sampled_from([IMPRESSION] * 3 + ["click", "order", "watch", "shared", "other"]),
    st.integers(0, 70),  # time after the first request, s
    st.sampled_from([1.0, 0.0, -2.0, 3.5]),
    st.sampled_from([0, 0, 1, 30]),  # how long it takes to arrive, s
    st.sampled_from("vw"),
)
STEPS = st.lists(
    EVENTS
    | st.tuples(st.just("again"), st.integers(0, 30), st.sampled_from("vw"))
    | st.tuples(st.just("rotate"), st.sampled_from("vw"))
    | st.tuples(st.just("join"), st.integers(0, 60), st.booleans()),
    max_size=30,
)


@settings(max_examples=60)
@given(STEPS, st.sampled_from(["wait", "fake_negative"]), st.sampled_from([40.0, 86_400.0]))
def test_any_stream_gives_the_samples_that_going_through_it_line_by_line_gives(
    tmp_path_factory, steps, delayed, max_age_s
):
    directory = tmp_path_factory.mktemp("join")
    log, out = LogFiles(directory / "log"), directory / "samples"
    oracle = JoinOracle(log, SPEC, delayed, round(1000 * max_age_s))
    log.serve(a_request("q", ["a", "b"], T))
    log.serve(a_request("r", ["b", "a"], T + 20 * S), writer="v")
    received, now = {"v": T, "w": T}, T

    def tell(event, writer):
        received[writer] = max(received[writer], event.received_ms)
        log.tell(msgspec.structs.replace(event, received_ms=received[writer]), writer=writer)

    for step in [*steps, ("join", 0, False), ("join", 1000, False)]:
        match step:
            case ("rotate", writer):
                log.rotate("events", writer)
            case ("again", number, writer):
                if log.lines:
                    tell(log.lines[number % len(log.lines)][1], writer)
            case ("join", wait, dies):
                now += wait * S
                if dies:
                    with pytest.MonkeyPatch.context() as patch, suppress(KilledError):
                        patch.setattr(partitions, "replacing", kill)
                        join_labels(log.path, out, SPEC, now_ms=now, delayed=delayed, max_age_s=max_age_s)
                report = join_labels(log.path, out, SPEC, now_ms=now, delayed=delayed, max_age_s=max_age_s)
                assert (report.part is not None) == oracle.join(now)
                if report.part is not None:
                    fates = msgspec.structs.asdict(report.fates)
                    assert {name: number for name, number in fates.items() if number} == +oracle.fates
                    assert last_state(out).fates == report.fates
            case (request, item, kind, at, value, delay, writer):
                number = len(log.lines)
                event = an_event(request, item, kind, T + at * S, received_ms=T + (at + delay) * S, value=value)
                tell(msgspec.structs.replace(event, event_id=str(number)), writer)

    samples, _ = read_samples(out)
    found = [
        (
            row["request_id"],
            row["item_id"],
            row["impression_ms"],
            {task: row[f"label_{task}"] for task in TASKS},
            next(task for task in TASKS if row[f"label_{task}"] is not None) if row["is_correction"] else None,
        )
        for row in samples.to_dicts()
    ]
    assert sorted(found, key=str) == sorted(oracle.samples, key=str)


def kill(*_):
    raise KilledError
