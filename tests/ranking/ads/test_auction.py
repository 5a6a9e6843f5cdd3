import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from infnet.errors import DataError
from infnet.ranking.ads.auction import hold_auction

VALUES = st.lists(st.integers(0, 12).map(lambda eighths: eighths / 8), max_size=7)
RESERVES = st.integers(0, 8).map(lambda eighths: eighths / 8)
POSITIONS = st.integers(0, 8)


def sold(values, num_positions, reserve=0.0, clicks=None, **settings):
    probs = np.full(len(values), 0.5) if clicks is None else np.array(clicks)
    return hold_auction(np.array(values, dtype=float), probs, num_positions, reserve=reserve, **settings)


def position_with(values, ad, bid, reserve):
    """Of an ad that bids something else, from 0; None if it does not win. Of equal bids the earlier one wins."""
    if bid < reserve:
        return None
    bids = [*values[:ad], bid, *values[ad + 1 :]]
    return sum(other > bid or (other == bid and place < ad) for place, other in enumerate(bids) if other >= reserve)


@given(values=VALUES, num_positions=POSITIONS, reserve=RESERVES)
def test_a_winner_pays_the_least_bid_that_keeps_its_position(values, num_positions, reserve):
    found = sold(values, num_positions, reserve)
    wanted = sorted((v for v in range(len(values)) if values[v] >= reserve), key=lambda v: (-values[v], v))
    assert found.winners.tolist() == wanted[:num_positions]
    for position, (ad, price) in enumerate(zip(found.winners.tolist(), found.price_per_impression, strict=True)):
        assert position_with(values, ad, price + 1e-9, reserve) <= position  # better if it was equal to one before it
        kept = position_with(values, ad, price - 1e-9, reserve)
        assert kept is None or kept > position


@given(
    values=VALUES, num_positions=POSITIONS, reserve=RESERVES, pricing=st.sampled_from(["first_price", "second_price"])
)
def test_nobody_pays_more_than_the_bid_or_less_than_the_reserve_and_better_positions_cost_no_less(
    values, num_positions, reserve, pricing
):
    found = sold(values, num_positions, reserve, pricing=pricing)
    own = np.array(values)[found.winners] if len(values) else np.zeros(0)
    assert (found.price_per_impression <= own).all()
    assert (found.price_per_impression >= reserve).all()
    assert (np.diff(found.price_per_impression) <= 0).all()
    assert found.ecpm == pytest.approx(1000 * own)
    assert found.price_per_click == pytest.approx(found.price_per_impression / 0.5)
    if pricing == "first_price":
        assert found.price_per_impression.tolist() == own.tolist()


@given(values=VALUES, reserve=RESERVES, bid=st.integers(0, 16).map(lambda eighths: eighths / 8), data=st.data())
def test_with_one_position_nobody_gains_by_bidding_anything_but_the_value(values, reserve, bid, data):
    assume(values)
    ad = data.draw(st.integers(0, len(values) - 1))

    def gain(bids):
        found = sold(bids, 1, reserve)
        return values[ad] - found.price_per_impression[0] if found.winners.tolist() == [ad] else 0.0

    assert gain(values) >= gain([*values[:ad], bid, *values[ad + 1 :]])


@given(values=VALUES, reserve=RESERVES, num_positions=POSITIONS)
def test_prices_do_not_depend_on_how_many_positions_are_sold(values, reserve, num_positions):
    few, all_ = sold(values, num_positions, reserve), sold(values, len(values), reserve)
    assert few.price_per_impression.tolist() == all_.price_per_impression[:num_positions].tolist()


def test_a_click_costs_what_its_impressions_do():
    found = sold([0.2, 0.3, 0.1], 2, clicks=[0.1, 0.5, 0.5])
    assert found.winners.tolist() == [1, 0]
    assert found.price_per_impression == pytest.approx([0.2, 0.1])
    assert found.price_per_click == pytest.approx([0.4, 1.0])


def test_what_is_never_clicked_costs_nothing_by_click():
    assert sold([0.2, 0.3], 1, clicks=[0.5, 0.0]).price_per_click.tolist() == [0.0]


@pytest.mark.parametrize(
    ("values", "clicks", "message"),
    [
        ([1.0, -1.0], [0.5, 0.5], "value of an impression of ad 1 is -1.0, wanted 0 or more"),
        ([np.nan, 1.0], [0.5, 0.5], "value of an impression of ad 0 is nan, wanted 0 or more"),
        ([np.inf, 1.0], [0.5, 0.5], "value of an impression of ad 0 is inf, wanted 0 or more"),
        ([1.0, 1.0], [0.5, 1.5], "click probability of ad 1 is 1.5, wanted 0 to 1"),
    ],
)
def test_an_ad_that_cannot_be_priced_is_named(values, clicks, message):
    with pytest.raises(DataError) as error:
        sold(values, 1, clicks=clicks)
    assert str(error.value) == message
