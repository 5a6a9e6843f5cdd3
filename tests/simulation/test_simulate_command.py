"""A small world's users in front of a real service, over HTTP."""

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from infnet.api import prepare, train
from infnet.cli import app
from infnet.data.sources.known import known_spec
from infnet.data.sources.synthetic import load_world, write_world
from infnet.data.sources.world import World, WorldConfig
from infnet.export.exporter import export_run
from infnet.serving.label_join import join_labels
from infnet.training.config import TrainConfig
from served import PATIENT, served

USERS, DAYS, CANDIDATES = 120, 2, 40
FAST = {"epochs": 3, "batch_size": 128, "learning_rate": 3e-3, "embedding_learning_rate": 1e-2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Raw log, run and bundle of a small world, and two policies, of which one turns the other round."""
    place = tmp_path_factory.mktemp("simulated")
    write_world(World.create(WorldConfig(num_users=USERS, num_items=90, num_days=4)), place / "raw")
    prepare(known_spec("synthetic"), place / "raw", place / "prepared")
    run = train(place / "prepared", TrainConfig(model="fm", **FAST), place / "run")
    export_run(run, place / "bundle")
    for name, formula in (("best", "p_click"), ("worst", "1 - p_click")):
        (place / f"{name}.yaml").write_text(f'objectives: {{clicks: {{formula: "{formula}"}}}}\n')
    return place


def simulate(made, out, *options):
    world = "--world", str(made / "raw"), "--days", str(DAYS), "--candidates", str(CANDIDATES)
    return CliRunner().invoke(app, ["simulate", *world, "--out", str(out), *map(str, options)])


def complaint(result):
    return f"{result.exception or ''}{result.output}"


@pytest.fixture(scope="module")
def simulated(made, tmp_path_factory):
    """Of a model that goes on learning and a policy, with the summary."""
    out = tmp_path_factory.mktemp("out") / "events"
    variants = f"order:best={made / 'bundle'},worst={made / 'worst.yaml'}"
    options = "--experiment", variants, "--model", made / "bundle", "--update-every", 1, "--json"
    result = simulate(made, out, *options)
    assert result.exit_code == 0, complaint(result)
    return out, json.loads(result.stdout)


def lines(out, stream):
    files = sorted((out / stream).glob("*.ndjson"))
    return pl.DataFrame([json.loads(line) for file in files for line in file.read_bytes().splitlines()], strict=False)


def test_the_log_holds_what_the_truth_tells(simulated):
    out, told = simulated
    requests, events = lines(out, "served"), lines(out, "events")
    truth = pl.read_parquet(out / "simulation" / "truth.parquet")
    assert told["requests"] == requests.height == truth["requests"].sum() > 200
    assert told["impressions"] == (events["type"] == "impression").sum() == truth["impressions"].sum()
    assert told["events"] == events.height
    assert told["degraded"] == 0
    of = dict(zip(requests["user_id"], requests["experiments"].struct.field("order"), strict=True))
    assert all(of[str(user)] == variant for user, variant in zip(truth["user_id"], truth["variant"], strict=True))


def test_days_go_on_where_the_world_s_log_ends(made, simulated):
    out, _ = simulated
    world = load_world(made / "raw")
    for stream in ("served", "events"):
        days = (lines(out, stream)["time_ms"] - world.first_ms()) // 86_400_000
        assert set(days.to_list()) == {4, 5}


def test_nobody_is_shown_an_item_twice_on_a_day(simulated):
    seen = lines(simulated[0], "events").filter(pl.col("type") == "impression")
    seen = seen.with_columns(day=pl.col("time_ms") // 86_400_000)
    assert seen.height == seen.unique(["user_id", "item_id", "day"]).height


def test_a_better_order_has_a_better_truth_and_the_log_agrees(simulated):
    out, told = simulated
    best, worst = (told["variants"][name]["true"] for name in ("best", "worst"))
    assert best["ctr"] > 1.05 * worst["ctr"]
    observed = lines(out, "events").group_by("type").len()
    count = dict(observed.rows())
    everyone = told["variants"]["all"]["true"]["ctr"]
    share, num = count["click"] / count["impression"], count["impression"]
    assert abs(share - everyone) < 4 * np.sqrt(everyone * (1 - everyone) / num)


def test_the_report_reads_it_as_the_service_declared_it(simulated):
    out, _ = simulated
    result = CliRunner().invoke(app, ["ab", "report", "--events", str(out), "--experiment", "order", "--json"])
    assert result.exit_code == 0, result.output
    told = result.stdout
    assert all(name in told for name in ("best", "worst", "ctr", "watch_time", "revenue", "return_next_day", "hides"))


def test_labels_are_joined_at_the_time_of_the_simulation(made, simulated):
    out, told = simulated
    spec, world = known_spec("synthetic"), load_world(made / "raw")
    end = world.first_ms() + 6 * 86_400_000
    early = join_labels(out, out.parent / "early", spec, now_ms=end - 2 * 86_400_000 + 1000)
    assert early.fates.samples == 0
    late = join_labels(out, out.parent / "late", spec, now_ms=end + 7 * 86_400_000)
    assert late.fates.samples == told["impressions"]


def test_the_same_seed_brings_the_same_visits_to_a_service_that_runs_already(made, simulated, tmp_path):
    out, told = simulated
    with served(made / "bundle", tmp_path / "s", "--replay", "--policy", str(made / "best.yaml"), *PATIENT) as service:
        result = simulate(made, tmp_path / "out", "--url", f"http://127.0.0.1:{service.port}", "--users", USERS)
        assert result.exit_code == 0, result.output
        assert "True expectations" in result.stdout
        again = simulate(made, tmp_path / "out-2", "--url", f"http://127.0.0.1:{service.port}")
    # The same service has had these events: told, not counted twice.
    assert again.exit_code == 1
    assert "simulate with an event log and a feature store of its own" in complaint(again)
    first, second = (
        lines(place, "served").unique("request_id").sort("request_id") for place in (out, tmp_path / "s" / "events")
    )
    # On the first day nothing that was shown before decides who comes.
    until = first["time_ms"].min() + 20 * 3_600_000
    first, second = first.filter(pl.col("time_ms") < until), second.filter(pl.col("time_ms") < until)
    for name in ("request_id", "time_ms", "user_id", "context"):
        assert first[name].to_list() == second[name].to_list()
    assert told["requests"] > first.height


def test_a_service_that_does_not_replay_is_told(made, tmp_path):
    with served(made / "bundle", tmp_path / "s") as service:
        result = simulate(made, tmp_path / "out", "--url", f"http://127.0.0.1:{service.port}")
    assert result.exit_code == 1
    assert "goes by its own clock" in complaint(result)


def test_models_go_on_learning_between_days(simulated):
    out, told = simulated
    (update,) = told["updates"]
    assert (update["variant"], "version" in update or bool(update["refused"])) == ("best", True)
    versions = lines(out, "served").select("version", pl.col("experiments").struct.field("order")).unique()
    assert versions.group_by("order").len().sort("order")["len"].to_list() == [1 + ("version" in update), 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --experiment"),
        (("--url", "http://h", "--experiment", "a:b=c,d=e"), "give either --experiment"),
        (("--url", "http://127.0.0.1:9", "--model", "x"), "--model goes with --experiment"),
        (("--url", "http://127.0.0.1:9"), "does not answer"),
        (("--experiment", "order"), "wanted NAME:VARIANT=PATH,VARIANT=PATH"),
        (("--experiment", "order:a={best},a={worst}"), "two variants have one name"),
        (("--experiment", "order:a={best},b=nothing"), "nothing of 'b' is no run, no bundle and no policy file"),
        (("--experiment", "order:a={best},b={worst}"), "give the --model that scores"),
        (("--experiment", "or der:a={best},b={worst}", "--model", "{bundle}"), "or der"),
        (
            ("--experiment", "order:a={best},b={worst}", "--model", "{bundle}", "--users", "121"),
            "has 120; give at most so many",
        ),
    ],
)
def test_what_cannot_be_simulated_is_told_in_one_line(made, tmp_path, options, message):
    places = {"best": made / "best.yaml", "worst": made / "worst.yaml", "bundle": made / "bundle"}
    result = simulate(made, tmp_path / "out", *(option.format(**places) for option in options))
    assert result.exit_code in (1, 2)
    assert message in complaint(result)


def test_an_event_log_is_not_written_over(made, tmp_path):
    (tmp_path / "there").write_text("")
    result = simulate(made, tmp_path, "--experiment", f"o:a={made / 'best.yaml'},b={made / 'worst.yaml'}")
    assert "is not an empty directory" in complaint(result)
    result = CliRunner().invoke(app, ["simulate", "--world", str(tmp_path), "--out", "x", "--url", "http://h"])
    assert "is no record of a world" in complaint(result)
