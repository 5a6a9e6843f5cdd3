import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.errors import SpecError
from infnet.ranking.frontier import best_kept, knee, pareto, parse_limits

NAMES = ("click", "watch_time", "like")


def dominates(one, other):
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


@given(
    points=st.integers(2, 4).flatmap(
        lambda num: st.lists(st.lists(st.integers(-3, 3), min_size=num, max_size=num), min_size=1, max_size=30)
    )
)
def test_the_front_is_what_nothing_dominates(points):
    front = pareto(np.array(points, dtype=np.float64))
    wanted = {tuple(p) for p in points if not any(dominates(other, p) for other in points)}
    assert {tuple(points[place]) for place in front} == wanted
    assert len(front) == len(wanted)
    assert [points[place] for place in front] == sorted((points[place] for place in front), reverse=True)
    assert all(place == points.index(points[place]) for place in front)


def test_what_is_no_number_is_on_no_front():
    points = np.array([[math.nan, 9.0], [1.0, 2.0], [9.0, math.nan]])
    assert pareto(points).tolist() == [1]
    assert pareto(points[:1]).tolist() == []


def test_the_knee_of_a_circle_is_half_way():
    angles = np.radians(np.arange(0, 91, 5))
    front = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert knee(front) == 9
    assert knee(front * [1000, 0.01] + [-7, 3]) == 9


def test_the_knee_of_a_corner_is_the_corner():
    assert knee(np.array([[10.0, 0.0], [9.0, 8.0], [5.0, 9.0], [0.0, 10.0]])) == 1


def test_the_knee_of_a_sphere_is_its_middle():
    steps = [(a, b, 6 - a - b) for a in range(7) for b in range(7 - a)]
    front = np.sqrt(np.array(steps) / 6)
    assert steps[knee(front)] == (2, 2, 2)


@pytest.mark.parametrize(
    ("front", "wanted"),
    [
        ([[1, 0], [0.5, 0.5], [0, 1]], None),
        ([[1, 0], [0.3, 0.3], [0, 1]], None),
        ([[1, 0], [0, 1]], None),
        ([[1, 1]], 0),
        (np.empty((0, 2)), None),
        ([[2, 2, 0], [0, 0, 1], [1.9, 1.9, 0.9]], 2),
    ],
)
def test_a_front_that_does_not_bend_has_no_knee(front, wanted):
    assert knee(np.array(front, dtype=np.float64)) == wanted


@given(
    points=st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(-5, 5)), min_size=1),
    least=st.integers(-5, 5),
)
def test_the_best_under_a_limit_is_the_best_of_those_that_keep_it(points, least):
    found = best_kept(np.array(points, dtype=np.float64), 0, {2: least})
    allowed = [point for point in points if point[2] >= least]
    assert (found is None) == (not allowed)
    if found is not None:
        assert points[found][2] >= least
        assert points[found][0] == max(point[0] for point in allowed)


def test_limits_are_changes_in_percent():
    assert parse_limits(["watch_time=-0.5%", "like = +1%"], NAMES) == pytest.approx(
        {"watch_time": -0.005, "like": 0.01}
    )
    assert parse_limits([], NAMES) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["watch_time"], r"--keep 'watch_time': wanted OBJECTIVE=CHANGE%, such as watch_time=-0.5%"),
        (["=-1%"], "wanted OBJECTIVE=CHANGE%"),
        (["watch_tim=-1%"], "'watch_tim' is not among --objectives; did you mean 'watch_time'"),
        (["like=-0.5"], "'-0.5' is no change in percent from -100% on"),
        (["like=few%"], "'few%' is no change in percent"),
        (["like=nan%"], "'nan%' is no change in percent"),
        (["like=-101%"], "'-101%' is no change in percent"),
        (["like=1%", "like=2%"], "'like' has a limit already"),
        (["click=0%", "like=1%", "watch_time=2%"], "limits all of click, watch_time, like; leave one"),
    ],
)
def test_a_limit_that_is_none_is_told(texts, message):
    with pytest.raises(SpecError, match=message):
        parse_limits(texts, NAMES)
