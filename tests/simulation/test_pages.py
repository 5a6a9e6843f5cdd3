import numpy as np
import polars as pl
import pytest

from infnet.data.sources.exposure import HOUR_MS, Visits
from infnet.data.sources.world import World, WorldConfig
from infnet.simulation.ledger import Ledger
from infnet.simulation.pages import Pages
from infnet.simulation.report import as_text, true_values

TYPES = frozenset({"impression", "click", "like", "long_view", "watch_time", "revenue", "hate"})


@pytest.fixture(scope="module")
def world():
    return World.create(WorldConfig(num_users=50, num_items=80, num_days=3))


@pytest.fixture(scope="module")
def pages(world):
    """Of 40 users at hours of one day, each with up to 12 items."""
    rng = np.random.default_rng(1)
    visits = Visits(np.arange(40), 72 + np.arange(40) % 24, rng.integers(0, 5, 40))
    shown = [rng.choice(80, size, replace=False).tolist() for size in rng.integers(0, 13, 40)]
    return Pages.seen(world, visits, [f"r{i}" for i in range(40)], shown, rng), shown


def test_every_item_shown_is_seen_within_the_hour_in_the_order_of_its_page(world, pages):
    pages, shown = pages
    assert [pages.item[pages.row == i].tolist() for i in range(40)] == shown
    for i, visit_hour in enumerate(pages.visits.hour):
        times = pages.time_ms[pages.row == i]
        assert np.all(np.diff(times) > 0)
        assert np.all((times - world.first_ms()) // HOUR_MS == visit_hour)


def test_positions_count_within_a_page(world, pages):
    pages, shown = pages
    for i in range(40):
        if shown[i]:
            tab = np.array([1, 0, 4, 6, 2])[pages.visits.tab[i]]
            at = world.first_ms() + int(pages.visits.hour[i]) * HOUR_MS
            positions = np.arange(1, len(shown[i]) + 1)
            truth = world.probabilities(i, shown[i], at, position=positions, tab=tab)
            for name, column in truth.items():
                np.testing.assert_allclose(pages.expected[name][pages.row == i], column, rtol=1e-5)


def test_events_tell_what_happened_and_nothing_else(pages):
    pages, _ = pages
    events = pages.events(TYPES)
    found = pl.DataFrame([(e.request_id, e.item_id, e.type, e.value, e.time_ms) for e in events], orient="row")
    of = {kind[0]: rows for kind, rows in found.group_by("column_2")}
    assert len(of["impression"]) == len(pages.item)
    for kind, column in (("click", "is_click"), ("like", "is_like"), ("long_view", "long_view"), ("hate", "is_hate")):
        happened = np.flatnonzero(pages.feedback[column])
        wanted = {(pages.request_ids[pages.row[i]], int(pages.item[i])) for i in happened}
        assert set(of[kind].select("column_0", "column_1").rows() if kind in of else []) == wanted
    assert of["watch_time"]["column_3"].sum() == pytest.approx(pages.feedback["play_time_ms"].sum() / 1000)
    spent = pages.feedback["revenue"].sum()
    assert (of["revenue"]["column_3"].sum() if "revenue" in of else 0) == pytest.approx(spent)
    assert found["column_4"].is_sorted()


def test_events_that_a_service_does_not_know_are_not_sent(pages):
    pages, _ = pages
    assert {event.type for event in pages.events(frozenset({"click", "impression"}))} == {"click", "impression"}


def test_a_ledger_sums_what_was_to_be_expected(pages):
    pages, shown = pages
    ledger = Ledger(np.arange(50))
    for user in range(40):
        ledger.assigned(user, "ab"[user % 2])
    ledger.add(pages)
    ledger.add(pages)
    here = np.arange(50) < 40
    joy = ledger.joy(here)
    ledger.end_day(3, here, np.linspace(0, 1, 50, dtype=np.float32))
    ledger.add(pages)
    ledger.end_day(4, here, np.full(50, 0.5, np.float32))
    table = ledger.table()
    first = table.filter(pl.col("day") == 3)
    assert first["impressions"].to_list() == [2 * len(page) for page in shown]
    assert first["requests"].to_list() == [2] * 40
    assert first["variant"].to_list() == ["a", "b"] * 20
    for user in range(40):
        expected = pages.expected["p_long_view"][pages.row == user].astype(float)
        assert first["long_views"][user] == pytest.approx(2 * expected.sum())
        assert joy[user] == pytest.approx(expected.mean() if len(expected) else 0)
    values = true_values(table)
    assert values["ctr"] == pytest.approx(pages.expected["p_click"].mean())
    assert values["revenue"] == pytest.approx(3 * pages.expected["expected_revenue"].astype(float).sum() / 40)
    assert values["return_next_day"] == pytest.approx(first["p_return"].mean() / 2 + 0.25)
    assert table.filter(pl.col("day") == 4)["clicks"].sum() * 2 == pytest.approx(first["clicks"].sum())


def variant(users, ctr, revenue):
    return {"users": users, "true": {"ctr": ctr, "revenue": revenue}, "p50_ms": None, "p99_ms": None}


def test_lifts_are_told_beside_the_control_where_it_has_something():
    figures = dict.fromkeys(("users", "user_days", "requests", "impressions", "events", "degraded"), 3)
    figures |= {"seconds": 2.0, "user_days_per_s": 1.5, "requests_per_s": None, "events_per_s": None}
    variants = {"all": variant(2, 0.25, 0.5), "old": variant(1, 0.2, 0.0), "new": variant(1, 0.3, 1.0)}
    lines = as_text(figures | {"variants": variants}).splitlines()
    (new,) = [line for line in lines if line.startswith("new")]
    assert "0.3 (+50.00%)" in new
    assert new.split()[-1] == "1"  # nothing to compare it with
    assert not [line for line in lines if line.startswith("all")]
