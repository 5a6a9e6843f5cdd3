from datetime import UTC, datetime

import pytest

from infnet.experiments.analysis import analyse
from infnet.experiments.metrics import MetricSpec
from infnet.experiments.settings import AnalysisSettings
from infnet.experiments.user_table import UserTable
from infnet.experiments.verdict import judge
from simulated_users import CLICKS, CTR, EXPERIMENT, users

END = datetime(2026, 5, 14, tzinfo=UTC)
PLANNED = EXPERIMENT.model_copy(update={"end": END})
GUARD = MetricSpec.model_validate({"name": "shown", "numerator": "impressions", "is_guardrail": True, "margin": 0.2})


def verdict(frame, *metrics, looks="sequential", experiment=EXPERIMENT, now=None, **table):
    settings = AnalysisSettings(looks=looks, expected_effect=0.2)
    return judge(analyse(UserTable("users", frame, **table), experiment, metrics, settings), now)


def test_a_proven_gain_is_shipped_with_its_reasons():
    found = verdict(users(6000, lift=0.3), CTR, GUARD)
    assert (found.outcome, found.variant) == ("ship", "new")
    assert found.reasons[0].startswith("new: ctr is better, +")
    assert found.reasons[-1] == "new: guardrails hold: shown"


def test_a_loss_is_not_shipped():
    found = verdict(users(6000, lift=-0.3), CTR)
    assert (found.outcome, found.variant) == ("do not ship", None)
    assert found.reasons[0].startswith("new: ctr is worse, -")


def test_a_gain_does_not_pay_for_a_harmed_guardrail():
    guard = GUARD.model_copy(update={"numerator": CLICKS.numerator, "better": "lower", "margin": 0.01, "name": "cost"})
    found = verdict(users(6000, lift=0.4), CTR, guard)
    assert found.outcome == "do not ship"
    assert any(reason.startswith("new: guardrail cost is harmed beyond 1.0%") for reason in found.reasons)


def test_what_is_not_clear_yet_runs_on_and_at_its_end_is_not_shipped():
    frame = users(300)
    running = verdict(frame, CTR, experiment=PLANNED, now=datetime(2026, 5, 10, tzinfo=UTC))
    assert running.outcome == "keep running"
    assert "new: ctr is not told apart from no change" in running.reasons[0]
    over = verdict(frame, CTR, experiment=PLANNED, now=END)
    assert over.outcome == "do not ship"
    assert over.reasons[-1] == "new: the planned end has come with no proven gain"


def test_a_guardrail_that_is_not_shown_to_hold_keeps_a_gain_waiting():
    guard = GUARD.model_copy(update={"margin": 0.001})
    found = verdict(users(6000, lift=0.3), CTR, guard)
    assert found.outcome == "keep running"
    assert any("guardrail shown is not shown to hold within 0.1%" in reason for reason in found.reasons)


def test_a_fixed_analysis_decides_at_its_end_alone():
    frame = users(6000, lift=0.3)
    early = verdict(frame, CTR, looks="fixed", experiment=PLANNED, now=datetime(2026, 5, 10, tzinfo=UTC))
    assert (early.outcome, early.reasons) == (
        "keep running",
        ["a fixed analysis is valid at its planned end, 2026-05-14 00:00 UTC; look at sequential intervals"],
    )
    assert verdict(frame, CTR, looks="fixed", experiment=PLANNED, now=END).outcome == "ship"


def test_nothing_is_said_of_effects_that_are_not_to_be_trusted():
    frame = users(4000, lift=0.5)
    some = frame.filter((frame["variant"] != "new") | (frame["user_id"].str.slice(1).cast(int) % 4 != 0))
    found = verdict(some, CTR)
    assert found.outcome == "not to be trusted"
    assert found.reasons[0].startswith("sample ratio mismatch, p ")
    assert not any("better" in reason for reason in found.reasons)
    crossed = verdict(frame, CTR, crossed=500)
    assert crossed.reasons[0] == "11.1% of users were seen in two variants, at most 1.0% tolerated"


@pytest.mark.parametrize("metrics", [(CTR,), (CLICKS, CTR)])
def test_no_data_is_no_verdict(metrics):
    frame = users().with_columns(click=0.0, impressions=0.0)
    found = verdict(frame, *metrics)
    assert found.outcome == "no data"
    assert found.reasons == [
        f"metrics that decide are undefined or the same for everybody: {', '.join(m.name for m in metrics)}"
    ]
