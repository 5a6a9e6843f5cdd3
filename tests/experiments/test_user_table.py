"""From the lines of a log to one row per user: who counts, since when, and what was before."""

import polars as pl
import pytest

from infnet.errors import DataError
from infnet.experiments.experiment_log import ExperimentLog
from infnet.experiments.metrics import parse_metric
from infnet.experiments.spec import Experiment
from infnet.experiments.user_table import user_table

DAY = 86_400_000
START = 20_000 * DAY
METRICS = [parse_metric("click/impressions"), parse_metric("watch.value"), parse_metric("requests")]
EXPERIMENT = Experiment.model_validate(
    {"name": "e", "variants": [{"name": "control"}, {"name": "new"}], "forced": {"tester": "new"}}
)


def table(path, experiment=EXPERIMENT, metrics=METRICS, **options):
    log = ExperimentLog.read(path, experiment.name, options.get("segments", ()))
    return user_table(log, experiment, metrics, **options)


def row(found, user):
    return found.users.row(by_predicate=pl.col("user_id") == user, named=True)


def test_what_counts_begins_with_the_first_request_under_the_experiment(write_log):
    path = write_log(
        [
            ("r0", "anna", START - DAY, None),
            ("r1", "anna", START, "new"),
            ("r2", "anna", START + DAY, None),
            ("r3", "anna", START + 2 * DAY, "new"),
        ],
        [
            ("e0", "r0", "impression", START - DAY, 1.0),
            ("e1", "r0", "click", START - DAY + 5, 1.0),
            ("e2", "r1", "impression", START + 5, 1.0),
            ("e3", "r2", "impression", START + DAY + 5, 1.0),
            ("e4", "r2", "click", START + DAY + 6, 1.0),
            ("e5", "r3", "watch", START + 2 * DAY + 6, 7.5),
        ],
    )
    found = row(table(path), "anna")
    assert (found["variant"], found["first_ms"]) == ("new", START)
    assert (found["click"], found["impressions"], found["watch.value"], found["requests"]) == (1, 2, 7.5, 3)
    assert (found["click_before"], found["impressions_before"], found["requests_before"]) == (1, 1, 1)


def test_an_event_with_a_value_of_0_did_not_happen(write_log):
    path = write_log(
        [("r1", "anna", START, "new"), ("r2", "otto", START, "control")],
        [("e1", "r1", "click", START + 1, 0.0), ("e2", "r1", "click", START + 2, 1.0), ("e3", "r1", "watch", START, 0)],
    )
    found = row(table(path, metrics=[*METRICS, parse_metric("watch")]), "anna")
    assert (found["click"], found["watch"], found["watch.value"]) == (1, 0, 0)


def test_the_pre_period_has_a_length(write_log):
    path = write_log(
        [("r0", "anna", START - 3 * DAY, None), ("r1", "anna", START, "new"), ("r2", "otto", START, "control")]
    )
    assert row(table(path), "anna")["requests_before"] == 1
    assert row(table(path, pre_days=2), "anna")["requests_before"] == 0


def test_events_count_once_and_not_before_their_request(write_log):
    path = write_log(
        [("r1", "anna", START, "new"), ("r1", "anna", START + 5, "new"), ("r2", "otto", START, "control")],
        [
            ("e1", "r1", "click", START - DAY, 1.0),  # the clock of the client is slow
            ("e1", "r1", "click", START - DAY, 1.0),
            ("e2", "r1", "impression", START + 9, 1.0),
            ("e3", "unheard of", "click", START + 9, 1.0),
        ],
    )
    found = table(path)
    assert (row(found, "anna")["click"], row(found, "anna")["click_before"], row(found, "anna")["requests"]) == (
        1,
        0,
        1,
    )
    assert found.strayed == 1


def test_who_was_seen_in_two_variants_or_in_an_unknown_one_is_left_out_and_told(write_log):
    path = write_log(
        [
            ("r1", "anna", START, "new"),
            ("r2", "otto", START, "control"),
            ("r3", "otto", START + 5, "new"),
            ("r4", "fritz", START, "nwe"),
            ("r5", "tester", START, "new"),
            ("r6", "eve", START, "control"),
        ]
    )
    found = table(path)
    assert found.users["user_id"].to_list() == ["anna", "eve"]
    assert (found.crossed, found.unknown, found.forced) == (1, {"nwe": 1}, 1)
    assert found.counts(EXPERIMENT) == {"control": 1, "new": 1}


def test_forced_users_alone_are_nobody(write_log):
    path = write_log([("r1", "tester", START, "new")])
    with pytest.raises(DataError, match="no user but forced ones was served under 'e' between its start and its end"):
        table(path)


def test_a_variant_without_users_is_an_error_that_says_who_there_is(write_log):
    path = write_log([("r1", "anna", START, "new")])
    with pytest.raises(DataError, match=r"log: variant 'control' of 'e' has no users \(new 1\); wait for some"):
        table(path).check_variants(EXPERIMENT)


def test_an_experiment_has_a_start_and_an_end(write_log):
    path = write_log(
        [("r1", "anna", START, "new"), ("r2", "anna", START + DAY, "new"), ("r3", "anna", START + 3 * DAY, "new")],
        [("e1", "r1", "click", START + 4 * DAY, 1.0)],
    )
    times = {"start": "2024-10-05T00:00:00Z", "end": "2024-10-06T12:00:00Z"}
    between = Experiment.model_validate({**EXPERIMENT.model_dump(exclude_unset=True), **times})
    assert between.start.timestamp() * 1000 == START + DAY
    found = row(table(path, between), "anna")
    assert (found["first_ms"], found["requests"], found["requests_before"], found["click"]) == (START + DAY, 1, 1, 0)
    late = between.model_copy(update={"start": between.end, "end": None})
    with pytest.raises(DataError, match="no user was served under 'e' between its start and its end; check both"):
        table(write_log([], [], "e"), late.model_copy(update={"start": between.end.replace(year=2030)}))


def test_days_and_returns_are_measures(write_log):
    path = write_log(
        [(f"r{day}", "anna", START + day * DAY, "new") for day in (0, 1, 3)] + [("r9", "otto", START, "control")],
        [],
    )
    metrics = [parse_metric("active_days"), parse_metric("returned_next_day"), parse_metric("degraded")]
    found = row(table(path, metrics=metrics), "anna")
    assert (found["active_days"], found["returned_next_day"], found["degraded"]) == (3, 1, 0)


def test_what_was_before_knows_nothing_of_a_return_after(write_log):
    noon = DAY // 2
    path = write_log(
        [
            ("r0", "anna", START, None),
            ("r1", "anna", START + noon, "new"),
            ("r2", "anna", START + DAY, "new"),
            ("r3", "otto", START, None),
            ("r4", "otto", START + DAY + noon, "control"),
        ]
    )
    found = table(path, metrics=[parse_metric("returned_next_day")])
    assert (row(found, "anna")["returned_next_day"], row(found, "anna")["returned_next_day_before"]) == (1, 0)
    assert (row(found, "otto")["returned_next_day"], row(found, "otto")["returned_next_day_before"]) == (0, 1)


def test_degraded_answers_are_counted(tmp_path, write_log):
    path = write_log([("r1", "anna", START, "new"), ("r3", "otto", START, "control")])
    file = path / "served/w-000000000000.ndjson"
    file.write_text(file.read_text().replace('"degraded": []', '"degraded": ["popularity_order"]', 1))
    found = table(path, metrics=[parse_metric("degraded/requests")])
    assert [row(found, user)["degraded"] for user in ("anna", "otto")] == [1, 0]


def test_segments_are_those_of_the_first_request(write_log):
    path = write_log([("r1", "anna", START, "new"), ("r2", "otto", START, "control")])
    assert row(table(path, segments=["tab"]), "anna")["tab"] == "1"
    with pytest.raises(DataError, match="no request has 'tba' in its context or among its user's features"):
        ExperimentLog.read(path, "e", ["tba"])
    with pytest.raises(DataError, match="segment 'variant' has the name of another column"):
        user_table(ExperimentLog.read(path, "e"), EXPERIMENT, METRICS, segments=["variant"])


def test_damaged_lines_are_told_and_a_line_that_is_being_written_is_not(write_log):
    path = write_log([("r1", "anna", START, "new"), ("r2", "otto", START, "control")])
    with (path / "served/w-000000000000.ndjson").open("a") as file:
        file.write('{"request_id": 7}\n{"user_id"\n{"request_id": "r9", "us')
    found = table(path)
    assert (found.damaged, found.users.height) == (2, 2)


def test_a_misspelt_event_is_not_the_same_as_a_rare_one(write_log):
    requests = [("r1", "anna", START, "new"), ("r2", "otto", START, "control")]
    path = write_log(requests, [("e1", "r1", "click", START + 5, 1.0)])
    with pytest.raises(DataError, match="no event is of type 'clik'; did you mean 'click'"):
        table(path, metrics=[parse_metric("clik")])
    assert row(table(path, metrics=[parse_metric("purchase")]), "anna")["purchase"] == 0
    path = write_log([], [("e2", "r1", "like", START + 5, 1.0)])
    assert row(table(path, metrics=[parse_metric("dislike")]), "anna")["dislike"] == 0
    with pytest.raises(DataError, match="did you mean 'requests'"):
        table(path, metrics=[parse_metric("request")])


def test_what_is_no_log_is_told(tmp_path, write_log):
    with pytest.raises(DataError, match="served: is no directory; an event log holds served and events"):
        ExperimentLog.read(tmp_path, "e")
    path = write_log([])
    with pytest.raises(DataError, match="served: holds no answered request; give the directory of an event log"):
        ExperimentLog.read(path, "e")


def test_an_experiment_that_is_declared_nowhere_is_taken_from_the_log(write_log):
    path = write_log([("r1", "anna", START, "control"), ("r2", "otto", START, "b"), ("r3", "eve", START, None)])
    log = ExperimentLog.read(path, "e")
    assert log.observed("e").weights == {"b": 0.5, "control": 0.5}
    with pytest.raises(DataError, match="has the variants b, control, none of them 'a'; name one as --control"):
        log.observed("e", "a")
    with pytest.raises(DataError, match="no request was answered under 'f'; known are: another, e"):
        ExperimentLog.read(path, "f").observed("f")


def test_requests_tell_how_long_they_took(write_log):
    path = write_log(
        [("r1", "anna", START, "new"), ("r2", "anna", START + 1, "new"), ("r3", "otto", START, "control")],
        r1={"took_ms": 12.5},
        r2={"took_ms": 7.5},
    )
    found = table(path, metrics=[parse_metric("latency_ms/requests")])
    assert [row(found, user)["latency_ms"] for user in ("anna", "otto")] == [20.0, 0.0]  # older logs do not tell
