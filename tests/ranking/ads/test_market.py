"""Auctions of whole requests, against a market written out in plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.data.layout import TaskLayout
from infnet.errors import DataError
from infnet.ranking.ads.market import Standing
from infnet.ranking.ads.pacing import Pacer
from infnet.ranking.ads.spec import Pacing
from infnet.ranking.policy import Policy
from infnet.ranking.rerank.ads_first import AdOrder

TASKS = (TaskLayout(name="click", kind="binary", loss="bce"),)
TEXT = """
inputs: {bid: {item: bid, range: [0, 100]}}
objectives: {engagement: {formula: p_click}}
ads:
  bid: bid * p_click
  click: p_click
  reserve: 0.2
  budget: budget
  campaign: campaign
  frequency: [{at_most: 2, per: campaign, hours: 24}, {at_most: 1, per: brand, hours: 1}]
constraints: [{ad_load: {at_most: 1, per: 3, first: 2}}, {floor: p_click, at_least: 0.05}]
"""
NOW = 20_000 * 86_400.0 + 40_000
SEEN = {"campaign": (), "brand": ()}
PACING = Pacing(method="bid", first=0.5, every_s=3600)


def policy(text=TEXT):
    return Policy.parse(text, TASKS)


def market(items, clicks, standing=None, text=TEXT, pacer=None):
    made = policy(text)
    clicks = np.array(clicks, dtype=np.float64)
    columns = made.score({"click": clicks}, items).columns
    passes = made.reranker.passes(columns, len(clicks))
    standing = Standing(NOW, {}, SEEN) if standing is None else standing
    return made.ads.market(columns, items, passes, pacer or Pacer(PACING), standing)


def an_ad(**fields):
    given = {"is_ad": True, "bid": 2.0, "campaign": "c", "budget": 100.0, **fields}
    return {name: [value] for name, value in given.items()}


@pytest.mark.parametrize(
    ("fields", "standing", "why"),
    [
        ({"campaign": None}, None, "no campaign"),
        ({"campaign": ""}, None, "no campaign"),
        ({"campaign": "x" * 513}, None, "no campaign"),
        ({"campaign": ["c"]}, None, "no campaign"),
        ({"campaign": 1.5}, None, "no campaign"),
        *(({"budget": odd}, None, "no budget") for odd in (None, 0, -1.0, math.nan, math.inf, "100", True, [5])),
        ({}, Standing(NOW, None, SEEN), "spending unknown"),
        ({}, Standing(NOW, {"c": 100.0}, SEEN), "budget spent"),
        ({}, Standing(NOW, {}, None), "impressions unknown"),
        ({}, Standing(NOW, {}, {"campaign": [("c", 1000 * int(NOW))] * 2, "brand": ()}), "capped"),
        ({"brand": "x" * 513}, None, "key too long"),
        ({"bid": 0.1}, None, "below reserve"),
        ({"bid": None}, None, "below reserve"),
    ],
)
def test_an_ad_stays_out_for_a_reason(fields, standing, why):
    found = market(an_ad(**fields), [0.9], standing)
    assert found.refused == {0: why}
    assert found.auction.winners.tolist() == []


def test_what_floors_do_not_let_through_is_no_competitor():
    items = {"is_ad": [1, True], "bid": [100.0, 2.0], "campaign": [1, 2], "budget": [10**400, 5]}
    found = market(items, [0.01, 0.9])
    assert found.refused == {0: "below floor"}
    assert found.auction.price_per_impression == pytest.approx([0.2])


def test_impressions_count_for_their_hours():
    old = [("c", round(1000 * (NOW - 24 * 3600)) - 1), ("c", round(1000 * (NOW - 24 * 3600)) + 1)]
    assert not market(an_ad(), [0.9], Standing(NOW, {}, {"campaign": old, "brand": ()})).refused
    of_brand = [("b", round(1000 * (NOW - 3601)))]
    assert not market(an_ad(brand="b"), [0.9], Standing(NOW, {}, {"campaign": (), "brand": of_brand})).refused


@pytest.mark.parametrize("value", ["yes", "false", 2, math.nan, [True], {}])
def test_what_is_an_ad_is_true_or_false(value):
    with pytest.raises(DataError, match=r"field 'is_ad' is .*, wanted true or false"):
        market(an_ad(is_ad=value), [0.9])


def test_of_several_budgets_of_a_campaign_the_lowest_counts():
    items = {name: [*values, *values] for name, values in an_ad().items()} | {"budget": [100.0, 10.0]}
    assert market(items, [0.9, 0.9], Standing(NOW, {"c": 10.0}, SEEN)).refused == dict.fromkeys((0, 1), "budget spent")


def test_throttled_campaigns_stay_out_and_the_others_bid_in_full():
    text = TEXT.replace("  reserve", "  pacing: {method: throttle}\n  reserve")
    pacer = Pacer(Pacing(method="throttle", first=0.25, every_s=3600))
    took = 0
    for seed in range(400):
        night = Standing(20_000 * 86_400.0, {}, SEEN, seed)
        found = market(an_ad(), [0.5], night, text, pacer)
        assert found.refused in ({}, {0: "throttled"})
        took += not found.refused
        if not found.refused:
            assert found.auction.ecpm == pytest.approx([1000.0])
    assert 70 < took < 130


def written_out(items, clicks, spent, seen):
    """Who takes part, best first, and the prices."""
    pacer, entered = Pacer(PACING), []
    campaigns = {}
    for place in range(len(clicks)):
        if items["is_ad"][place] and items["campaign"][place] is not None and items["budget"][place] > 0:
            campaigns.setdefault(items["campaign"][place], []).append(items["budget"][place])
    for place, prob in enumerate(clicks):
        campaign = items["campaign"][place]
        if not items["is_ad"][place] or campaign not in campaigns or not items["budget"][place] > 0 or prob < 0.05:
            continue
        value = items["bid"][place] * prob * pacer.pace(campaign, min(campaigns[campaign]), spent.get(campaign, 0), NOW)
        if spent.get(campaign, 0) < min(campaigns[campaign]) and value >= 0.2:
            entered.append((-value, place))
    entered.sort()
    counts, kept = {campaign: seen.count(campaign) for campaign in "abc"}, []
    for value, place in entered:
        campaign = items["campaign"][place]
        counts[campaign] += 1
        if counts[campaign] <= 2:
            kept.append((place, -value))
        else:
            counts[campaign] -= 1
    following = [value for _, value in kept[1:]] + [0.2]
    return [place for place, _ in kept], following[: len(kept)]


rows = st.tuples(
    st.booleans(),
    st.sampled_from([0.0, 1.0, 2.0, 5.0]),
    st.sampled_from(["a", "b", "c", None]),
    st.sampled_from([0.0, 1.0, 50.0]),
    st.sampled_from([0.01, 0.1, 0.5, 0.9]),
)


@settings(max_examples=200)
@given(
    given_rows=st.lists(rows, min_size=1, max_size=8),
    spent=st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.5, 1.0, 60.0])),
    seen=st.lists(st.sampled_from("abc"), max_size=4),
)
def test_it_is_the_market_written_out(given_rows, spent, seen):
    is_ad, bid, campaign, budget, clicks = (list(column) for column in zip(*given_rows, strict=True))
    items = {"is_ad": is_ad, "bid": bid, "campaign": campaign, "budget": budget}
    standing = Standing(NOW, spent, {"campaign": [(key, round(1000 * NOW)) for key in seen], "brand": ()})
    found = market(items, clicks, standing)
    winners, prices = written_out(items, clicks, spent, seen)
    assert found.auction.winners.tolist() == winners
    assert found.auction.price_per_impression == pytest.approx(prices)
    assert {*winners, *found.refused} == {place for place, one in enumerate(is_ad) if one}


def page_of(made, scores, ads, is_ad, limit, items=None, columns=None):
    order = AdOrder(np.array(is_ad), np.array(ads, dtype=np.intp))
    columns = columns or {"p_click": np.ones(len(scores))}
    items = {"is_ad": is_ad, **(items or {})}
    return made.reranker.order(np.array(scores), columns, items, limit, None, order)


def test_ads_stand_as_early_as_the_load_lets_them_in_the_order_of_the_auction():
    scores, is_ad = [0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.2, 0.3], [False] * 5 + [True] * 3
    page = page_of(policy(), scores, [7, 5, 6], is_ad, 8)
    assert page.places.tolist() == [0, 7, 1, 2, 5, 3, 4, 6]
    waited = ("held back by ad_load 1 per 3 from 2 on",)
    assert page.notes == ((), waited, (), (), waited, (), (), waited)
    assert page_of(policy(), scores, [5], is_ad, 4).places.tolist() == [0, 5, 1, 2]
    assert page_of(policy(), scores, [], is_ad, 8).places.tolist() == [0, 1, 2, 3, 4]


def test_a_page_is_rather_shorter_than_beyond_the_load():
    is_ad = [False, True, True, True]
    assert page_of(policy(), [0.1, 0.9, 0.8, 0.7], [1, 2, 3], is_ad, 4).places.tolist() == [0, 1]
    assert page_of(policy(), [0.9, 0.8], [1, 0], [True, True], 4).places.tolist() == []


def test_the_load_is_kept_where_constraints_declared_before_it_cannot_be():
    text = TEXT.replace("[{ad_load", "[{spacing: 5, per: author}, {ad_load")
    made, is_ad = policy(text), [False, False, False, True]
    items = {"author": ["x", "x", "x", "y"]}
    page = page_of(made, [0.9, 0.8, 0.7, 0.1], [3], is_ad, 4, items)
    assert page.places.tolist() == [0, 3, 1, 2]
    assert page_of(made, [0.9, 0.8, 0.7, 0.1], [], is_ad, 4, items).places.tolist() == [0, 1, 2]


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_diversity_sees_ads_and_leaves_their_order_alone(method):
    text = TEXT + f"diversity: {{method: {method}, strength: 0.9, by: [topic]}}\n"
    is_ad = [False] * 4 + [True] * 2
    items = {"topic": ["t", "u", "t", "u", "t", "t"]}
    page = page_of(policy(text), [0.9, 0.5, 0.8, 0.4, 0.0, 0.0], [5, 4], is_ad, 6, items)
    assert page.places.tolist()[0:2] == [0, 5]
    assert page.places.tolist()[2] == 1  # not another 't'
    assert page.places.tolist()[4] == 4
    assert page_of(policy(text), [0.0, 0.1], [1, 0], [True, True], 2, {"topic": ["t", "t"]}).places.tolist() == []
