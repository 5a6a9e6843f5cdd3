import math

import pytest
import torch
from torch.testing import assert_close

from infnet.data.layout import TaskLayout
from infnet.errors import SpecError
from infnet.models import ModelConfig, RankingModel, build_model, model_names, predictions, register_model
from infnet.models.base import _MODELS
from random_batches import make_batch, make_layout


def test_models_are_found_by_name():
    assert {"infnet", "shared_bottom"} <= set(model_names())
    assert model_names() == sorted(model_names())
    for name in model_names():
        model = build_model(name, make_layout(tasks=3), {"width": 8, "embedding_width": None})
        table_width = {"fm": 3 * (8 + 1), "stem": (3 + 1) * 8}.get(name, 8)  # these keep several embeddings a value
        assert (model.name, model.config.width, model.embedding.width) == (name, 8, table_width)


def test_a_registered_model_can_be_built_with_its_own_settings():
    class OneNumberConfig(ModelConfig):
        number: float = 0.5

    try:

        @register_model("one_number")
        class OneNumber(RankingModel):
            config_type = OneNumberConfig

            def forward(self, batch):
                return torch.full((*batch.present.shape, len(self.layout.tasks)), self.config.number)

        assert "one_number" in model_names()
        model = build_model("one_number", make_layout(), {"number": 2})
        assert model(make_batch(make_layout(), 2, 3)).eq(2.0).all()
        assert model.auxiliary_loss() is None
        assert [p.shape for p in model.shared_parameters()] == [model.embedding.weight.shape]
    finally:
        _MODELS.pop("one_number", None)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widht": 8}, "has no setting 'widht'; did you mean 'width'?"),
        ({"width": 0}, "width: Input should be greater than or equal to 1, found 0"),
        ({"width": "broad"}, "found 'broad'"),
        ({"dropout": 1.0}, "dropout: Input should be less than 1, found 1.0"),
        ({"embedding_std": -0.1}, "found -0.1"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(name, settings, message):
    with pytest.raises(SpecError) as caught:
        build_model(name, make_layout(), settings)
    text = str(caught.value)
    assert message in text
    assert f"model '{name}'" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", [name for name in model_names() if name != "fm"])
def test_layers_of_heads_are_checked(name):
    for wrong, place in ([0], "head_hidden.0"), (8, "head_hidden"):
        with pytest.raises(SpecError, match=f"^model '{name}', {place}: "):
            build_model(name, make_layout(), {"head_hidden": wrong})


def test_an_unknown_model_is_refused_with_the_nearest_or_with_all():
    with pytest.raises(SpecError, match=r"^unknown model 'shared_botom'; did you mean 'shared_bottom'\?$"):
        build_model("shared_botom", make_layout())
    with pytest.raises(SpecError, match=f"known are: {', '.join(model_names())}$"):
        build_model("xyz", make_layout())


def test_the_table_is_as_wide_as_asked_and_its_rows_come_in_the_token_width():
    layout = make_layout()
    for name in ("fm", "stem"):
        with pytest.raises(SpecError, match=f"^model '{name}', embedding_width: (an FM|a projection)"):
            build_model(name, layout, {"width": 8, "embedding_width": 3})
    for name in set(model_names()) - {"fm", "stem"}:
        model = build_model(name, layout, {"width": 8, "embedding_width": 3, "embedding_std": 0.5})
        assert model.embedding.weight.shape == (layout.num_rows, 3)
        assert 0.3 < model.embedding.weight.std().item() < 0.7
        assert model.inputs.rows(model.embedding, make_batch(layout, 2, 1)).shape[1] == 8


def test_a_model_without_a_forward_pass_says_so():
    with pytest.raises(TypeError, match="RankingModel has no forward pass"):
        RankingModel(make_layout(), ModelConfig())(make_batch(make_layout(), 2, 2))


def task(**values):
    return TaskLayout(**{"name": "t", "kind": "binary", "loss": "bce"} | values)


def test_binary_logits_become_probabilities():
    logits = torch.tensor([[-800.0], [-1.0], [0.0], [2.0], [800.0]])
    found = predictions(logits, (task(mean=0.3, std=0.5),))  # a base rate changes nothing
    assert_close(found[:, 0], torch.tensor([0.0, 1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-2)), 1.0]).double())
    assert found.dtype == torch.float64


def test_close_probabilities_stay_apart():
    found = predictions(torch.tensor([[18.0], [18.5]]), (task(),))[:, 0]
    assert found[0] < found[1] < 1


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_a_standardised_regression_comes_back_in_the_labels_unit(loss):
    found = predictions(torch.tensor([[-1.5], [0.0], [2.0]]), (task(kind="regression", loss=loss, mean=30, std=20),))
    assert found[:, 0].tolist() == [0.0, 30.0, 70.0]


def test_a_log_regression_comes_back_in_the_labels_unit_and_is_never_negative():
    declared = (task(kind="regression", loss="log_mse", mean=30, std=20),)
    labels = torch.tensor([0.0, 1.0, 12.5, 600.0])
    assert_close(predictions(labels.log1p()[:, None], declared)[:, 0], labels.double(), rtol=1e-6, atol=0)
    found = predictions(torch.tensor([[-3.0], [1e9]]), declared)[:, 0]
    assert found[0] == 0
    assert found[1].isfinite()


def test_each_task_is_read_in_its_own_way_whatever_the_leading_shape():
    tasks = (task(), task(kind="regression", loss="mse", mean=1, std=2), task(kind="regression", loss="log_mse"))
    logits = torch.randn(2, 3, 3)
    found = predictions(logits, tasks)
    assert found.shape == (2, 3, 3)
    for i, declared in enumerate(tasks):
        assert_close(found[..., i], predictions(logits[..., i, None], (declared,))[..., 0])
