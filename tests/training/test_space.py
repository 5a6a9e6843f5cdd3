import pytest

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.base import model_names
from infnet.training.config import config_from
from infnet.training.space import SearchSpace, complete_settings, space_names
from random_batches import make_layout

LAYOUT = make_layout(tasks=3, regression=True)


def test_lists_are_searched_and_everything_else_is_the_same_in_all_trials():
    space = SearchSpace.parse("model: {width: [4, 8]}\ntrain: {epochs: 2, learning_rate: [1e-3, 0.01]}", "s")
    assert space.choices == {"model.width": (4, 8), "train.learning_rate": (0.001, 0.01)}  # 1e-3 is text to YAML
    assert space.fixed == {"train.epochs": 2}
    document = space.document({"model.width": 8, "train.learning_rate": 0.01})
    assert document == {"model": {"width": 8}, "train": {"epochs": 2, "learning_rate": 0.01}}


def test_both_spaces_of_the_package_hold_what_they_promise():
    assert space_names() == ["paper", "small"]
    paper = SearchSpace.load("paper")
    assert paper.choices["model.width"] == (8, 16, 32, 64, 96, 128)
    assert paper.choices["train.embedding_l2"] == (0.0, 1e-7, 1e-6, 1e-5)
    assert paper.fixed["train.patience"] == 5
    small = SearchSpace.load("small")
    assert small.fixed == {"train.epochs": 1, "train.evaluations_per_epoch": 4, "train.keep": "epoch"}
    assert small.choices["train.task_weighting"] == ("fixed", "uncertainty")


@pytest.mark.parametrize("model", model_names())
def test_every_space_applies_to_every_model(model):
    for name in space_names():
        space, skipped = SearchSpace.load(name).of_model(model, LAYOUT)
        assert set(skipped) <= {"model.width", "model.embedding_width", "model.dropout"}
        for which in (0, -1):
            document = space.document({key: values[which] for key, values in space.choices.items()})
            settings = complete_settings(model, LAYOUT, document["model"])
            config_from({"model": {"name": model, **settings}, "train": document["train"]}, name)


def test_what_a_model_does_not_have_is_left_out_and_told():
    space = SearchSpace.parse("model: {num_blocks: [1, 2], gate_with: updated, width: [4]}", "s")
    applied, skipped = space.of_model("shared_bottom", LAYOUT)
    assert applied.choices == {"model.width": (4,)}
    assert applied.fixed == {}
    assert skipped == {
        "model.num_blocks": "model 'shared_bottom' has no such setting",
        "model.gate_with": "model 'shared_bottom' has no such setting",
    }
    assert space.of_model("infnet", LAYOUT)[1] == {}


def test_a_common_value_that_a_model_refuses_is_left_out_and_told():
    space = SearchSpace.parse("model: {num_heads: 4, width: [8, 6]}", "s")
    applied, skipped = space.of_model("infnet", LAYOUT)
    assert applied.choices == {"model.width": (8,)}
    assert skipped.keys() == {"model.width"}
    assert "width 6 is not divisible by num_heads 4" in skipped["model.width"]


def test_all_settings_of_a_model_are_found_without_its_table():
    layout = LAYOUT.model_copy(update={"num_rows": 10**12})
    model = build_model("infnet", LAYOUT, {"width": 8})
    assert complete_settings("infnet", layout, {"width": 8}) == model.config.model_dump(mode="json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {learning_rat: [1]}", r"s: unknown setting train.learning_rat; did you mean 'learning_rate'\?"),
        ("train: {optimizer: [adam, sgd]}", r"s: train.optimizer: .*'adam'.*, found 'sgd'"),
        ("train: {learning_rate: []}", "s: train.learning_rate has no values to choose from"),
        ("train: {epochs: [1, 2]}", r"s: train.epochs is the same in all trials, found \[1, 2\]"),
        ("train: {seed: 3}", "s: train.seed is no part of a search space; give it with --seed"),
        ("model: {name: infnet}", "s: model.name is no part of a search space; give it with --model"),
        ("model: {widht: [8]}", r"s: no model has a setting 'widht'; did you mean 'width'\?"),
        ("model: {width: [eight]}", "s: model.width: .*integer.*, found 'eight'"),
        ("train: {betas: [0.9, 0.99]}", "s: train.betas: .*, found 0.9"),
        ("width: [8]", "s: unknown section 'width'"),
        ("- 8", "s: .*mapping"),
        ("model: {width: [8", "s, line 1: not valid YAML"),
    ],
)
def test_a_wrong_space_is_one_clear_line(text, message):
    with pytest.raises(SpecError, match=message) as caught:
        SearchSpace.parse(text, "s")
    assert "\n" not in str(caught.value)


def test_a_wrong_value_of_a_models_own_setting_is_named():
    space = SearchSpace.parse("model: {num_blocks: [many]}", "s")
    with pytest.raises(SpecError, match=r"s: model 'infnet', num_blocks: .*integer"):
        space.of_model("infnet", LAYOUT)


def test_a_space_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(SpecError, match=r"space tiny: cannot be read .* give paper, small or a YAML file"):
        SearchSpace.load("tiny")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="is not UTF-8 text"):
        SearchSpace.load(str(tmp_path / "bytes.yaml"))
