import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.errors import SpecError
from infnet.ranking.formula import Formula
from infnet.ranking.interval import Interval

NAMES = ("a", "b", "c")
ORACLE = {
    "abs": abs,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "min": min,
    "max": max,
    "clip": lambda x, low, high: min(max(x, low), high),
    "where": lambda is_true, yes, no: yes if is_true else no,
}
LEAVES = st.sampled_from(NAMES) | st.floats(0, 50, allow_subnormal=False).map(lambda x: f"{x:.3g}")


OPERATORS = ("+", "-", "*", "/", "**", "<", "<=", ">", ">=", "==", "!=")
TEMPLATES = {
    1: ["abs({})", "sqrt({})", "exp({})", "log({})", "log1p({})", "-({})", "+({})"],
    2: [*(f"({{}}) {operator} ({{}})" for operator in OPERATORS), "min({}, {})", "max({}, {})"],
    3: ["clip({}, {}, {})", "where({}, {}, {})"],
}


def _larger(parts):
    made = [st.tuples(st.sampled_from(texts), *[parts] * num) for num, texts in TEMPLATES.items()]
    return st.one_of(*made).map(lambda drawn: drawn[0].format(*drawn[1:]))


FORMULAS = st.recursive(LEAVES, _larger, max_leaves=8)


@given(
    text=FORMULAS,
    ranges=st.lists(st.tuples(st.floats(-100, 100), st.floats(0, 50)), min_size=3, max_size=3),
    shares=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5),
)
def test_what_is_accepted_is_computed_as_written_and_stays_within_its_bound(text, ranges, shares):
    intervals = {name: Interval(low, low + width) for name, (low, width) in zip(NAMES, ranges, strict=True)}
    formula = Formula(text)
    try:
        bound = formula.bound(intervals)
    except SpecError:
        return
    rows = [
        {
            name: min(at.low + share * (at.high - at.low), at.high)
            for (name, at), share in zip(intervals.items(), row, strict=True)
        }
        for row in shares
    ]
    columns = {name: np.array([row[name] for row in rows]) for name in NAMES}
    found = np.broadcast_to(formula(columns), len(rows))
    wanted = [float(eval(text, {"__builtins__": {}}, ORACLE | row)) for row in rows]
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-300)
    slack = 1e-9 * max(abs(bound.low), abs(bound.high)) + 1e-300
    assert (found >= bound.low - slack).all()
    assert (found <= bound.high + slack).all()


def test_it_knows_what_it_reads():
    assert Formula("0.4 * p_long_view + 0.6 * log1p(watch_seconds) - p_long_view").names == {
        "p_long_view",
        "watch_seconds",
    }


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "a.real",
        "a[0]",
        "[a for a in b]",
        "(lambda: a)()",
        "a if b else c",
        "a and b",
        "not a",
        "~a",
        "a @ b",
        "a % b",
        "a // b",
        "a < b < c",
        "a in b",
        "'a' * 9",
        "f'{a}'",
        "True",
        "None",
        "1j",
        "max(*a)",
        "max(a, key=b)",
        "max(a)",
        "eval(a)",
        "print(a)",
        "(a := 1)",
        "a; b",
        "a = 1",
        "import os",
        "max",
        "9" * 999,
        "1e999",
        "",
        "   ",
        "a b",
        "\0",
        "(" * 300 + "a" + ")" * 300,
        "-" * 900 + "a",
        "a+" * 450 + "a",
        "a" * 1001,
        "... * 2",
        "await a",
    ],
)
def test_there_is_no_way_out_of_arithmetic(text):
    with pytest.raises(SpecError) as error:
        Formula(text, "objectives.x")
    assert str(error.value).startswith("objectives.x: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a / b", "may divide by zero (the divisor is between -1 and 1) in 'a / b'; keep it away from zero"),
        ("1 / (b - b)", "may divide by zero"),
        ("exp(1000 * a)", "may overflow"),
        ("a ** 200", "may overflow"),
        ("10 ** 10 ** 10", "may overflow"),
        ("log(b)", "may take log of -1 (wanted more than 0) in 'log(b)'"),
        ("sqrt(b)", "may take sqrt of -1 (wanted at least 0)"),
        ("b ** 0.5", "may take a power of what is not positive"),
        ("lgo(a)", "calls 'lgo', which is no function; did you mean 'log'?"),
        ("clip(a, 1)", "gives clip 2 arguments, wanted 3"),
    ],
)
def test_what_may_have_no_value_is_refused_beforehand(text, complaint):
    with pytest.raises(SpecError, match=r"^formula: ") as error:
        Formula(text).bound({"a": Interval(0, 100), "b": Interval(-1, 1)})
    assert complaint in str(error.value)


def test_a_guard_makes_it_acceptable():
    assert Formula("a / max(b, 0.5)").bound({"a": Interval(0, 1), "b": Interval(-1, 1)}) == Interval(0, 2)
