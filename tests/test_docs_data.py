import re
from pathlib import Path

import polars as pl
import pytest
import yaml

from infnet.features import feature_kinds
from infnet.features.base import Feature
from infnet.schema import Behaviour, DatasetSpec, LogTable, SideTable, Split, Task
from raw_logs import make_log, make_spec, prepare_frames

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
BUILT_IN = dict(feature_kinds())


@pytest.mark.parametrize("declared", [DatasetSpec, LogTable, SideTable, Behaviour, Task, Split])
def test_every_setting_is_described(declared):
    missing = [name for name in declared.model_fields if not re.search(rf"`{name}\b", PAGE)]
    assert not missing


def test_every_kind_of_feature_and_each_of_its_options_is_described():
    common = set(Feature.model_fields)
    for kind, cls in BUILT_IN.items():
        assert f"| `{kind}` |" in PAGE
        missing = [name for name in cls.model_fields if name not in common and f"`{name}`" not in PAGE]
        assert not missing, kind


def test_example_expressions_give_a_value_per_row():
    (examples,) = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    numbers = ("is_click", "tab", "play_time_ms", "rating", "revenue", "price", "amount")
    log = make_log().with_columns(*(pl.lit(2).alias(name) for name in numbers), kind=pl.lit("buy"), title=pl.lit("x"))
    found = {text: log.select(pl.sql_expr(text).alias("value"))["value"].to_list()[0] for text in examples.splitlines()}
    assert [value for value in found.values() if isinstance(value, bool)] == [False, False, True]
    assert found["play_time_ms / 1000"] == 0.002
    assert found["CASE WHEN revenue > 0 THEN 1 ELSE 0 END"] == 1


def test_example_splits_are_splits():
    examples = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
    splits = [Split.model_validate(example["split"]) for example in examples]
    assert [split.fractions is None for split in splits] == [True, False]


def test_the_example_of_another_kind_works_as_promised(tmp_path, monkeypatch):
    monkeypatch.setattr("infnet.features.base._KINDS", dict(BUILT_IN))
    (example,) = [text for text in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "@" in text]
    exec(compile(example, "docs/data.md", "exec"), {"__name__": "example"})
    keys = [{"kind": "id", "name": side, "side": side} for side in ("user", "item")]
    spec = make_spec(features=[*keys, {"kind": "domain", "name": "mail", "side": "user"}])
    log = make_log().with_columns(mail=pl.when(pl.col("user") == 1).then(pl.lit("Ann@Example.org")))
    prepared, _ = prepare_frames(spec, tmp_path, {"log.parquet": log})
    assert list(prepared.vocabulary("mail")) == ["example.org"]
    ids, first = prepared.array("users/ids")[:, 1], prepared.vocabulary("mail")["example.org"]
    assert ids.tolist() == [first - 2, first, first - 1]  # unknown user, Ann, the one without an address
