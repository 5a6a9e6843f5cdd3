"""Effects against the formulas written out, and against simulated truths."""

import math
import sys

import numpy as np
import polars as pl
import pytest
import tea_tasting
from scipy.stats import chisquare, norm, ttest_ind

from infnet.errors import DataError, SpecError
from infnet.evaluation.significance import holm
from infnet.experiments.analysis import analyse, daily_effects, sample_ratio_p
from infnet.experiments.comparison import fieller
from infnet.experiments.metrics import MetricSpec
from infnet.experiments.moments import Moments
from infnet.experiments.sequential import sequential_half_width, sequential_p
from infnet.experiments.settings import AnalysisSettings
from infnet.experiments.spec import Experiment
from infnet.experiments.user_table import DAY_MS, UserTable
from simulated_users import CLICKS, CTR, EXPERIMENT, users

FIXED = AnalysisSettings(looks="fixed", cuped=False)


def analysed(frame, metrics=(CLICKS, CTR), settings=FIXED, experiment=EXPERIMENT, **options):
    return analyse(UserTable("users", frame), experiment, metrics, settings, **options)


def halves(frame, column):
    return [frame.filter(pl.col("variant") == name)[column].to_numpy() for name in ("control", "new")]


def test_a_mean_is_compared_by_welchs_test():
    frame = users(lift=0.1)
    control, new = halves(frame, "click")
    (found,) = [e.compared for e in analysed(frame, [CLICKS]).effects]
    assert (found.control, found.treatment) == pytest.approx((control.mean(), new.mean()))
    assert found.relative == pytest.approx(new.mean() / control.mean() - 1)
    assert found.p_value == pytest.approx(ttest_ind(new, control, equal_var=False).pvalue, rel=1e-3)


def test_a_ratio_has_the_variance_of_the_delta_method_over_users():
    frame = users(lift=0.1)
    (found,) = [e.compared for e in analysed(frame, [CTR]).effects]
    means, variances = [], []
    for clicks, shown in zip(halves(frame, "click"), halves(frame, "impressions"), strict=True):
        rate = clicks.sum() / shown.sum()
        means.append(rate)
        variances.append(np.var(clicks - rate * shown, ddof=1) / len(clicks) / shown.mean() ** 2)
    assert (found.control, found.treatment) == pytest.approx(tuple(means))
    z = (means[1] - means[0]) / math.sqrt(sum(variances))
    assert found.p_value == pytest.approx(2 * norm.sf(abs(z)), rel=2e-2)


def test_counting_events_instead_of_users_would_be_too_certain():
    frame = users(400, seed=3)
    (found,) = [e.compared for e in analysed(frame, [CTR]).effects]
    (clicks, more_clicks), (shown, more_shown) = halves(frame, "click"), halves(frame, "impressions")
    rate = (clicks.sum() + more_clicks.sum()) / (shown.sum() + more_shown.sum())
    naive = 1.96 * math.sqrt(rate * (1 - rate) * (1 / shown.sum() + 1 / more_shown.sum())) / rate
    assert found.high - found.low > 1.5 * 2 * naive


def test_the_pre_period_narrows_an_interval_as_theory_says():
    frame = users(6000, before=True)
    plain, adjusted = (
        analysed(frame, [CLICKS], AnalysisSettings(looks="fixed", cuped=cuped)).effects[0].compared
        for cuped in (False, True)
    )
    rho = np.corrcoef(frame["click"], frame["click_before"])[0, 1]
    assert adjusted.narrowed == pytest.approx(math.sqrt(1 - rho**2), abs=0.01)
    assert (adjusted.high - adjusted.low) / (plain.high - plain.low) == pytest.approx(adjusted.narrowed, abs=0.02)


def test_a_ratio_is_adjusted_by_what_users_did_before_as_its_formula_says():
    frame = users(lift=0.1, before=True)
    parts = []
    for shown, clicked in (("impressions", "click"), ("impressions_before", "click_before")):
        rows = [(frame.filter(pl.col("variant") == name)) for name in ("control", "new")]
        ratio = frame[clicked].sum() / frame[shown].sum()
        parts.append((rows, shown, clicked, ratio))
    # Of all users, linearised around the ratio of all.
    linear = [
        ((frame[clicked] - ratio * frame[shown]) / frame[shown].mean()).to_numpy() for _, shown, clicked, ratio in parts
    ]
    slope = np.cov(*linear)[0, 1] / linear[1].var(ddof=1)
    means, errors = [], []
    for name in ("control", "new"):
        own = frame.filter(pl.col("variant") == name)
        ratios = [own[clicked].sum() / own[shown].sum() for _, shown, clicked, _ in parts]
        one, before = (
            ((own[clicked] - ratio * own[shown]) / own[shown].mean()).to_numpy()
            for ratio, (_, shown, clicked, _) in zip(ratios, parts, strict=True)
        )
        means.append(ratios[0] - slope * (ratios[1] - parts[1][3]))
        errors.append(np.var(one - slope * before, ddof=1) / own.height)
    (found,) = [e.compared for e in analysed(frame, [CTR], AnalysisSettings(looks="fixed")).effects]
    assert (found.control, found.treatment) == pytest.approx(tuple(means))
    z = (means[1] - means[0]) / math.sqrt(sum(errors))
    assert norm.isf(found.p_value / 2) == pytest.approx(z, rel=0.01)
    assert found.narrowed < 0.9


def test_statistics_are_those_of_tea_tasting():
    frame = users(lift=0.1, before=True)
    metric = tea_tasting.RatioOfMeans("click", "impressions", "click_before", "impressions_before")
    (tea,) = tea_tasting.Experiment(ctr=metric).analyze(frame.drop("user_id"), control="control").values()
    (found,) = [e.compared for e in analysed(frame, [CTR], AnalysisSettings(looks="fixed")).effects]
    assert found.p_value == pytest.approx(tea.pvalue)
    assert found.relative == pytest.approx(tea.rel_effect_size)
    # Fieller's interval there, the logarithm's here: alike where the effect is small beside the mean.
    assert (found.low, found.high) == pytest.approx(
        (tea.rel_effect_size_ci_lower, tea.rel_effect_size_ci_upper), abs=0.005
    )


def test_a_relative_interval_holds_the_ratios_that_are_not_rejected():
    control, treatment = Moments(100, 2.0, 9.0), Moments(150, 2.5, 16.0)
    for ratio in fieller(control, treatment, 1.96):
        error = treatment.squared_error + (1 + ratio) ** 2 * control.squared_error
        assert abs(2.5 - (1 + ratio) * 2.0) == pytest.approx(1.96 * math.sqrt(error))
    assert fieller(Moments(100, 0.5, 9.0), treatment, 1.96) == (None, None)  # the control may be at 0
    assert fieller(Moments(100, -2.0, 9.0), treatment, 1.96) == (None, None)


def test_known_effects_are_inside_their_intervals_and_absent_ones_are_not_found():
    covered, rejected = [], []
    for seed in range(80):
        for lift, into in ((0.1, covered), (0.0, rejected)):
            effects = [e.compared for e in analysed(users(800, lift, seed), settings=FIXED).effects]
            into += [e.low <= lift <= e.high if lift else e.p_value < 0.05 for e in effects]
    assert 0.9 < np.mean(covered) < 0.99
    assert 0.01 < np.mean(rejected) < 0.1


def test_a_sample_ratio_mismatch_takes_every_claim_back():
    frame = users(4000, lift=1.0)
    treated = frame["variant"] == "new"
    lost = frame.filter(~(treated & (pl.Series(range(4000)) % 5 == 0)))
    whole, broken = analysed(frame), analysed(lost)
    assert [e.state for e in whole.effects] == ["better", "better"]
    assert whole.is_trusted
    assert broken.is_mismatched
    assert [e.state for e in broken.effects] == ["not to be trusted"] * 2
    assert [e.corrected_p for e in broken.effects] == [None, None]
    counts = [*broken.counts.values()]
    assert broken.srm_p == pytest.approx(chisquare(counts).pvalue, rel=0.2)


def test_of_many_variants_each_is_held_against_its_declared_share():
    three = Experiment.model_validate({"name": "e", "variants": [{"name": n} for n in "abc"]})
    assert sample_ratio_p(three, {"a": 1000, "b": 1000, "c": 1000}) > 0.5
    assert sample_ratio_p(three, {"a": 1000, "b": 1000, "c": 800}) < 0.001


def test_users_in_two_variants_are_tolerated_up_to_a_share():
    frame = users()
    for crossed, is_trusted in ((10, True), (100, False)):
        found = analyse(UserTable("users", frame, crossed=crossed), EXPERIMENT, [CLICKS], FIXED)
        assert found.is_trusted is is_trusted
    assert found.effects[0].state == "not to be trusted"


def test_several_metrics_share_one_chance_of_a_false_discovery():
    frame = users(lift=0.15)
    found = analysed(frame)
    assert [e.corrected_p for e in found.effects] == pytest.approx(holm([e.compared.p_value for e in found.effects]))


def test_a_guardrail_holds_is_harmed_or_is_unclear():
    for lift, better, state in ((0.3, "higher", "held"), (0.5, "lower", "harmed"), (0.0, "higher", "unclear")):
        metric = MetricSpec.model_validate(
            {"name": "g", "numerator": "click", "is_guardrail": True, "better": better, "margin": 0.05}
        )
        found = analysed(users(3000 if lift else 400, lift), [CTR, metric])
        assert found.effects[1].state == state, lift


@pytest.mark.parametrize("looks", ["fixed", "sequential"])
def test_a_guardrail_below_zero_is_harmed_by_what_is_lower_still(looks):
    metric = MetricSpec.model_validate({"name": "profit", "numerator": "click", "is_guardrail": True, "margin": 0.1})
    settings = AnalysisSettings(looks=looks, cuped=False)
    for shift, state in ((0.0, "held"), (-0.2, "harmed")):
        frame = users(20_000).with_columns(
            click=pl.col("click") * 0.01 - 1 + pl.when(pl.col("variant") == "new").then(shift).otherwise(0.0)
        )
        assert analysed(frame, [CTR, metric], settings).effects[1].state == state


@pytest.mark.parametrize("number", [0.1, 7.7, 1e6 / 3])
def test_a_metric_that_is_the_same_for_everybody_says_nothing(number):
    frame = users().with_columns(click=number)
    assert [e.state for e in analysed(frame, [CLICKS]).effects] == ["no data"]


@pytest.mark.parametrize("metric", [CLICKS, CTR])
def test_a_metric_that_is_zero_for_everybody_says_nothing(metric):
    frame = users().with_columns(pl.lit(0.0).alias(name) for name in ("click", "impressions"))
    (effect,) = analysed(frame, [metric]).effects
    assert (effect.state, effect.compared) == ("no data", None)


def test_an_empty_variant_is_an_error():
    with pytest.raises(DataError, match=r"users: variant 'new' of 'e' has no users \(control [\d,]+\)"):
        analysed(users().filter(pl.col("variant") == "control"))


def test_segments_are_corrected_together():
    rng = np.random.default_rng(1)
    frame = users(4000, lift=0.1).with_columns(pl.Series("tab", rng.choice(["1", "2", "3"], 4000)))
    found = analysed(frame, segments=["tab"])
    assert len(found.segments) == 6
    p_values = [e.compared.p_value for e in found.segments]
    assert [e.corrected_p for e in found.segments] == pytest.approx(holm(p_values))
    assert sum(e.users for e in found.segments if e.metric is CTR) == 4000


def test_an_interval_ends_where_its_p_value_is_alpha():
    for variance, mixing in ((1.0, 8.0), (0.01, 1.0), (5.0, 0.1)):
        width = sequential_half_width(variance, mixing, 0.05)
        assert sequential_p(width, variance, mixing) == pytest.approx(0.05)
        assert sequential_p(1.1 * width, variance, mixing) < 0.05 < sequential_p(0.9 * width, variance, mixing)


def test_looking_every_day_is_wrong_in_a_twentieth_of_tests_at_most():
    rng, runs, days = np.random.default_rng(0), 2000, 30
    sums = np.cumsum(rng.normal(size=(days, runs)), axis=0)
    variances = 2.0 / np.arange(1, days + 1)[:, None] * np.ones((1, runs))
    differences = math.sqrt(2) * sums / np.arange(1, days + 1)[:, None]
    fixed = (np.abs(differences) > 1.96 * np.sqrt(variances)).any(axis=0).mean()
    sequential = (sequential_p(differences, variances, 0.5) < 0.05).any(axis=0).mean()
    assert 0.2 < fixed < 0.4
    assert sequential <= 0.05


def test_effects_of_days_add_up_to_the_effect_of_all():
    frame = users(600, lift=0.2).with_columns(first_ms=pl.lit(20_000 * DAY_MS))
    half = pl.col("impressions", "click") / 2
    days = pl.concat([frame.select("user_id", half, day=pl.lit(20_000 + day)) for day in (0, 1)])
    analysis = analyse(UserTable("users", frame, days), EXPERIMENT, [CTR], FIXED)
    found = daily_effects(analysis, CTR, "new")
    assert [effect.day for effect in found] == [20_000, 20_001]
    assert found[-1].fixed.relative == pytest.approx(analysis.effects[0].compared.relative)
    assert found[-1].fixed.p_value == pytest.approx(analysis.effects[0].compared.p_value)
    assert found[-1].sequential.p_value > found[-1].fixed.p_value


def test_effects_of_days_are_adjusted_only_if_the_others_are():
    frame = users(600, before=True).with_columns(first_ms=pl.lit(20_000 * DAY_MS))
    days = frame.select("user_id", "click", "impressions", day=pl.lit(20_000))
    for cuped in (False, True):
        analysis = analyse(UserTable("users", frame, days), EXPERIMENT, [CTR], AnalysisSettings(cuped=cuped))
        (found,) = daily_effects(analysis, CTR, "new")
        assert found.sequential.relative == pytest.approx(analysis.effects[0].compared.relative)
        assert (found.sequential.narrowed < 1) is cuped


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tea_tasting.aggr", None)
    with pytest.raises(SpecError, match=r"tea-tasting, which is not here: pip install 'infnet\[experiments\]'"):
        analysed(users())


def test_a_guardrail_against_what_never_happened_holds_and_one_metric_alone_says_nothing():
    frame = users().with_columns(hide=pl.lit(0.0))
    hides = {"name": "hides", "numerator": "hide", "better": "lower"}
    guarded = MetricSpec.model_validate(hides | {"is_guardrail": True})
    assert [e.state for e in analysed(frame, [CTR, guarded]).effects][1] == "held"
    assert [e.state for e in analysed(frame, [CTR, MetricSpec.model_validate(hides)]).effects][1] == "no data"
    wanted = MetricSpec.model_validate({"name": "orders", "numerator": "hide", "is_guardrail": True})
    assert [e.state for e in analysed(frame, [CTR, wanted]).effects][1] == "no data"
