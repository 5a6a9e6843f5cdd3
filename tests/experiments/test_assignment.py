import itertools
import time
import timeit
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from infnet.experiments.assignment import Assigner
from infnet.experiments.hashing import bucket_ranges, choose_variation, unit_hash
from infnet.experiments.spec import ExperimentsSpec

NOW = 1_778_000_000_000
USERS = [str(number) for number in range(20_000)]


def experiment(name, **settings):
    variants = settings.pop("variants", [{"name": "a"}, {"name": "b"}])
    return {"name": name, "variants": variants, **settings}


def assigner(*experiments, **settings):
    return Assigner(ExperimentsSpec.model_validate({"experiments": experiments, **settings}))


def everybody(one, users=USERS, time_ms=NOW):
    return {user: one.assign(user, time_ms) for user in users}


def test_variants_are_those_of_the_published_hash():
    one = assigner(experiment("x", seed="s", coverage=0.6, variants=[{"name": v} for v in "abc"]))
    for user, found in everybody(one, USERS[:2000]).items():
        index = choose_variation(unit_hash("s", user), bucket_ranges(3, 0.6))
        assert found == ({} if index < 0 else {"x": "abc"[index]})


def test_shares_are_those_declared():
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    one = assigner(experiment("x", coverage=0.8, variants=[{"name": n, "weight": w} for n, w in weights.items()]))
    counts = Counter(found.get("x", "out") for found in everybody(one).values())
    expected = {name: 0.8 * weight for name, weight in weights.items()} | {"out": 0.2}
    observed = [counts[name] for name in expected]
    assert chisquare(observed, [share * len(USERS) for share in expected.values()]).pvalue > 0.001


def test_layers_are_independent():
    one = assigner(*(experiment(f"x{i}", layer=f"l{i}") for i in range(4)))
    found = everybody(one)
    for left, right in itertools.combinations(range(4), 2):
        table = np.zeros((2, 2))
        for variants in found.values():
            table["ab".index(variants[f"x{left}"]), "ab".index(variants[f"x{right}"])] += 1
        assert chi2_contingency(table).pvalue > 0.001


def test_ranges_of_a_layer_do_not_decide_about_variants():
    one = assigner(experiment("x", range=[0, 0.5], layer="x"), experiment("y", range=[0.5, 1], layer="x"))
    counts = Counter(next(iter(found.items())) for found in everybody(one).values())
    assert chisquare(list(counts.values())).pvalue > 0.001
    assert len(counts) == 4


@st.composite
def layers(draw):
    """Experiments in disjoint ranges of two layers, and hold-outs."""
    cuts = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=5, unique=True)))
    ranges = [pair for pair in itertools.pairwise(cuts) if pair[0] < pair[1]]
    experiments = [
        experiment(f"{layer}{i}", layer=layer, range=bounds, coverage=draw(st.floats(0, 1)))
        for layer in ("l", "m")
        for i, bounds in enumerate(ranges)
    ]
    held = [{"name": layer, "holdout": draw(st.floats(0, 0.5))} for layer in ("l", "m")]
    return experiments, held, draw(st.floats(0, 0.5))


@given(layers(), st.lists(st.text(max_size=8), max_size=20))
def test_a_user_is_in_one_experiment_of_a_layer_and_the_held_out_in_none(declared, users):
    experiments, held, holdout = declared
    one = assigner(*experiments, layers=held, holdout=holdout)
    for user, found in everybody(one, users).items():
        for layer in held:
            inside = [name for name in found if name.startswith(layer["name"])]
            assert len(inside) <= 1
            if unit_hash(f"holdout:{layer['name']}", user) < layer["holdout"]:
                assert not inside
        if unit_hash("holdout:", user) < holdout:
            assert not found


def test_holdouts_have_the_declared_shares():
    one = assigner(experiment("x", layer="l"), experiment("y"), holdout=0.1, layers=[{"name": "l", "holdout": 0.2}])
    found = everybody(one)
    for name, share in (("x", 0.9 * 0.8), ("y", 0.9)):
        number = sum(name in variants for variants in found.values())
        assert chisquare([number, len(USERS) - number], [share * len(USERS), (1 - share) * len(USERS)]).pvalue > 0.001


@given(
    coverages=st.lists(st.floats(0, 1), min_size=2, max_size=5).map(sorted),
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    users=st.lists(st.text(max_size=8), max_size=20),
    version=st.sampled_from([1, 2]),
)
def test_a_growing_ramp_moves_nobody_who_is_in(coverages, weights, users, version):
    begin = datetime(2026, 5, 4, tzinfo=UTC)
    ramp = [{"from": begin + timedelta(days=day), "coverage": share} for day, share in enumerate(coverages)]
    variants = [{"name": f"v{i}", "weight": w / sum(weights)} for i, w in enumerate(weights)]
    one = assigner(experiment("x", ramp=ramp, variants=variants, hash_version=version))
    for user in users:
        seen = [
            one.assign(user, int((begin + timedelta(days=day, hours=1)).timestamp() * 1000)).get("x")
            for day in range(-1, len(coverages))
        ]
        assert seen[0] is None
        inside = [variant for variant in seen if variant is not None]
        assert len(set(inside)) <= 1
        assert seen[len(seen) - len(inside) :] == inside


def test_an_experiment_runs_from_its_start_until_its_end():
    one = assigner(experiment("x", start="2026-05-04T00:00:00Z", end="2026-05-05T02:00:00+02:00"))
    start, end = (int(datetime(2026, 5, day, tzinfo=UTC).timestamp() * 1000) for day in (4, 5))
    assert [bool(one.assign("u", t)) for t in (start - 1, start, end - 1, end)] == [False, True, True, False]


def test_forced_users_get_their_variant_whatever_else_is_said_and_no_other_of_the_layer():
    one = assigner(
        experiment("x", range=[0, 0.5], coverage=0, forced={"anna": "b"}, end="2020-01-01"),
        experiment("y", range=[0.5, 1]),
        holdout=1.0,
    )
    assert everybody(one, ["anna", "otto"]) == {"anna": {"x": "b"}, "otto": {}}
    alone = next(user for user in USERS[:100] if "y" in assigner(experiment("y", range=[0.5, 1])).assign(user, NOW))
    both = assigner(experiment("x", range=[0, 0.5], forced={alone: "a"}), experiment("y", range=[0.5, 1]))
    assert both.assign(alone, NOW) == {"x": "a"}


def test_another_experiment_of_the_layer_moves_nobody():
    x, y = experiment("x", range=[0.2, 0.6]), experiment("y", range=[0.6, 1])
    alone, both = everybody(assigner(x), USERS[:2000]), everybody(assigner(y, x), USERS[:2000])
    assert all(found.get("x") == both[user].get("x") for user, found in alone.items())


def test_assignment_takes_microseconds():
    one = assigner(*(experiment(f"x{i}", layer=f"l{i}") for i in range(10)))
    repeated = timeit.repeat(lambda: one.assign("123456789", NOW), timer=time.thread_time, number=200, repeat=20)
    assert min(repeated) / 200 / 10 < 30e-6
