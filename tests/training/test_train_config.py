import pytest

from infnet.data.sessions import SessionGrouping
from infnet.errors import SpecError
from infnet.training.config import TrainConfig, load_config, parse_config
from random_batches import make_layout

FILE = """
model: {name: shared_bottom, width: 8}
train:
  epochs: 3
  learning_rate: 3e-4
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(FILE)
    return file


def test_later_sources_win_file_then_arguments_then_overrides(path):
    overrides = ["train.epochs=9", "model.width=32", "model.hidden=[16, 8]", "train.betas=[0.8, 0.99]"]
    config = load_config(path, overrides, epochs=5, seed=4, model=None)
    assert config.model == "shared_bottom"
    assert config.settings == {"width": 32, "hidden": [16, 8]}
    assert (config.epochs, config.seed, config.learning_rate) == (9, 4, 3e-4)
    assert config.betas == (0.8, 0.99)


def test_the_model_can_be_named_beside_a_file(path):
    assert load_config(path, model="infnet").model == "infnet"


def test_nested_settings_can_be_overridden_one_by_one():
    config = load_config(None, ["train.sessions.gap_s=60", "train.sessions.max_candidates=4"])
    assert config.sessions == SessionGrouping(gap_s=60, max_candidates=4)


def test_a_config_written_out_reads_back_the_same():
    config = load_config(None, ["train.sessions.gap_s=60", "train.clip_norm=1e-3", "model.width=8"], model="x")
    import yaml

    assert parse_config(yaml.safe_dump(config.document())) == config


def test_an_empty_file_is_all_defaults():
    assert parse_config("") == TrainConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", r"--set: unknown setting train.learning_rat; did you mean 'learning_rate'\?"),
        ("learning_rate=1", r"--set learning_rate=1: wanted .*; did you mean train.learning_rate\?"),
        ("train.epochs", "--set train.epochs: wanted model.SETTING=VALUE or train.SETTING=VALUE"),
        ("train.epochs=many", "--set: train.epochs: .*integer.*, found 'many'"),
        ("train.epochs=0", "train.epochs: .*greater than or equal to 1, found 0"),
        ("train.optimizer=sgd", "train.optimizer: .*'adam'.*, found 'sgd'"),
        ("train.betas=[0.9, 1.0]", "train.betas: both betas are at least 0 and below 1"),
        ("train.betas=[0.9", "is no YAML value"),
        ("train.sessions.gap=3", "train.sessions.gap: .*not permitted"),
        ("train.model=x", "unknown setting train.model"),
        ("model.name=3", "model.name: .*string, found 3"),
        ("optim.x=3", "wanted model.SETTING=VALUE or train.SETTING=VALUE"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override, message):
    with pytest.raises(SpecError, match=message) as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", r"f.yaml: unknown setting train.epoch; did you mean 'epochs'\?"),
        ("train: 3", "f.yaml: train is a mapping such as {epochs: 10}, found 3"),
        ("model: infnet", "f.yaml: model is a mapping such as {name: infnet}, found 'infnet'"),
        ("epochs: 3", "f.yaml: unknown section 'epochs', wanted model or train; write train.epochs"),
        ("- 3", "f.yaml: a training configuration is a mapping"),
        ("a: b: c", "f.yaml, line 1: not valid YAML"),
        ("train: {seed: -1}", "f.yaml: train.seed: .*greater than or equal to 0, found -1"),
    ],
)
def test_a_wrong_file_is_one_clear_line(text, message):
    with pytest.raises(SpecError, match=message) as caught:
        parse_config(text, "f.yaml")
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_file_is_not_blamed_on_an_override(path):
    path.write_text("train: {epoch: 3}")
    with pytest.raises(SpecError, match=r"run\.yaml: unknown setting train.epoch"):
        load_config(path, ["train.seed=1"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"absent\.yaml: cannot be read"):
        load_config(tmp_path / "absent.yaml")


def test_only_metrics_these_tasks_have_can_be_monitored():
    layout = make_layout(tasks=3, regression=True)
    for monitor in ("mean", "mean_auc", "mean_gauc", "t0_gauc", "t1_logloss", "watch_r2"):
        TrainConfig(monitor=monitor).check_monitor(layout)
    for monitor in ("watch_auc", "watch_mse", "t0_r2", "auc"):
        with pytest.raises(SpecError, match=f"train.monitor: no metric '{monitor}'"):
            TrainConfig(monitor=monitor).check_monitor(layout)
    with pytest.raises(SpecError, match=r"did you mean 't0_gauc'\?"):
        TrainConfig(monitor="t0_guac").check_monitor(layout)
