"""Plans against the textbook's formula, and against the histories they are made from."""

import math

import polars as pl
import pytest
from scipy.stats import norm

from infnet.errors import DataError
from infnet.experiments.analysis import analyse
from infnet.experiments.experiment_log import ExperimentLog
from infnet.experiments.metrics import parse_metric
from infnet.experiments.power import PowerSettings, plan, plan_from_log
from infnet.experiments.settings import AnalysisSettings
from infnet.experiments.user_table import UserTable
from simulated_users import CLICKS, CTR, EXPERIMENT, users

DAY = 86_400_000
START = 20_000 * DAY


def table(frame):
    return UserTable("users", frame.with_columns(variant=pl.lit("all")))


def textbook(variance, mean, effect, alpha=0.05, power=0.8):
    """Users of one variant (J. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988)."""
    return 2 * (norm.isf(alpha / 2) + norm.isf(1 - power)) ** 2 * variance / (effect * mean) ** 2


def test_users_are_those_of_the_textbook():
    frame = users(before=True)
    clicks, before = frame["click"].to_numpy(), frame["click_before"].to_numpy()
    (plain,) = plan(table(frame.drop("click_before")), [CLICKS], PowerSettings(effect=0.03))
    assert plain.needed_users == pytest.approx(2 * textbook(clicks.var(ddof=1), clicks.mean(), 0.03), rel=1e-3)
    (adjusted,) = plan(table(frame), [CLICKS], PowerSettings(effect=0.03))
    rho = frame.select(pl.corr("click", "click_before")).item()
    assert adjusted.needed_users == pytest.approx((1 - rho**2) * plain.needed_users, rel=1e-3)
    assert before.std() > 0


def test_more_variants_and_more_metrics_need_more_users():
    frame = users()
    clicks = frame["click"].to_numpy()
    both = plan(table(frame), [CLICKS, CTR], PowerSettings(effect=0.03, num_variants=3))
    wanted = 3 * textbook(clicks.var(ddof=1), clicks.mean(), 0.03, alpha=0.05 / 2 / 2)
    assert both[0].needed_users == pytest.approx(wanted, rel=1e-3)


def test_what_can_be_found_is_found_as_often_as_promised():
    (planned,) = plan(table(users(2000)), [CLICKS], PowerSettings())
    gain = planned.mean * planned.windows[0].detectable
    settings, found = AnalysisSettings(looks="fixed", cuped=False), []
    for seed in range(120):
        frame = users(2000, seed=seed).with_columns(pl.col("click") + gain * (pl.col("variant") == "new"))
        (effect,) = analyse(UserTable("users", frame), EXPERIMENT, [CLICKS], settings).effects
        found.append(effect.compared.p_value < 0.05)
    assert 0.73 < sum(found) / len(found) < 0.87


@pytest.mark.parametrize("effect", [1e-4, 0.5, 100.0])
def test_any_effect_has_an_answer(effect):
    (found,) = plan(table(users(200)), [CTR], PowerSettings(effect=effect))
    assert found.needed_users >= 2
    assert math.isfinite(found.windows[0].detectable)
    assert found.needed_days is None


def test_a_history_is_looked_at_in_windows_and_gives_days(write_log):
    requests, events = [], []
    for user in range(60):
        for day in range(user % 4, 4):  # fifteen new users a day
            requests.append((f"r{user}-{day}", f"u{user}", START + day * DAY + user, None))
            clicks = range(1 + (user + day) % 3)
            events += [(f"e{user}-{day}-{i}", f"r{user}-{day}", "click", START + day * DAY + user, 1.0) for i in clicks]
    log = ExperimentLog.read(write_log(requests, events), None)
    (found,) = plan_from_log(log, [CLICKS], PowerSettings(effect=0.01))
    assert [window.days for window in found.windows] == [1, 2, 3]
    assert all(window.users <= 60 for window in found.windows)
    assert found.needed_days is None or found.needed_days > 3
    (returned,) = plan_from_log(log, [parse_metric("active_days")], PowerSettings())
    assert [window.days for window in returned.windows] == [2, 3]  # one day says nothing
    (easy,) = plan_from_log(log, [CLICKS], PowerSettings(effect=0.9))
    assert easy.needed_days == next(window.days for window in easy.windows if window.detectable <= 0.9)
    (half,) = plan_from_log(log, [CLICKS], PowerSettings(effect=0.9, coverage=0.5))
    assert half.windows[-1].users == easy.windows[-1].users // 2


def test_a_long_history_leaves_a_pre_period_before_the_longest_window(write_log):
    requests = [
        (f"r{user}-{day}", f"u{user}", START + day * DAY, None)
        for user in range(30)
        for day in range(0, 22, 1 + user % 3)
    ]
    log = ExperimentLog.read(write_log(requests), None)
    (found,) = plan_from_log(log, [parse_metric("requests")], PowerSettings())
    assert [window.days for window in found.windows] == [2, 3, 5, 7, 10, 14]  # one request a day at most


def test_a_metric_that_says_nothing_is_named():
    with pytest.raises(DataError, match=r"users: metric 'click' \(click\) is undefined or the same for everybody"):
        plan(table(users().with_columns(click=0.1)), [CLICKS], PowerSettings())
