"""Which ads stand on pages, what they pay, and what is told of it."""

import msgspec
import numpy as np
import pytest

from ads_parts import AD_FIELDS, ITEMS, POLICY, ad_parts, ads_of, page, see, spent
from infnet.errors import DataError
from infnet.serving.wire import JSON, encode
from service_parts import count, wait_until


@pytest.fixture
def parts(bundle, tmp_path):
    with ad_parts(bundle, tmp_path) as parts:
        yield parts
    parts.policy.close()


@pytest.fixture
def with_policy(bundle, tmp_path):
    """Makes parts with another policy."""
    made = []

    def make(text):
        made.append(ad_parts(bundle, tmp_path, text))
        return made[-1]

    yield make
    for parts in made:
        parts.close()
        parts.policy.close()


def values(parts):
    """What each ad's impression is worth, by the model's own predictions."""
    every = parts.service.answer([parts.ticket(items=ITEMS, item_features=AD_FIELDS | {"is_ad": [False] * 7})])[0]
    clicks = {item.item_id: item.tasks["click"] for item in every.items}
    return {str(item): bid * clicks[str(item)] for item, bid in zip(ITEMS[4:], AD_FIELDS["bid_usd"][4:], strict=True)}


def test_ads_stand_where_the_load_lets_them_and_pay_what_the_next_one_would(parts):
    worth = values(parts)
    ranked = sorted(worth, key=worth.get, reverse=True)
    reply = page(parts)
    assert [item.price is not None for item in reply.items] == [False, True, False, False, True, False]
    assert ads_of(reply) == ranked[:2]
    for place, competitor in ((1, ranked[1]), (4, ranked[2])):
        item = reply.items[place]
        assert item.price.per_impression == pytest.approx(worth[competitor])
        assert item.price.per_click == pytest.approx(worth[competitor] / item.tasks["click"])
        assert (item.price.ecpm, item.price.pace) == (pytest.approx(1000 * worth[item.item_id]), 1.0)
    assert reply.ads_left_out == {ranked[2]: "no position"}
    alone = page(parts, item_features={"bid_usd": [None] * 4 + [5, 0, 0]})
    assert alone.items[1].price.per_impression == 0.001


def test_what_is_no_ad_has_no_price_on_the_wire(parts):
    reply = msgspec.json.decode(encode(page(parts, explain=False), JSON))
    assert [item.keys() - {"item_id", "score", "tasks"} for item in reply["items"]] == [
        {"price"} if place in (1, 4) else set() for place in range(6)
    ]
    assert reply["items"][1]["price"].keys() == {"per_impression", "per_click"}
    assert "ads_left_out" not in reply


def test_an_ad_over_its_cap_is_not_shown_to_this_user(parts):
    first = ads_of(page(parts))[0]
    for number in range(3):
        reply = page(parts)
        assert ads_of(reply)[0] == first
        see(parts, reply, first)
        see(parts, reply, first, event_id=f"again{number}")
    reply = page(parts)
    assert reply.ads_left_out[first] == "capped"
    assert len(ads_of(reply)) == 2
    assert first not in ads_of(reply)
    assert ads_of(page(parts, "u2"))[0] == first


def test_a_page_does_not_go_beyond_a_cap_by_itself(with_policy):
    parts = with_policy(POLICY.replace("at_most: 3", "at_most: 1"))
    reply = page(parts, item_features={"campaign_id": [None] * 4 + ["a", "a", "b"]})
    worth = values(parts)
    assert ads_of(reply)[-1:] in ([max("11", "12", key=worth.get)], ["13"])
    assert reply.ads_left_out == {min("11", "12", key=worth.get): "capped"}


def test_a_campaign_that_has_spent_its_budget_is_not_shown(parts):
    reply = page(parts)
    see(parts, reply)
    first = reply.items[1]
    budget = [None] * 4 + [first.price.per_impression * (1 if i == first.item_id else 9) for i in ("11", "12", "13")]
    assert ads_of(page(parts, item_features={"daily_budget": budget})) == ads_of(reply)  # not read yet
    parts.desk.spending.refresh()
    later = page(parts, item_features={"daily_budget": budget})
    assert later.ads_left_out == {first.item_id: "budget spent"}
    assert count(parts.metrics, "infnet_ads_refused_total", reason="budget spent") == 1


def test_paces_lower_bids_and_prices(with_policy):
    parts = with_policy(POLICY.replace("first: 1.0", "first: 0.5"))
    worth = values(parts)
    reply = page(parts)
    second = sorted(worth.values())[-2]
    assert reply.items[1].price.per_impression == pytest.approx(second / 2)
    assert reply.items[1].price.pace == pytest.approx(0.5)


@pytest.mark.parametrize("change", ["by", "random", "hurry"])
def test_pages_that_are_not_re_ranked_hold_no_ads(with_policy, change):
    parts = with_policy(POLICY + ("exploration: {share: 1}\n" if change == "random" else ""))
    if change == "hurry":
        parts.service.costs.rerank_s = 60.0
    reply = page(parts, **({"by": "like"} if change == "by" else {}))
    assert {item.item_id for item in reply.items} == {"1", "2", "3", "4"}
    why = {"by": "page by one task", "random": "page by chance", "hurry": "no time"}[change]
    assert reply.ads_left_out == dict.fromkeys(("11", "12", "13"), why)
    assert parts.served()[0]["sales"] == {}


def test_a_page_by_popularity_holds_no_ads(parts):
    page(parts)
    parts.store.put_items({"21": {"is_ad": True}})
    parts.answer(items=[21])
    ticket = parts.ticket(items=[1, 11, 21, 2], item_features={"is_ad": [None, True, None, False]})
    assert {item.item_id for item in parts.service.popular(ticket).items} == {"1", "2"}


def test_fields_of_ads_may_be_kept_in_the_store(parts):
    fields = {name: column[4] for name, column in AD_FIELDS.items()}
    parts.store.put_items({"11": fields})
    reply = parts.answer(items=[1, 2, 3, 11], explain=True)
    assert [item.item_id for item in reply.items if item.price is not None] == ["11"]


def test_what_was_sold_is_logged(parts):
    reply = page(parts, request_id="r9")
    (line,) = parts.served()
    prices = {item.item_id: item.price.per_impression for item in reply.items if item.price is not None}
    assert {item: sale["price"] for item, sale in line["sales"].items()} == prices
    first = line["sales"][ads_of(reply)[0]]
    assert first["keys"] == {"campaign_id": [first["campaign"]]}
    assert first["time_ms"] == line["time_ms"]
    assert first["day_ms"] == line["time_ms"] // 86_400_000 * 86_400_000


@pytest.mark.parametrize(
    "fields",
    [
        {"is_ad": ["yes"] + [None] * 6},
        {"is_ad": [2] + [None] * 6},
        {"bid_usd": ["dear"] + [None] * 6},
    ],
)
def test_a_field_that_cannot_be_read_is_told(parts, fields):
    with pytest.raises(DataError, match=r"^field '(is_ad|bid_usd)' is .*, wanted"):
        page(parts, item_features=fields)


def test_thousands_of_campaigns_are_no_trouble(parts):
    num = 5000
    rng = np.random.default_rng(0)
    fields = {
        "is_ad": [True] * num,
        "bid_usd": rng.uniform(1, 9, num).tolist(),
        "campaign_id": [f"c{n}" for n in range(num)],
        "daily_budget": [100] * num,
    }
    reply = parts.answer(
        items=[f"i{n}" for n in range(num)] + [1, 2], item_features={n: [*v, None, None] for n, v in fields.items()}
    )
    assert [item.price is not None for item in reply.items] == [False, True, False]


def test_neither_pages_nor_events_without_ads_ask_the_store_for_more(bundle, tmp_path):
    text = POLICY[: POLICY.index("ads:")]
    with ad_parts(bundle, tmp_path, text) as parts:
        parts.store.calls.clear()
        reply = parts.answer(items=[1, 2])
        parts.desk.spending.refresh()
        assert parts.store.calls["fetch"] == 1
        see(parts, reply, "1")
        see(parts, reply, "1", request_id="another", user_id="u1")
        assert {*parts.store.calls} <= {"fetch", "mark", "marked"}
    parts.policy.close()


def test_a_page_with_ads_takes_one_round_trip(parts):
    parts.store.calls.clear()
    page(parts)
    assert parts.store.calls["fetch"] == 1
    assert {*parts.store.calls} <= {"fetch", "mark", "marked"}


def test_a_policy_may_begin_and_cease_to_sell_ads_while_it_serves(bundle, tmp_path):
    without = POLICY[: POLICY.index("ads:")]
    with ad_parts(bundle, tmp_path, without) as parts:
        parts.policy.watch()
        assert len(parts.answer(items=[1, 2, 3]).items) == 3
        (tmp_path / "policy.yaml").write_text(POLICY)
        wait_until(lambda: parts.policy.live.ads is not None)
        assert set(page(parts).ads_left_out.values()) == {"spending unknown"}
        parts.desk.spending.refresh()
        before = page(parts)
        assert len(ads_of(before)) == 2
        pacer = parts.desk.pacer(parts.policy.live.ads)
        (tmp_path / "policy.yaml").write_text(POLICY.replace("reserve: 0.001", "reserve: 0.002"))
        wait_until(lambda: parts.policy.live.ads.spec.reserve == 0.002)
        assert parts.desk.pacer(parts.policy.live.ads) is pacer
        (tmp_path / "policy.yaml").write_text(without)
        wait_until(lambda: parts.policy.live.ads is None)
        see(parts, before)  # sold while it did
        assert count(parts.metrics, "infnet_ad_impressions_sold_total") == 2
    parts.policy.close()


def test_impressions_count_for_the_day_that_sold_them(parts):
    reply = page(parts)
    see(parts, reply, time_ms=1)  # whatever the client's clock says
    assert sum(spent(parts).values()) == pytest.approx(
        sum(item.price.per_impression for item in reply.items if item.price is not None)
    )
