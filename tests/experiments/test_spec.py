import re

import pytest

from infnet.errors import SpecError
from infnet.experiments.reading import load_experiments, parse_experiments

TEXT = """
holdout: 0.05
layers: [{name: ranking, holdout: 0.1}]
experiments:
  - name: diversity
    layer: ranking
    range: [0, 0.5]
    variants: [{name: control}, {name: mmr, policy: mmr.yaml}]
    ramp: [{from: 2026-05-04, coverage: 0.1}, {from: 2026-05-06T00:00:00Z, coverage: 1}]
    forced: {anna: mmr, 12: control}
    metrics:
      - {name: ctr, kind: ratio, numerator: click, denominator: impressions}
      - {name: watch, numerator: {event: watch_time, sum: value}}
      - {name: hides, numerator: hide, better: lower, is_guardrail: true}
  - name: model
    variants: [{name: old, weight: 0.5}, {name: new, weight: 0.5, bundle: b2}]
"""


def test_a_spec_is_read_with_its_defaults():
    spec = parse_experiments(TEXT)
    one, other = spec.experiments
    assert (one.resolved_control, one.weights, one.hash_version) == ("control", {"control": 0.5, "mmr": 0.5}, 2)
    assert one.ramp[0].since.isoformat() == "2026-05-04T00:00:00+00:00"
    assert one.forced == {"anna": "mmr", "12": "control"}
    assert [m.formula for m in one.metrics] == ["click/impressions", "watch_time.value", "hide"]
    assert one.metrics[2].tolerated == 0.02
    assert (other.layer, other.resolved_seed, other.variants[1].bundle) == ("default", "model", "b2")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight: 0.5, bundle", "weight: 0.6, bundle", "line 16: experiments.1.variants: weights sum to 1.1, wanted 1"),
        ("weight: 0.5}", "weight: .nan}", "experiments.1.variants.0.weight: Input should be a finite number"),
        ("weight: 0.5}", "weight: -0.5}", "should be greater than 0, found -0.5"),
        ("{name: old, weight: 0.5}", "{name: old}", "some variants have a weight and some have none"),
        ("anna: mmr", "anna: mrm", "line 10: .*forced into 'mrm', which is no variant; did you mean 'mmr'"),
        ("name: model", "name: diversity", "line 15: .*experiment 'diversity' is declared twice"),
        ("name: new", "name: old", "variant of experiment 'model' 'old' is declared twice"),
        ("name: watch", "name: ctr", "metric of experiment 'diversity' 'ctr' is declared twice"),
        ("range: [0, 0.5]", "range: [0, 1.5]", "less than or equal to 1, found 1.5"),
        ("range: [0, 0.5]", "range: [0.5, 0.5]", "holds nobody"),
        ("holdout: 0.1", "holdout: 1.1", "layers.0.holdout: .*found 1.1"),
        ("layer: ranking", "layer: rankin", "line 6: .*'rankin' is not among the layers; did you mean 'ranking'"),
        ("coverage: 1}", "coverage: 0.01}", "ramp.1.coverage: 0.01 is less than the 0.1 before"),
        ("2026-05-06T00:00:00Z", "2026-05-03", "ramp.1.from: 2026-05-03T00:00:00Z is not after the step before"),
        ("    ramp:", "    coverage: 0.5\n    ramp:", "line 9: .*coverage is what the ramp says"),
        ("name: model", "name: model\n    seed: diversity", "has the seed of 'diversity', 'diversity', so both"),
        ("name: model", "name: model\n    seed: 'layer:x'", "seed: String should match"),
        ("name: model", "name: model\n    control: olt", "'olt' is no variant; did you mean 'old'"),
        ("name: model", "name: model\n    start: 2026-05-02\n    end: 2026-05-01", "is not after the start"),
        ("name: model", "name: model\n    hash_version: 99", "should be 1 or 2, found 99"),
        ("name: model", "name: model\n    layer: ranking", r"both take users 0 to 0\.5, 150% together"),
        ("ramp:", "rmap:", "line 9: unknown setting 'experiments.0.rmap'; did you mean 'ramp'"),
        ("from: 2026-05-04", "fron: 2026-05-04", "unknown setting 'experiments.0.ramp.0.fron'; did you mean 'from'"),
        ("numerator: click,", "numeratr: click,", "numeratr'; did you mean 'numerator'"),
        (", denominator: impressions", "", "ratio and needs a denominator"),
        ("name: hides", "margin: 0.1, name: hides", None),
        ("is_guardrail: true", "margin: 0.1", "metric 'hides' has a margin; write is_guardrail: true"),
        ("numerator: hide", "numerator: variant", "counts 'variant', the name of another column"),
        ("holdout: 0.05", "holdout: 0.05\nholdout: 0", "line 3: 'holdout' stands in line 2 already"),
        ("2026-05-06T00:00:00Z", "2026-13-06", "month must be in 1..12"),
        ("holdout: 0.05", "holdout: [", "line 4: not valid YAML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line_with_its_place(old, new, message):
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    if message is None:
        parse_experiments(text)
        return
    with pytest.raises(SpecError) as error:
        parse_experiments(text, "x.yaml")
    said = str(error.value)
    assert said.startswith("x.yaml")
    assert "\n" not in said
    assert re.search(message, said), said


def test_experiments_that_follow_each_other_may_share_a_range():
    follows = TEXT.replace("name: model", "name: model\n    layer: ranking\n    start: 2026-07-01").replace(
        "range: [0, 0.5]", "range: [0, 0.5]\n    end: 2026-07-01"
    )
    assert len(parse_experiments(follows).experiments) == 2


def test_a_user_is_forced_into_one_experiment_of_a_layer():
    text = TEXT.replace("name: model", "name: model\n    layer: ranking\n    range: [0.5, 1]\n    forced: {anna: new}")
    with pytest.raises(SpecError, match=r"user 'anna' is forced into 'diversity' of the same layer already"):
        parse_experiments(text)


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read"):
        load_experiments(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SpecError, match=r"list\.yaml, line 1: found no mapping"):
        load_experiments(tmp_path / "list.yaml")
    with pytest.raises(SpecError, match=r"'modle' is not declared; did you mean 'model'"):
        parse_experiments(TEXT).experiment("modle")
