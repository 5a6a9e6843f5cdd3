import concurrent.futures

import numpy as np
import pytest

from infnet.errors import DataError
from infnet.ranking.ads import pacing
from infnet.ranking.ads.pacing import Pacer
from infnet.ranking.ads.spec import Pacing

TRAFFIC = (2, 1, 0.6, 0.4, 0.4, 0.6, 1.2, 2.5, 4, 5, 5, 5, 5.5, 5.5, 5, 5, 5, 5.5, 6.5, 8, 9, 8.5, 6.5, 4)
DAY_S, MIDNIGHT = 86400.0, 20_000 * 86400.0


def auctions(num, seed):
    """Seconds of the day, the best competitor's bid against our 1, and random draws."""
    rng = np.random.default_rng(seed)
    hours = rng.choice(24, num, p=np.array(TRAFFIC) / sum(TRAFFIC))
    seconds = np.sort((hours + rng.random(num)) * 3600)
    return list(zip(seconds.tolist(), rng.lognormal(-0.5, 0.6, num).tolist(), rng.random(num).tolist(), strict=True))


def paced(pacer, budget, spent, time_s, drawn):
    """What a bid of 1 comes to."""
    pace = pacer.pace("c", budget, spent, time_s)
    return pace if pacer.spec.method == "bid" else float(drawn < pace)


def simulate(pacer, budget, day, starts_s=MIDNIGHT):
    """Share of the budget that second prices take, and of the day after which nothing is left."""
    total, exhausted = 0.0, 1.0
    for second, competitor, drawn in day:
        factor = 1.0 if pacer is None else paced(pacer, budget, total, starts_s + second, drawn)
        if total < budget and factor > competitor:
            total += competitor
            if total >= budget:
                exhausted = second / DAY_S
    return total / budget, exhausted


@pytest.mark.parametrize("method", ["bid", "throttle"])
@pytest.mark.parametrize("hourly_traffic", [None, TRAFFIC])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.7])
@pytest.mark.parametrize(("num", "seed"), [(3000, 0), (20_000, 1)])
def test_a_budget_lasts_the_day_and_is_spent(method, hourly_traffic, share, num, seed):
    """Against bidding in full, which exhausts it early. ``share``: of what bidding in full would spend all day."""
    day = auctions(num, seed)
    budget = share * sum(competitor for _, competitor, _ in day if competitor < 1)
    spent, exhausted = simulate(Pacer(Pacing(method=method, hourly_traffic=hourly_traffic)), budget, day)
    assert spent == pytest.approx(1.0, abs=0.05)
    assert exhausted > 0.95
    assert simulate(None, budget, day)[1] < 0.85


def test_more_budget_than_can_be_spent_does_not_slow_a_campaign_down_for_long():
    day = auctions(20_000, 2)
    could = sum(competitor for _, competitor, _ in day if competitor < 1)
    pacer = Pacer(Pacing(hourly_traffic=TRAFFIC))
    spent, _ = simulate(pacer, 2 * could, day)
    assert spent > 0.5 * 0.97
    assert pacer.pace("c", 2 * could, 2 * could * spent, MIDNIGHT + DAY_S - 1) == 1.0


def test_spending_follows_the_plan_all_day():
    day = auctions(20_000, 3)
    budget = 0.35 * sum(competitor for _, competitor, _ in day if competitor < 1)
    pacer, total = Pacer(Pacing(hourly_traffic=TRAFFIC)), 0.0
    for second, competitor, drawn in day:
        time_s = MIDNIGHT + second
        if paced(pacer, budget, total, time_s, drawn) > competitor:
            total += competitor
        if second > 3600:
            assert total / budget == pytest.approx(pacer.planned_share(time_s), abs=0.03)


def test_a_new_day_begins_at_the_pace_of_the_last():
    pacer = Pacer(Pacing(first=0.5, day_starts_at_hour=6))
    morning = MIDNIGHT + 6 * 3600
    assert pacer.pace("c", 10.0, 0.0, morning - DAY_S) == pytest.approx(0.5)
    assert pacer.pace("c", 10.0, 10.0, morning - 1) == 0.0
    assert pacer.pace("c", 10.0, 0.0, morning) == pytest.approx(0.5)


def test_days_begin_at_their_hour():
    pacer = Pacer(Pacing(day_starts_at_hour=5.5))
    start_ms = round(1000 * (MIDNIGHT + 5.5 * 3600))
    assert pacer.day_start_ms(MIDNIGHT + 5.5 * 3600) == start_ms
    assert pacer.day_start_ms(MIDNIGHT + 5.5 * 3600 + DAY_S - 0.001) == start_ms
    assert pacer.day_start_ms(MIDNIGHT) == start_ms - 86_400_000


def test_the_plan_follows_the_traffic():
    pacer = Pacer(Pacing(hourly_traffic=(0.0,) * 12 + (1.0,) * 6 + (3.0,) * 6))
    shares = [pacer.planned_share(MIDNIGHT + hour * 3600) for hour in (0, 12, 15, 18, 21)]
    assert shares == pytest.approx([0, 0, 1 / 8, 1 / 4, 5 / 8])
    assert Pacer().planned_share(MIDNIGHT + DAY_S / 3) == pytest.approx(1 / 3)


def test_the_pace_stays_within_its_bounds_and_zero_is_for_spent_budgets_alone():
    pacer = Pacer(Pacing(lowest=0.1))
    paces = [pacer.pace("c", 100.0, 99.0, MIDNIGHT + 60 * minute) for minute in range(1, 1440)]
    assert min(paces) == pytest.approx(0.1)
    assert max(paces) <= 1.0
    assert pacer.pace("c", 1000.0, 99.0, MIDNIGHT + DAY_S - 1) > 0.1
    assert pacer.pace("c", 99.0, 99.0, MIDNIGHT + DAY_S - 1) == 0.0


def test_campaigns_asked_for_longest_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr(pacing, "_REMEMBERED", 2)
    pacer, late = Pacer(Pacing(first=0.5, every_s=3600)), MIDNIGHT + 3 * 3600

    def pace(campaign):
        return pacer.pace(campaign, 100.0, 20.0, late)

    kept = pace("a")
    assert kept < 0.5  # corrected once
    assert pace("b") == pace("a") == kept
    pace("c")  # instead of b
    assert len(pacer._campaigns) == 2
    assert pace("a") == kept


def test_two_who_see_the_same_spending_keep_the_same_pace():
    """As replicas do, which share a budget and have a controller each."""
    day = auctions(20_000, 5)
    budget = 0.35 * sum(competitor for _, competitor, _ in day if competitor < 1)
    pacers, total = [Pacer(Pacing(hourly_traffic=TRAFFIC)) for _ in range(2)], 0.0
    for number, (second, competitor, drawn) in enumerate(day):
        if total < budget and paced(pacers[number % 2], budget, total, MIDNIGHT + second, drawn) > competitor:
            total += competitor
        if second > 3600:
            assert total / budget == pytest.approx(pacers[0].planned_share(MIDNIGHT + second), abs=0.03)


def test_asked_by_many_threads_it_is_corrected_once_per_step():
    alone, shared = Pacer(), Pacer()
    wanted = [alone.pace("c", 100.0, 1.0, MIDNIGHT + 60 * minute) for minute in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for minute, pace in enumerate(wanted):
            found = threads.map(lambda _, at=minute: shared.pace("c", 100.0, 1.0, MIDNIGHT + 60 * at), range(8))
            assert {*found} == {pace}


@pytest.mark.parametrize("amount", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_told(amount):
    with pytest.raises(DataError, match=r"budget of campaign 'c' is .*, wanted more than 0"):
        Pacer().pace("c", amount, 0.0, MIDNIGHT)
