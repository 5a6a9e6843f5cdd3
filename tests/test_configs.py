from pathlib import Path

import pytest

from infnet.models import INFNetConfig, SharedBottomConfig, build_model
from infnet.training.config import load_config
from random_batches import make_layout

CONFIGS = Path(__file__).parents[1] / "configs"


def model_config(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    return build_model(config.model, make_layout(), config.settings).config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_complete_for_a_run(path):
    config = load_config(path)
    assert build_model(config.model, make_layout(), config.settings).name == config.model


def test_named_configs_are_what_their_names_say():
    assert model_config("default") == INFNetConfig()
    assert model_config("paper") == INFNetConfig.paper()
    assert model_config("shared_bottom") == SharedBottomConfig(hidden=(256, 128), head_hidden=(64,))
