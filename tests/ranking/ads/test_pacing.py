import concurrent.futures
import json

import numpy as np
import pytest

from infnet.errors import DataError
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


def simulate(pacer, budget, day, starts_s=MIDNIGHT):
    """Share of the budget that second prices take, and of the day after which nothing is left."""
    total, exhausted = 0.0, 1.0
    for second, competitor, drawn in day:
        factor = 1.0 if pacer is None else pacer.factor("c", starts_s + second, drawn)
        if total < budget and factor > competitor:
            total += competitor
            if pacer is not None:
                pacer.spent("c", competitor, starts_s + second)
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
    pacer = Pacer(Pacing(method=method, hourly_traffic=hourly_traffic))
    pacer.set_budget("c", budget)
    spent, exhausted = simulate(pacer, budget, day)
    assert spent == pytest.approx(1.0, abs=0.05)
    assert exhausted > 0.95
    assert simulate(None, budget, day)[1] < 0.85


def test_more_budget_than_can_be_spent_does_not_slow_a_campaign_down_for_long():
    day = auctions(20_000, 2)
    could = sum(competitor for _, competitor, _ in day if competitor < 1)
    pacer = Pacer(Pacing(hourly_traffic=TRAFFIC))
    pacer.set_budget("c", 2 * could)
    spent, _ = simulate(pacer, 2 * could, day)
    assert spent > 0.5 * 0.97
    assert pacer.multiplier("c", MIDNIGHT + DAY_S - 1) == 1.0


def test_spending_follows_the_plan_all_day():
    day = auctions(20_000, 3)
    budget = 0.35 * sum(competitor for _, competitor, _ in day if competitor < 1)
    pacer = Pacer(Pacing(hourly_traffic=TRAFFIC))
    pacer.set_budget("c", budget)
    total = 0.0
    for second, competitor, drawn in day:
        time_s = MIDNIGHT + second
        if pacer.factor("c", time_s, drawn) > competitor:
            pacer.spent("c", competitor, time_s)
            total += competitor
        if second > 3600:
            assert total / budget == pytest.approx(pacer.planned_share(time_s), abs=0.03)


def test_a_new_day_begins_with_nothing_spent_at_the_pace_of_the_last():
    pacer = Pacer(Pacing(first=0.5, day_starts_at_hour=6))
    pacer.set_budget("c", 10.0)
    morning = MIDNIGHT + 6 * 3600
    pacer.spent("c", 10.0, morning - 1)
    assert pacer.multiplier("c", morning - 1) == 0.0
    assert pacer.multiplier("c", morning) == pytest.approx(0.5)
    pacer.spent("c", 10.0, morning - 1)  # a charge of yesterday that comes late
    assert pacer.multiplier("c", morning) == pytest.approx(0.5)


def test_the_plan_follows_the_traffic():
    pacer = Pacer(Pacing(hourly_traffic=(0.0,) * 12 + (1.0,) * 6 + (3.0,) * 6))
    shares = [pacer.planned_share(MIDNIGHT + hour * 3600) for hour in (0, 12, 15, 18, 21)]
    assert shares == pytest.approx([0, 0, 1 / 8, 1 / 4, 5 / 8])
    assert Pacer().planned_share(MIDNIGHT + DAY_S / 3) == pytest.approx(1 / 3)


def test_without_a_budget_there_is_no_pace():
    pacer = Pacer()
    pacer.spent("c", 10.0, MIDNIGHT)
    assert (pacer.multiplier("c", MIDNIGHT), pacer.factor("c", MIDNIGHT, 0.999)) == (1.0, 1.0)
    assert pacer.snapshot() == {}


def test_a_pacer_goes_on_where_its_snapshot_was():
    day = auctions(2000, 4)
    budget = 0.3 * sum(competitor for _, competitor, _ in day if competitor < 1)
    whole, first = Pacer(), Pacer()
    for pacer in (whole, first):
        pacer.set_budget("c", budget)
        simulate(pacer, budget, day[:1000])
    second = Pacer.restore(json.loads(json.dumps(first.snapshot())))
    assert second.snapshot() == first.snapshot()
    simulate(whole, budget, day[1000:])
    simulate(second, budget, day[1000:])
    assert second.snapshot() == whole.snapshot()


def test_the_pace_stays_within_its_bounds_and_zero_is_for_spent_budgets_alone():
    pacer = Pacer(Pacing(lowest=0.1))
    pacer.set_budget("c", 100.0)
    pacer.spent("c", 99.0, MIDNIGHT)
    paces = [pacer.multiplier("c", MIDNIGHT + 60 * minute) for minute in range(1, 1440)]
    assert min(paces) == pytest.approx(0.1)
    assert max(paces) <= 1.0
    pacer.set_budget("c", 1000.0)
    assert pacer.multiplier("c", MIDNIGHT + DAY_S - 1) > 0.1


def test_charges_from_many_threads_all_count():
    pacer = Pacer()
    pacer.set_budget("c", 1e9)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: pacer.spent("c", 1.0, MIDNIGHT), range(5000)))
    assert pacer.snapshot()["c"]["spent"] == 5000.0


@pytest.mark.parametrize("amount", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_told(amount):
    with pytest.raises(DataError, match=r"budget of campaign 'c' is .*, wanted more than 0"):
        Pacer().set_budget("c", amount)


def test_what_is_no_snapshot_is_told():
    with pytest.raises(DataError, match=r"is no snapshot of a pacer \(.*\); start without one"):
        Pacer.restore({"c": {"money": 1}})
