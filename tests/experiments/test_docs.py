"""docs/experiments.md: its example is valid, and shows every setting."""

import re
from pathlib import Path

import pytest

from infnet.experiments.assignment import Assigner
from infnet.experiments.metrics import LOG_MEASURES, Measure, MetricSpec
from infnet.experiments.reading import parse_experiments
from infnet.experiments.spec import Experiment, ExperimentsSpec, Layer, RampStep, Variant

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example():
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return text


def test_the_example_is_valid_and_assigns_users(example):
    spec = parse_experiments(example)
    assert spec.names == ["diversity", "model"]
    assert spec.experiments[0].weights == {"control": 0.5, "mmr": 0.5}
    assigner, at = Assigner(spec), int(spec.experiments[0].ramp[1].since.timestamp() * 1000)
    found = [assigner.assign(str(user), at) for user in range(200)]
    assert {name for one in found for name in one} == {"diversity", "model"}


@pytest.mark.parametrize("declared", [ExperimentsSpec, Layer, Experiment, RampStep, Variant, MetricSpec, Measure])
def test_the_example_shows_every_setting(example, declared):
    names = [field.alias or name for name, field in declared.model_fields.items()]
    assert [name for name in names if not re.search(rf"\b{name}:", example)] == []


@pytest.mark.parametrize("measure", LOG_MEASURES)
def test_every_measure_is_described(measure):
    assert f"`{measure}`" in PAGE
