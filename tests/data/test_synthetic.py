import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import infnet
from infnet.data.sources import synthetic
from infnet.data.sources.exposure import TABS, Visits, interest_strengths
from infnet.data.sources.synthetic import generate, load_world, write_world
from infnet.data.sources.truth import best_auc
from infnet.data.sources.world import World, WorldConfig
from infnet.errors import DataError
from infnet.schema import load_spec

CONFIG = WorldConfig(num_users=2500, num_items=1000, num_days=8, seed=5, random_share=0.02)
TASKS = {
    "p_click": "is_click",
    "p_like": "is_like",
    "p_long_view": "long_view",
    "p_follow": "is_follow",
    "p_comment": "is_comment",
    "p_forward": "is_forward",
    "p_hate": "is_hate",
    "p_return": "return_next_day",
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "raw"
    write_world(World.create(CONFIG), out)
    return out


@pytest.fixture(scope="module")
def log(raw):
    return pl.read_parquet(raw / "data" / "log_*.parquet")


@pytest.fixture(scope="module")
def truth(raw):
    return pl.read_parquet(raw / "truth" / "truth_*.parquet")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def auc(labels, scores):
    ranks = pl.Series(scores).rank("average").to_numpy()
    labels = np.asarray(labels) == 1
    positives, negatives = labels.sum(), (~labels).sum()
    return (ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives)


def test_same_seed_gives_same_bytes_and_another_seed_others(tmp_path):
    small = {"num_users": 300, "num_items": 100, "num_days": 3}
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_world(World.create(WorldConfig(**small, seed=seed)), tmp_path / name)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_rates_are_those_configured(raw, log):
    report = json.loads((raw / "world.json").read_text())["report"]
    assert report["rows"] == log.height > 100_000
    assert report["click_rate"] == pytest.approx(CONFIG.click_rate, abs=0.025)
    assert report["long_view_rate"] == pytest.approx(CONFIG.long_view_rate, abs=0.025)
    assert report["like_rate"] == pytest.approx(CONFIG.like_rate, abs=0.005)
    assert report["click_rate"] == pytest.approx(log["is_click"].mean())
    assert 0.6 < report["return_rate"] < 0.85
    assert report["users"] == log["user_id"].n_unique()


@pytest.mark.parametrize("probability", TASKS)
def test_true_probabilities_are_calibrated(log, truth, probability):
    label = TASKS[probability]
    rows = pl.DataFrame([log["user_id"], log["date"], log[label].cast(pl.Float64), truth[probability].cast(pl.Float64)])
    if label == "return_next_day":
        rows = rows.unique(["user_id", "date"])  # one draw per user and day, however many rows show it
    p = pl.col(probability)
    groups = (
        rows.with_columns(group=p.rank("ordinal") * 20 // (pl.len() + 1))
        .group_by("group")
        .agg(seen=pl.col(label).sum(), wanted=p.sum(), variance=(p * (1 - p)).sum())
    )
    chi_square = ((groups["seen"] - groups["wanted"]) ** 2 / groups["variance"]).sum()
    assert groups.height == 20
    assert chi_square < 45.3  # the 99.9% quantile for 20 degrees of freedom


@pytest.mark.parametrize(
    ("expectation", "outcome"),
    [("expected_watch_time", pl.col("play_time_ms") / 1000), ("expected_revenue", pl.col("revenue"))],
)
def test_expectations_are_met_on_average(log, truth, expectation, outcome):
    miss = log.select(outcome.cast(pl.Float64)).to_series() - truth[expectation]
    by_tenth = (
        pl.DataFrame([miss.alias("miss"), truth[expectation].rank("ordinal").alias("rank")])
        .group_by(pl.col("rank") * 10 // (pl.len() + 1))
        .agg(z=pl.col("miss").mean() / pl.col("miss").std() * pl.len().sqrt())
    )
    z = by_tenth["z"].fill_nan(0.0)  # items without a price: nothing expected, nothing seen
    assert (z**2).sum() < 29.6  # the 99.9% quantile for 10 degrees of freedom


def test_best_click_auc_leaves_room_and_is_reachable(raw, log, truth):
    best = best_auc(raw)
    assert 0.76 < best["click"] < 0.82
    assert best["click"] == pytest.approx(auc(log["is_click"], truth["p_click"]), abs=1e-5)
    assert best["like"] == pytest.approx(auc(log["is_like"], truth["p_like"]), abs=1e-4)
    assert best == pytest.approx(json.loads((raw / "world.json").read_text())["report"]["best_auc"])
    late = log["date"] >= 20240107
    assert best_auc(raw, pl.col("date") >= 20240107)["click"] == pytest.approx(
        auc(log.filter(late)["is_click"], truth.filter(late)["p_click"]), abs=1e-5
    )


def test_histories_tell_more_than_features(raw, log):
    """Rates smoothed over a user's earlier rows with the tag beat rates over everybody's."""
    tags = pl.read_parquet(raw / "data/video_features_basic.parquet").select(
        "video_id", tag=pl.col("tag").str.split(",").list.first()
    )
    rows = log.join(tags, on="video_id", how="left").sort("time_ms")
    click = pl.col("is_click").cast(pl.Float64)

    def earlier_rate(*keys):
        clicks, count = (click.cum_sum() - click).over(keys), pl.int_range(pl.len()).over(keys)
        return (clicks + 4 * CONFIG.click_rate) / (count + 4)

    rows = rows.with_columns(
        by_tag=earlier_rate("tag"), by_user=earlier_rate("user_id"), by_both=earlier_rate("user_id", "tag")
    ).filter(pl.col("date") >= 20240106)
    labels = rows["is_click"]
    without_history = auc(labels, rows["by_tag"])
    user_only = auc(labels, rows["by_user"])
    with_history = auc(labels, rows["by_both"] + 0.5 * rows["by_user"])
    assert user_only > 0.54
    assert with_history > max(without_history, user_only) + 0.03


def test_random_exposures_are_few_flagged_and_worse(log):
    share = log["is_rand"].mean()
    # Duplicates within a day are dropped, and random items are seldom any: the share comes out a little higher.
    assert CONFIG.random_share * 0.95 < share < CONFIG.random_share * 1.3
    rates = dict(log.group_by("is_rand").agg(pl.col("is_click").mean()).iter_rows())
    assert rates[1] < rates[0] - 0.05
    shown = log.group_by("is_rand", "video_id").len().group_by("is_rand").agg(pl.col("len").max() / pl.col("len").sum())
    concentration = dict(shown.iter_rows())
    assert concentration[0] > 3 * concentration[1]


def test_popularity_and_activity_are_heavy_tailed(log):
    for key in ("user_id", "video_id"):
        sizes = log.group_by(key).len()["len"].sort(descending=True)
        assert sizes.head(len(sizes) // 10).sum() > 0.25 * sizes.sum()


def test_times_rise_within_a_user_and_agree_with_date_hour_and_position(log):
    step = log["time_ms"].diff()
    same_user = log["user_id"].diff() == 0
    same_file = log["date"].diff() == 0
    assert (step.filter(same_user & same_file) > 0).all()
    assert log.select("user_id", "time_ms").n_unique() == log.height
    clock = pl.from_epoch(log["time_ms"], "ms")
    assert (clock.dt.strftime("%Y%m%d").cast(pl.Int32) == log["date"]).all()
    assert (clock.dt.hour().cast(pl.Int32) * 100 == log["hourmin"]).all()
    continues = log["position"].diff() == 1
    assert ((log["position"] == 1) | continues.fill_null(False)).all()
    assert log["position"].max() <= 40


def test_return_next_day_says_who_comes(log):
    days = log["date"].unique().sort().to_list()
    by_day = {day: set(log.filter(pl.col("date") == day)["user_id"]) for day in days}
    for today, tomorrow in itertools.pairwise(days):
        rows = log.filter(pl.col("date") == today)
        says = set(rows.filter(pl.col("return_next_day") == 1)["user_id"])
        assert says == by_day[today] & by_day[tomorrow]
        assert rows.group_by("user_id").agg(pl.col("return_next_day").n_unique())["return_next_day"].max() == 1


def test_feedback_keeps_kuairands_definitions(log):
    assert ((log["play_time_ms"] >= log["duration_ms"].clip(upper_bound=7000)) == (log["is_click"] == 1)).all()
    assert ((log["play_time_ms"] >= log["duration_ms"].clip(upper_bound=18000)) == (log["long_view"] == 1)).all()
    for flag in ("long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_profile_enter"):
        assert log.filter((pl.col(flag) == 1) & (pl.col("is_click") == 0)).is_empty()
        assert log[flag].sum() > 0
    assert log.filter((pl.col("is_hate") == 1) & (pl.col("is_click") == 1)).is_empty()
    assert log.filter(pl.col("profile_stay_time") > 0)["is_profile_enter"].min() == 1


def test_columns_begin_as_kuairands_do(log):
    assert log.columns == [
        *("user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow", "is_comment"),
        *("is_forward", "is_hate", "long_view", "play_time_ms", "duration_ms", "profile_stay_time"),
        *("comment_stay_time", "is_profile_enter", "is_rand", "tab", "position", "revenue", "return_next_day"),
    ]


def test_truth_has_the_logs_rows_and_stays_out_of_the_data(raw, log, truth):
    keys = ["user_id", "video_id", "time_ms"]
    assert log.select(keys).equals(truth.select(keys))
    assert truth.null_count().sum_horizontal().item() == 0
    hidden = set(truth.columns) - set(keys)
    for path in (raw / "data").iterdir():
        assert not hidden & set(pl.read_parquet_schema(path))


def test_a_loaded_world_gives_the_truth_of_every_logged_row(raw, log, truth):
    world = load_world(raw)
    again = world.probabilities(
        log["user_id"].to_numpy(),
        log["video_id"].to_numpy(),
        log["time_ms"].to_numpy(),
        position=log["position"].to_numpy(),
        tab=log["tab"].to_numpy(),
    )
    assert set(again) | {"p_return", "user_id", "video_id", "time_ms"} == set(truth.columns)
    for name, values in again.items():
        np.testing.assert_allclose(values, truth[name].to_numpy(), rtol=1e-4, atol=1e-7)


def test_probabilities_broadcast_requests_against_candidates(raw):
    world = load_world(raw)
    users, items = np.array([[3], [11]]), np.arange(10).reshape(2, 5)
    time_ms = world.first_ms() + 3_600_000 * np.array([[5], [99]])
    grid = world.probabilities(users, items, time_ms, tab=TABS[2])
    one = world.probabilities(11, 7, time_ms[1, 0], tab=TABS[2])
    assert grid["p_click"].shape == (2, 5)
    assert one["p_click"].shape == ()
    assert grid["p_click"][1, 2] == pytest.approx(float(one["p_click"]), rel=1e-5)
    feedback = world.sample_feedback(users, items, time_ms, np.random.default_rng(0), tab=TABS[2])
    assert feedback["is_click"].shape == (2, 5)


def test_an_unknown_tab_is_refused(raw):
    with pytest.raises(DataError, match="tab 3"):
        load_world(raw).probabilities(0, 0, 1_704_100_000_000, tab=3)


def test_lower_positions_are_clicked_less_and_interests_drift(raw):
    world = load_world(raw)
    start = world.first_ms()
    clicks = world.probabilities(0, 1, start, position=np.arange(1, 11))["p_click"]
    assert (np.diff(clicks) < 0).all()
    items = np.arange(CONFIG.num_items)
    users = np.arange(200)[:, None]
    first = world.probabilities(users, items, start)["p_click"]
    later = world.probabilities(users, items, start + 6 * 86_400_000)["p_click"]
    alike = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(first, later, strict=True)])
    assert 0.5 < alike < 0.95


def test_better_days_bring_users_back(raw):
    world = load_world(raw)
    users = np.arange(100)
    dull, usual, good = (world.return_probability(users, np.full(100, joy, np.float32)) for joy in (0.1, 0.25, 0.5))
    away = world.return_probability(users, np.zeros(100, np.float32), was="away")
    assert (dull < usual).all()
    assert (usual < good).all()
    assert (away < usual).all()


def test_items_are_shown_from_their_upload_on_and_once_a_day(raw, log):
    videos = pl.read_parquet(raw / "data/video_features_basic.parquet")
    rows = log.join(videos, on="video_id", how="left")
    uploaded = rows["upload_dt"].str.replace_all("-", "").cast(pl.Int32)
    assert (uploaded <= rows["date"]).all()
    assert (uploaded >= 20240101).any()
    assert (rows["duration_ms"] == rows["video_duration"]).all()
    assert log.select("user_id", "date", "video_id").n_unique() == log.height


def test_statistics_come_from_before_the_log(raw, log):
    videos = pl.read_parquet(raw / "data/video_features_basic.parquet")
    statistics = pl.read_parquet(raw / "data/video_features_statistic.parquet")
    new = videos.filter(pl.col("upload_dt") >= "2024-01-01")["video_id"]
    counts = [c for c in statistics.columns if c != "video_id"]
    assert len(new) > 0
    assert statistics.filter(pl.col("video_id").is_in(new.implode())).select(counts).sum().sum_horizontal().item() == 0
    known = statistics.filter(pl.col("show_cnt") > 100).with_columns(before=pl.col("play_cnt") / pl.col("show_cnt"))
    after = log.group_by("video_id").agg(pl.len(), after=pl.col("is_click").mean()).filter(pl.col("len") > 100)
    both = known.join(after, on="video_id")
    assert np.corrcoef(both["before"], both["after"])[0, 1] > 0.3


def test_memory_does_not_grow_with_the_days():
    peaks = []
    for days in (3, 12):
        world = World.create(WorldConfig(num_users=1500, num_items=500, num_days=days, seed=1))
        tracemalloc.start()
        for _ in generate(world):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_blocks_hold_no_more_users_than_said(monkeypatch):
    monkeypatch.setattr(synthetic, "_BLOCK", 200)
    parts = [
        (name, log) for name, log, _ in generate(World.create(WorldConfig(num_users=500, num_items=99, num_days=2)))
    ]
    assert [name for name, _ in parts] == [f"2024010{day}_00{block}" for day in (1, 2) for block in range(3)]
    for name, log in parts:
        assert (log["user_id"] // 200 == int(name[-3:])).all()


def test_writing_refuses_a_full_directory_and_leaves_nothing_after_a_failure(tmp_path, monkeypatch):
    world = World.create(WorldConfig(num_users=50, num_items=20, num_days=2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty directory"):
        write_world(world, tmp_path / "full")
    assert contents(tmp_path / "full") == {"mine.txt": b"keep"}

    def stop_after_a_day(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(world, tmp_path / "new", stop_after_a_day)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_loading_needs_a_world_of_this_version(tmp_path):
    with pytest.raises(DataError, match=r"world\.json is no record"):
        load_world(tmp_path)
    (tmp_path / "world.json").write_text(json.dumps({"version": 99, "config": {}}))
    with pytest.raises(DataError, match="version 99"):
        load_world(tmp_path)


def test_the_spec_names_columns_that_are_written(raw):
    spec = load_spec(Path(infnet.__file__).parent / "data/specs/synthetic.yaml")

    def columns(patterns):
        return {c for pattern in patterns for path in raw.glob(pattern) for c in pl.read_parquet_schema(path)}

    log = columns(spec.log.files)
    side = {
        "user": columns(p for part in spec.user.parts for p in part),
        "item": columns(p for part in spec.item.parts for p in part),
        "context": log,
    }
    side["candidate"] = side["item"]
    assert {spec.log.user, spec.log.item, spec.log.time} <= log
    for feature in spec.features:
        if feature.kind != "hour":
            assert (feature.column or feature.name) in side[feature.side]
    assert [task.name for task in spec.tasks] == ["click", "like", "long_view", "watch_time"]
    assert "position" not in {feature.column or feature.name for feature in spec.features}


def test_interests_swing_as_far_as_drift_says():
    whole, half, none = (World.create(WorldConfig(num_users=50, num_items=20, drift=v)) for v in (1.0, 0.5, 0.0))
    hours = np.arange(0, 24 * 60, 7)
    visits = Visits(np.full(len(hours), 3), hours, np.zeros(len(hours), np.int64))
    full, damped, still = (interest_strengths(world.users, visits) for world in (whole, half, none))
    rest = whole.users.strength[3]
    np.testing.assert_allclose(still, np.broadcast_to(rest, still.shape))
    np.testing.assert_allclose(damped - rest, (full - rest) / 2, atol=1e-5)
    assert np.ptp(full[:, 0]) > 0.5 * abs(rest[0])


@pytest.mark.parametrize(
    "bad", [{"num_users": 0}, {"random_share": 1.0}, {"drift": 1.5}, {"seeds": 1}, {"num_items": 1}]
)
def test_a_senseless_config_is_refused(bad):
    with pytest.raises(ValueError, match="validation error"):
        WorldConfig(**bad)


def test_the_smallest_worlds_work_or_say_that_nobody_came(tmp_path):
    rows = []
    for seed in range(8):
        world = World.create(WorldConfig(num_users=1, num_items=2, num_days=1, num_topics=2, seed=seed))
        rows.append(sum(log.height for _, log, _ in generate(world)))
        if rows[-1] == 0:
            with pytest.raises(DataError, match="nobody came"):
                write_world(world, tmp_path / "nobody")
        else:
            assert write_world(world, tmp_path / str(seed)).rows == rows[-1]
    assert 0 in rows
    assert max(rows) > 0
    assert not (tmp_path / "nobody").exists()
