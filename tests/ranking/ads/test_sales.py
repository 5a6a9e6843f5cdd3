import re

import numpy as np
import pytest

from infnet.data.layout import TaskLayout
from infnet.errors import SpecError
from infnet.ranking.policy import Policy

TASKS = (
    TaskLayout(name="click", kind="binary", loss="bce"),
    TaskLayout(name="watch_s", kind="regression", loss="mse"),
)
TEXT = """objectives: {engagement: {formula: watch_s}}
inputs:
  bid_usd: {item: bid_usd, unit: USD, range: [0, 100]}
ads:
  bid: bid_usd * p_click
  click: p_click
  reserve: 0.1
  budget: daily_budget
  frequency: [{at_most: 3, per: advertiser_id, hours: 24}]
constraints: [{ad_load: {at_most: 1, per: 2}}]
"""
ITEMS = {"bid_usd": [1.0, 2.0, None, 1.0], "is_ad": [True, True, False, True]}
PREDICTIONS = {"click": np.array([0.5, 0.2, 0.9, 0.05]), "watch_s": np.ones(4)}


def parse(text):
    return Policy.parse(text, TASKS, "policy.yaml")


def test_ads_of_a_policy_pay_second_prices():
    policy = parse(TEXT)
    columns = policy.score(PREDICTIONS, ITEMS).columns
    sold = policy.ads.auction(columns, np.array([True, True, False, True]))
    assert sold.winners.tolist() == [0, 1]
    assert sold.price_per_impression == pytest.approx([0.4, 0.1])
    assert sold.price_per_click == pytest.approx([0.8, 0.5])


def test_a_pace_lowers_bids():
    policy = parse(TEXT)
    columns = policy.score(PREDICTIONS, ITEMS).columns
    sold = policy.ads.auction(columns, np.array([True, True, False, True]), np.array([0.5, 1.0, 1.0, 1.0]), 1)
    assert (sold.winners.tolist(), sold.price_per_impression.tolist()) == ([1], [0.25])
    assert policy.ads.auction(columns, np.zeros(4, dtype=bool)).winners.tolist() == []


def test_what_ads_read_is_known():
    policy = parse(TEXT)
    assert set(policy.item_fields) == {"bid_usd", "is_ad", "campaign_id", "daily_budget", "advertiser_id"}
    assert set(policy.inputs) == {"watch_s", "bid_usd", "p_click"}
    assert parse(TEXT[: TEXT.index("ads:")]).ads is None
    assert policy.ads.hours_by_field == {"advertiser_id": 24}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bid_usd * p_click", "bid_us * p_click", "5: ads.bid: 'bid_us' is neither a prediction nor declared under"),
        (
            "bid_usd * p_click",
            "bid_usd - 1",
            "5: ads.bid: 'bid_usd - 1' may be -1; wanted values from 0 on, as in max(",
        ),
        ("click: p_click", "click: watch_s", "6: ads.click: 'watch_s' is between 0 and 1e+06, wanted a probability"),
        ("reserve: 0.1", "reserve: -1", "7: ads.reserve: Input should be greater than or equal to 0, found -1"),
        ("reserve: 0.1", "reserv: 1", "7: unknown setting 'ads.reserv'; did you mean 'reserve'?"),
        ("reserve: 0.1", "pricing: third", "7: ads.pricing: Input should be 'first_price' or 'second_price', found"),
        ("hours: 24", "hours: 0", "9: ads.frequency.0.hours: Input should be greater than 0, found 0"),
        ("ad_load: {", "ad_load: {field: sold, ", "4: ads: says what ads pay and not where they stand; add to 'constr"),
        ("bid_usd * p_click", "bid_usd ** 9", "5: ads.bid: 'bid_usd ** 9' may be 1e+18; wanted at most 1e+12; narrow"),
        ("reserve: 0.1", "pacing: {method: pid}", "7: ads.pacing.method: Input should be 'bid' or 'throttle', found"),
    ],
)
def test_what_cannot_be_sold_is_told_in_one_line(old, new, message):
    assert old in TEXT
    with pytest.raises(SpecError) as error:
        parse(TEXT.replace(old, new, 1))
    assert re.match(re.escape(f"policy.yaml, line {message}"), str(error.value)), str(error.value)
