"""Who pays for which impressions, and that it is once, whatever fails meanwhile."""

import random
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from ads_parts import AD_FIELDS, ITEMS, POLICY, ad_parts, ads_of, page, see, spent
from infnet.serving import store_feeder
from infnet.serving.feature_store.base import history_bounds
from infnet.serving.feature_store.redis import RedisStore
from infnet.serving.settings import ServeSettings
from infnet.serving.system import System
from infnet.serving.wire import RankBody
from redis_server import RedisServer
from service_parts import count, wait_until

WITHOUT_BUDGETS = POLICY.replace("  budget: daily_budget\n", "").replace("+ p_like", "+ 0 * budget")
WITHOUT_BUDGETS = WITHOUT_BUDGETS.replace("inputs: {", "inputs: {budget: {item: daily_budget}, ")


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(store_feeder, "_EVERY_S", 0.01)


@pytest.fixture
def parts(bundle, tmp_path):
    with ad_parts(bundle, tmp_path) as parts:
        yield parts
    parts.policy.close()


def prices(reply, bids=AD_FIELDS["campaign_id"][4:]):
    """By campaign what the ads of a page cost."""
    campaigns = dict(zip(("11", "12", "13"), bids, strict=True))
    return {campaigns[i.item_id]: i.price.per_impression for i in reply.items if i.price is not None}


def test_an_impression_is_charged_once_however_often_it_is_told(parts):
    reply = page(parts)
    assert spent(parts) == {}
    for event_id in ("e1", "e1", "e2"):
        for item in ads_of(reply):
            see(parts, reply, item, event_id=event_id + item)
    assert spent(parts) == pytest.approx(prices(reply))
    assert count(parts.metrics, "infnet_ad_impressions_sold_total") == 2
    assert count(parts.metrics, "infnet_ad_revenue_total") == pytest.approx(sum(prices(reply).values()))


def test_nothing_else_is_charged(parts):
    reply = page(parts)
    see(parts, reply, "1", "13")  # no ad, and one that is not on the page
    see(parts, reply, value=0)
    see(parts, reply, type="click")
    see(parts, reply, request_id="unheard")
    assert spent(parts) == {}
    assert count(parts.metrics, "infnet_ad_impressions_sold_total") == 0


def test_ads_without_budgets_are_revenue_all_the_same(bundle, tmp_path):
    with ad_parts(bundle, tmp_path, WITHOUT_BUDGETS) as parts:
        reply = page(parts)
        see(parts, reply)
        assert {item.price.pace for item in reply.items if item.price} == {None}
        assert count(parts.metrics, "infnet_ad_revenue_total") == pytest.approx(sum(prices(reply).values()))
    parts.policy.close()


def test_what_was_served_before_a_restart_is_charged_after_it(bundle, tmp_path):
    with ad_parts(bundle, tmp_path) as parts:
        replies = [page(parts), page(parts, "u2")]
        see(parts, replies[0])
        before = spent(parts)
        parts.die()
        parts.feeder._stop.set()
    with ad_parts(bundle, tmp_path) as parts:
        assert spent(parts) == before
        for reply in replies:
            see(parts, reply)
        wanted = defaultdict(float)
        for reply in replies:
            for campaign, price in prices(reply).items():
                wanted[campaign] += price
        assert spent(parts) == pytest.approx(wanted)
        assert page(parts).ads_left_out.keys().isdisjoint({"capped"})
        assert dict(parts.store.behind.accounts.spent([1])[0]) == {}
    parts.policy.close()


def test_what_comes_while_the_store_is_down_is_charged_when_it_is_back(parts):
    reply = page(parts)
    parts.store.is_down = True
    see(parts, reply)
    see(parts, reply, event_id="again")
    parts.store.is_down = False
    wait_until(lambda: not parts.feeder.is_behind)
    assert spent(parts) == pytest.approx(prices(reply))
    assert len(parts.history("u1", "seen:campaign_id")) == 2


def test_a_charge_whose_answer_was_lost_is_not_made_again(parts):
    reply = page(parts)
    parts.store.breaks["append"] = 1  # after the charge
    see(parts, reply)
    wait_until(lambda: not parts.feeder.is_behind)
    assert spent(parts) == pytest.approx(prices(reply))
    assert count(parts.metrics, "infnet_ad_impressions_sold_total") == 2


def test_a_store_that_lost_everything_gets_spending_back_from_the_log(parts):
    replies = [page(parts, f"u{n}") for n in range(5)]
    for reply in replies:
        see(parts, reply)
    before = spent(parts)
    parts.lose_store()
    wait_until(lambda: spent(parts))
    wait_until(lambda: not parts.feeder.is_behind)
    assert spent(parts) == pytest.approx(before)


def test_without_the_store_spending_is_last_known_for_a_while_and_then_ads_with_budgets_are_held_back(parts):
    assert len(ads_of(page(parts))) == 2
    parts.store.is_down = True
    parts.desk.spending.refresh()
    assert len(ads_of(page(parts))) == 2  # as last known
    stranger = page(parts, "u9")
    assert set(stranger.ads_left_out.values()) == {"impressions unknown"}
    parts.desk.spending._read_at -= 11
    assert set(page(parts).ads_left_out.values()) == {"spending unknown"}
    parts.store.is_down = False
    parts.desk.spending.refresh()
    wait_until(lambda: len(ads_of(page(parts, "u9"))) == 2)


def test_what_was_seen_is_known_without_the_store_as_it_was_last(parts):
    for _ in range(3):
        first = ads_of(page(parts))[0]
        see(parts, page(parts), first)
    assert page(parts).ads_left_out[first] == "capped"
    parts.store.is_down = True
    assert page(parts).ads_left_out[first] == "capped"


def test_ads_without_caps_and_budgets_need_no_store(bundle, tmp_path):
    text = (
        WITHOUT_BUDGETS[: WITHOUT_BUDGETS.index("  frequency")]
        + WITHOUT_BUDGETS[WITHOUT_BUDGETS.index("constraints") :]
    )
    with ad_parts(bundle, tmp_path, text) as parts:
        parts.store.is_down = True
        assert len(ads_of(page(parts, "u9"))) == 2
    parts.policy.close()


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path / "redis", keeps=True)
    yield server
    server.stop()


@pytest.fixture
def replicas(bundle, tmp_path, server):
    """Two, which share a Redis."""
    made = []
    bounds = history_bounds(bundle.layout.behaviours, {})
    for name in ("one", "two"):
        store = RedisStore(server.url, bounds, timeout_s=10)
        made.append(ad_parts(bundle, tmp_path / name, store=store, writer=name, fills=not made))
        made[-1].billing.start()
    yield made
    for parts in made:
        parts.billing.close()
        parts.close()
        parts.policy.close()


def told(parts):
    """Wait until the store has what was sold."""
    wait_until(lambda: not parts.billing._waiting)


def test_what_one_replica_sold_another_charges(replicas):
    one, two = replicas
    reply = page(one)
    told(one)
    see(two, reply)
    see(one, reply)
    see(two, reply, event_id="again")
    assert spent(one) == spent(two) == pytest.approx(prices(reply))
    assert sum(count(p.metrics, "infnet_ad_impressions_sold_total") for p in replicas) == 2
    assert len(two.history("u1", "seen:campaign_id")) == 2


def test_replicas_share_a_budget(replicas):
    """Told by whoever it may be, repeatedly: what is spent is what a recount of the distinct impressions says."""
    budget, rng = 30.0, random.Random(0)
    fields = {"item_features": {"daily_budget": [None] * 4 + [budget] * 3}, "limit": 3}
    wanted, seen, num = defaultdict(float), set(), 0
    highest = 0.0

    def tell(job):
        parts, reply, number = job
        see(parts, reply, event_id=f"{reply.request_id}/{number}")

    with ThreadPoolExecutor(4) as pool:
        while num < 400:
            replies = [page(rng.choice(replicas), f"new{num}-{n}", **fields) for n in range(8)]
            for parts in replicas:
                told(parts)
            jobs = [(rng.choice(replicas), r, n) for r in replies if ads_of(r) for n in range(3)]
            rng.shuffle(jobs)
            list(pool.map(tell, jobs))
            for reply in replies:
                assert reply.request_id not in seen
                seen.add(reply.request_id)
                for campaign, price in prices(reply).items():
                    wanted[campaign] += price
                    highest = max(highest, price)
            num += len(replies)
            for parts in replicas:
                parts.desk.spending.refresh()
            if not any(map(ads_of, replies)):
                break
    assert spent(replicas[0]) == pytest.approx(wanted)
    assert max(wanted.values()) <= budget + 8 * highest
    assert sum(amount >= budget for amount in wanted.values()) >= 1


def test_a_redis_that_restarts_forgets_no_spending(replicas, server):
    one, two = replicas
    reply, other = page(one), page(two, "u2")
    see(one, reply)
    before = spent(one)
    time.sleep(1.1)  # its log reaches the disk every second
    server.stop()
    see(two, other)
    see(one, reply, event_id="again")
    server.start()
    for parts in replicas:
        wait_until(lambda parts=parts: not parts.feeder.is_behind)
    wanted = defaultdict(float, before)
    for campaign, price in prices(other).items():
        wanted[campaign] += price
    assert spent(two) == pytest.approx(wanted)


def test_an_impression_that_another_replica_hears_of_while_the_store_is_down_is_charged_later(replicas):
    one, two = replicas
    reply = page(one)
    told(one)
    two.store.is_down = True
    see(two, reply, user_id="u1")
    two.store.is_down = False
    wait_until(lambda: not two.feeder.is_behind)
    assert spent(two) == pytest.approx(prices(reply))


def test_what_was_sold_while_the_store_is_down_is_told_to_it_when_it_is_back(replicas):
    one, two = replicas
    page(one)
    one.store.is_down = True
    reply = page(one)
    assert ads_of(reply)
    one.store.is_down = False
    told(one)
    see(two, reply)
    assert spent(two) == pytest.approx(prices(reply))


def test_variants_with_other_policies_share_spending(bundle, tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "other.yaml").write_text(POLICY.replace("reserve: 0.001", "reserve: 0.01"))
    (tmp_path / "experiments.yaml").write_text(
        "experiments: [{name: x, variants: [{name: control}, {name: other, policy: other.yaml}], "
        "forced: {u1: control, u2: other}}]"
    )
    places = {name: tmp_path / name for name in ("state", "events")}
    files = {"policy": tmp_path / "policy.yaml", "experiments": tmp_path / "experiments.yaml"}
    system = System.open(ServeSettings(model=bundle.path, deadline_ms=10_000, **places, **files))
    system.start()

    def answered(user, budget):
        fields = {**AD_FIELDS, "daily_budget": [None] * 4 + [budget] * 3}
        body = {"user_id": user, "item_ids": ITEMS, "item_features": fields, "explain": True}
        ticket = system.service.admit(msgspec.convert(body, RankBody), time.perf_counter())
        return system.service.answer([ticket])[0]

    control, other = (answered(user, 1000) for user in ("u1", "u2"))
    assert control.policy_version != other.policy_version
    first = ads_of(control)[0]
    seen = {"request_id": control.request_id, "item_id": first, "type": "impression"}
    system.ingest.take([msgspec.json.encode(seen)])
    budget = control.items[1].price.per_impression
    wait_until(lambda: answered("u2", budget).ads_left_out.get(first) == "budget spent")  # by the reader of the service
    system.close()
