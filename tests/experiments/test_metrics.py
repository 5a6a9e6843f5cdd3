import pytest

from infnet.errors import SpecError
from infnet.experiments.metrics import default_metrics, parse_metric


@pytest.mark.parametrize(
    ("text", "name", "kind", "formula"),
    [
        ("click", "click", "mean", "click"),
        ("watch_time.value", "watch_time.value", "mean", "watch_time.value"),
        ("click/impressions", "click_per_impressions", "ratio", "click/impressions"),
        ("wt = watch_time.value / requests", "wt", "ratio", "watch_time.value/requests"),
        ("add to cart", "add_to_cart", "mean", "add to cart"),
    ],
)
def test_a_metric_is_written_as_a_formula(text, name, kind, formula):
    metric = parse_metric(text)
    assert (metric.name, metric.kind, metric.formula) == (name, kind, formula)


@pytest.mark.parametrize("text", ["", "click/", "/click", "=click", "a b=click", "x=user_id", "clicks_before"])
def test_what_is_no_metric_is_refused_with_an_example(text):
    with pytest.raises(SpecError, match=r"^--metric '.*' ?: .*click/impressions"):
        parse_metric(text)


def test_by_default_every_type_of_event_is_a_rate():
    assert {m.name: m.formula for m in default_metrics(["like", "click"])} == {
        "click_rate": "click/impressions",
        "like_rate": "like/impressions",
        "active_days": "active_days",
    }
