"""The page and the text of a report."""

from html.parser import HTMLParser

import polars as pl
import pytest

from infnet.experiments.analysis import analyse, daily_effects
from infnet.experiments.metrics import MetricSpec
from infnet.experiments.page import as_html
from infnet.experiments.report import as_json, as_text
from infnet.experiments.settings import AnalysisSettings
from infnet.experiments.user_table import DAY_MS, UserTable
from infnet.experiments.verdict import judge
from simulated_users import CTR, EXPERIMENT, users

GUARD = MetricSpec.model_validate({"name": "shown", "numerator": "impressions", "is_guardrail": True, "margin": 0.5})


class Tags(HTMLParser):
    """Fails where tags do not close each other."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, _):
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, _):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(frame, **table):
    frame = frame.with_columns(first_ms=pl.lit(20_000 * DAY_MS))
    part = frame.select("user_id", pl.col("click", "impressions") / 2)
    days = pl.concat([part.with_columns(day=pl.lit(20_000 + day)) for day in (0, 1)])
    found = UserTable("users", frame, days, **table)
    segments = [c for c in ("town",) if c in frame.columns]
    analysis = analyse(found, EXPERIMENT, [CTR, GUARD], AnalysisSettings(expected_effect=0.3), segments=segments)
    daily = {("ctr", "new"): daily_effects(analysis, CTR, "new")}
    return analysis, judge(analysis), daily


@pytest.fixture(scope="module")
def parts():
    towns = pl.Series("town", ["<script>alert(1)</script>", "A & B"] * 1500)
    return report(users(3000, lift=0.3).with_columns(towns), crossed=3, unknown={"<b>": 2}, strayed=7, damaged=1)


def test_a_page_is_well_formed_and_holds_tables_and_figures(parts):
    page, tags = as_html(*parts), Tags()
    tags.feed(page)
    assert tags.open == []
    assert {"table", "svg", "h2"} <= tags.seen
    assert page.count("<svg") == 2
    assert page.startswith("<!doctype html>")


def test_a_page_needs_nothing_else(parts):
    page = as_html(*parts)
    assert "src=" not in page
    assert "<link" not in page
    assert "<script" not in page


def test_names_are_escaped(parts):
    page = as_html(*parts)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "A &amp; B" in page
    assert "unknown variant &#x27;&lt;b&gt;&#x27;" in page


def test_the_same_analysis_gives_the_same_bytes(parts):
    assert as_html(*parts) == as_html(*parts)


def test_a_page_of_what_says_nothing_has_no_figures():
    frame = users().with_columns(click=0.0, impressions=0.0)
    page, tags = as_html(*report(frame)), Tags()
    tags.feed(page)
    assert tags.open == []
    assert "no data" in page
    assert "<svg" not in page


def test_the_text_says_who_was_left_out(parts):
    (line,) = [line for line in as_text(*parts[:2]).splitlines() if line.startswith("Left out")]
    assert line == (
        "Left out: 3 users seen in two variants (0.10%); 2 users of the unknown variant '<b>'; "
        "1 damaged lines of the log; 7 events of nobody knows whom"
    )


def test_no_p_value_is_given_of_what_is_not_to_be_trusted():
    analysis, verdict, daily = report(users(3000, lift=0.3), crossed=900)
    found = as_json(analysis, verdict, daily)
    assert (found["outcome"], found["is_trusted"], found["crossed"]) == ("not to be trusted", False, 900)
    assert all(e["p_value"] is None and e["corrected_p"] is None for e in found["effects"])
