"""What every store promises of sales and spending, and both keep."""

import itertools
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.serving.events import Sale
from infnet.serving.feature_store import accounts as module
from infnet.serving.feature_store import embedded_accounts, open_store, redis_accounts
from infnet.serving.feature_store.accounts import Charge, exposure_id
from infnet.serving.feature_store.redis import RedisStore
from redis_server import RedisServer

DAY_MS = 86_400_000
TODAY = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS

CHARGER = """
import sys
from pathlib import Path
from infnet.serving.feature_store.accounts import Charge, exposure_id
from infnet.serving.feature_store.embedded import EmbeddedStore

store, day = EmbeddedStore(Path(sys.argv[1]), {}), int(sys.argv[2])
for n in range(10**9):
    store.accounts.charge([Charge(exposure_id(str(n), part), part, day, 0.25) for part in "ab"])
    print(n, flush=True)
"""

_number = itertools.count()


@pytest.fixture(scope="module", params=["embedded", "redis"])
def stores(request, tmp_path_factory):
    """Makes empty stores."""
    made = []

    def make():
        if request.param == "embedded":
            store = open_store(tmp_path_factory.mktemp("store"), {})
        else:
            server = request.getfixturevalue("redis_server")
            store = RedisStore(server.url, {}, timeout_s=10, namespace=f"accounts{next(_number)}")
        made.append(store)
        return store.accounts

    yield make
    for store in made:
        store.close()


@pytest.fixture
def accounts(stores):
    return stores()


def charge(number, campaign="c", amount=1.0, day_ms=TODAY):
    return Charge(exposure_id("r", str(number)), campaign, day_ms, amount)


def test_a_charge_is_added_once(accounts):
    assert accounts.spent([TODAY]) == [{}]
    assert accounts.charge([charge(1), charge(2, amount=0.5), charge(1)]) == [True, True, False]
    assert accounts.charge([charge(2, amount=0.5), charge(3, "other", 1e-7)]) == [False, True]
    assert accounts.spent([TODAY]) == [{"c": 1.5, "other": pytest.approx(1e-7)}]
    assert accounts.charge([]) == []


def test_days_have_their_own_accounts(accounts):
    accounts.charge([charge(1), charge(1, amount=2.0, day_ms=TODAY + DAY_MS)])
    assert accounts.spent([TODAY + DAY_MS, TODAY, TODAY - DAY_MS]) == [{"c": 2.0}, {"c": 1.0}, {}]


def test_what_was_sold_is_remembered_by_request(accounts):
    sale = Sale(price=0.25, campaign="é", day_ms=TODAY, time_ms=TODAY + 5, keys={"campaign": ["é", "2"]})
    accounts.put_sales({"r1": {"7": sale, "8": Sale(price=0.0, day_ms=1, time_ms=2)}, "r2": {"9": sale}})
    accounts.put_sales({"r2": {"7": sale}})
    accounts.put_sales({})
    assert accounts.sales_of(["r2", "r0", "r1"]) == [
        {"7": sale},
        {},
        {"7": sale, "8": Sale(price=0.0, day_ms=1, time_ms=2)},
    ]
    assert accounts.sales_of([]) == []


def test_what_was_sold_is_forgotten_after_its_time(accounts, monkeypatch):
    for each in (embedded_accounts, redis_accounts):
        monkeypatch.setattr(each, "SOLD_MS", 300)
    sale = Sale(price=0.25, day_ms=TODAY, time_ms=TODAY)
    accounts.put_sales({"r": {"7": sale}})
    assert accounts.sales_of(["r"]) == [{"7": sale}]
    time.sleep(0.4)
    assert accounts.sales_of(["r"]) == [{}]


@pytest.mark.parametrize("text", ["", " ", "naïve 日本 🙂", "nul\x00", "\ud800", "{d1}", "a:b", "x" * 512])
def test_campaigns_may_be_any_text(accounts, text):
    assert accounts.charge([charge(text, text), charge(text, text)]) == [True, False]
    assert accounts.spent([TODAY]) == [{text: 1.0}]


def test_exposures_of_different_requests_and_items_differ():
    pairs = [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", ""), ("1:a", "b"), ("1", ":ab")]
    assert len({exposure_id(*pair) for pair in pairs}) == len(pairs)


charges = st.builds(
    charge,
    st.integers(0, 9),
    st.sampled_from("ab"),
    st.sampled_from([0.0, 0.25, 3.0]),
    st.sampled_from([TODAY, TODAY + DAY_MS]),
)


@settings(max_examples=40)
@given(batches=st.lists(st.lists(charges, max_size=6), max_size=6))
def test_any_charges_add_up_as_the_promise_says(stores, batches):
    accounts, seen = stores(), set()
    spent = {TODAY: defaultdict(float), TODAY + DAY_MS: defaultdict(float)}
    for batch in batches:
        wanted = []
        for each in batch:
            wanted.append((each.exposure, each.day_ms) not in seen)
            if wanted[-1]:
                seen.add((each.exposure, each.day_ms))
                spent[each.day_ms][each.campaign] += each.amount
        assert accounts.charge(batch) == wanted
    assert accounts.spent([*spent]) == [*spent.values()]


def test_charges_told_by_several_threads_at_once_count_once(accounts):
    def tell(worker):
        told = 0
        for first in range(0, 200, 10):
            told += accounts.charge([charge(n, amount=0.5) for n in range(first, first + 10)]).count(True)
        return told

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(tell, range(4))) == 200
    assert accounts.spent([TODAY]) == [{"c": 100.0}]


def test_an_embedded_store_deletes_old_accounts(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_accounts, "_SWEPT", 2)
    old = TODAY - module.KEPT_MS
    with closing(open_store(tmp_path, {})) as store:
        store.accounts.charge([charge(n, str(n), day_ms=old) for n in range(5)])
        for n in range(5):
            store.accounts.charge([charge(n)])
        assert store.accounts.spent([old, TODAY]) == [{}, {"c": 5.0}]


def test_days_of_old_traffic_that_is_replayed_have_accounts(accounts):
    days = [TODAY - n * DAY_MS for n in (400, 399)]
    for day in days:
        assert accounts.charge([charge(1, day_ms=day), charge(2, day_ms=day)]) == [True, True]
        assert accounts.charge([charge(2, day_ms=day)]) == [False]
    assert accounts.spent(days) == [{"c": 2.0}, {"c": 2.0}]


def test_a_process_killed_in_the_middle_has_charged_all_that_it_told_and_no_halves(tmp_path):
    for _ in range(2):  # the second life begins by telling everything again
        command = [sys.executable, "-c", CHARGER, str(tmp_path), str(TODAY)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as charger:
            for _ in range(150):
                told = int(charger.stdout.readline())
            charger.kill()
            told = max([told, *map(int, charger.stdout.read().split("\n")[:-1])])
        with closing(open_store(tmp_path, {})) as store:
            (spent,) = store.accounts.spent([TODAY])
            assert spent["a"] == spent["b"]
            assert spent["a"] / 0.25 >= told + 1
            again = [Charge(exposure_id(str(n), part), part, TODAY, 0.25) for n in range(told + 1) for part in "ab"]
            assert not any(store.accounts.charge(again))
            assert store.accounts.spent([TODAY]) == [spent]


def test_a_redis_that_is_killed_keeps_what_was_spent(tmp_path):
    server = RedisServer(tmp_path, keeps=True)
    try:
        with closing(RedisStore(server.url, {}, timeout_s=10)) as store:
            assert store.accounts.charge([charge(1), charge(2)]) == [True, True]
            with server.client() as client:
                client.config_set("appendfsync", "always")
            store.accounts.charge([charge(3)])
            server.stop()
            server.start()
            assert store.accounts.spent([TODAY]) == [{"c": 3.0}]
            assert store.accounts.charge([charge(3), charge(4)]) == [False, True]
    finally:
        server.stop()


def test_redis_forgets_accounts_two_days_after_their_last_charge(redis_server):
    with closing(RedisStore(redis_server.url, {}, timeout_s=10, namespace="expiring-sales")) as store:
        store.accounts.charge([charge(1)])
        with redis_server.client() as client:
            left = [client.pttl(key) for key in client.scan_iter("expiring-sales:*")]
    assert len(left) == 2
    assert all(2 * DAY_MS - 60_000 < each <= 2 * DAY_MS for each in left)
