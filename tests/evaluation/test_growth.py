import json
from itertools import pairwise

import pytest
import torch

from infnet.evaluation.growth import AllPairs, GrowthCurve, measure_growth
from infnet.models import INFNetConfig
from random_batches import make_batch, make_layout


@pytest.fixture(scope="module")
def growth():
    config = INFNetConfig(width=8, embedding_width=None, cat_hidden=(8,))
    return measure_growth(config, num_events=(10, 20, 30, 40), num_fields=(6, 12, 18), repeats=1)


def curve(growth, model, axis):
    return next(c for c in growth.curves if (c.model, c.axis) == (model, axis))


def steps(values):
    return [b - a for a, b in pairwise(values)]


@pytest.mark.parametrize("axis", ["events", "fields"])
def test_each_further_token_costs_infnet_the_same(growth, axis):
    found = steps(curve(growth, "INFNet", axis).mflops)
    assert found == pytest.approx([found[0]] * len(found))
    assert found[0] > 0


@pytest.mark.parametrize("axis", ["events", "fields"])
def test_each_further_token_costs_all_pairs_more(growth, axis):
    found = curve(growth, "all pairs", axis)
    d, blocks, step = 8, 2, found.sizes[1] - found.sizes[0]
    # Two products of n x n x d a block, a multiply-add counting two: n^2 grows by 2 step^2 more at every step.
    assert steps(steps(found.mflops)) == pytest.approx([blocks * 4 * d * 2 * step**2 / 1e6] * (len(found.sizes) - 2))


def test_the_exponent_is_the_slope_of_the_logarithms():
    sizes = (10, 20, 40, 80)
    exact = GrowthCurve(model="x", axis="events", sizes=sizes, mflops=tuple(3 * n**1.5 for n in sizes), ms=(1, 1, 1, 2))
    assert exact.exponent("mflops") == pytest.approx(1.5)
    assert exact.exponent("ms", 2) == pytest.approx(1)
    assert exact.exponent("ms", 3) == pytest.approx(0.5)


def test_the_report_says_over_what_range(growth):
    document = json.loads(json.dumps(growth.as_json()))
    assert document["fixed"] == {"events": 10, "fields": 6}
    (one,) = [c for c in document["curves"] if (c["model"], c["axis"]) == ("all pairs", "events")]
    assert one["exponent"]["mflops"] < one["last_exponent"]["mflops"] < 2
    assert "| events | 10 to 40 | INFNet |" in growth.as_markdown()


def test_all_pairs_reads_every_token():
    layout = make_layout(lengths=(4, 2))
    batch = make_batch(layout, 3, 1)
    torch.manual_seed(0)
    model = AllPairs(layout, INFNetConfig(width=8, embedding_width=None, embedding_std=1.0))
    model(batch)[1].sum().backward()
    own = batch.user.ids[1].tolist() + batch.event_ids[batch.history[1, batch.history_present[1]]].flatten().tolist()
    moved = model.embedding.weight.grad.coalesce().to_dense().abs().sum(dim=1)
    assert (moved[batch.rows[own]] > 0).all()
