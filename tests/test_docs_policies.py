import re
from pathlib import Path

import pytest

from infnet.data.layout import TaskLayout
from infnet.ranking.ads.spec import Ads, FrequencyCap, Pacing
from infnet.ranking.formula import FUNCTIONS
from infnet.ranking.policy import Policy
from infnet.ranking.policy_spec import InputSpec, PolicySpec
from infnet.ranking.rerank.spec import AdLoad, AdLoadLimit, AtLeast, AtMost, Diversity, Floor, Spacing

PAGE = (Path(__file__).parents[1] / "docs" / "policies.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
TASKS = [
    *(TaskLayout(name=name, kind="binary", loss="bce") for name in ("click", "like", "long_view")),
    TaskLayout(name="watch_time", kind="regression", loss="mse"),
]


def test_the_example_is_a_policy():
    example, _ = EXAMPLES
    policy = Policy.parse(example, TASKS)
    assert set(policy.item_fields) == {"bid", "new_author", "age_hours", "is_ad", "author_id", "category"}
    assert policy.request_fields == ("is_new_user",)


def test_the_example_with_ads_is_a_policy():
    _, example = EXAMPLES
    policy = Policy.parse(example, TASKS)
    assert set(policy.item_fields) == {"bid", "is_ad", "campaign_id", "daily_budget"}


@pytest.mark.parametrize(
    "declared",
    [
        *(PolicySpec, Ads, Pacing, FrequencyCap, InputSpec, AtMost, Spacing),
        *(AdLoad, AdLoadLimit, AtLeast, Floor, Diversity),
    ],
)
def test_every_setting_is_described(declared):
    missing = [name for name in declared.model_fields if name != "field" and not re.search(rf"\b{name}\b", PAGE)]
    assert not missing


def test_every_function_is_described():
    (text,) = re.findall(r"and `(abs [a-z0-9 ]+)`", PAGE)
    assert text.split() == [*FUNCTIONS]
