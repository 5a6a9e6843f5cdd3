"""Tuning: fair, resumable, never below a model's defaults."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import yaml

from infnet.errors import ArtifactError, SpecError, TrainingError
from infnet.training import study as study_module
from infnet.training.config import TrainConfig, load_config
from infnet.training.run import Run
from infnet.training.search import tune
from infnet.training.trainer import train
from small_dataset import write_dataset

SPACE = """
model: {width: [4, 8], hidden: [[16], [8]], head_hidden: [[8]], dropout: [0.0, 0.2]}
train: {threads: 1, epochs: 1, evaluations_per_epoch: 3, batch_size: [64, 128], learning_rate: [1.0e-3, 1.0e-2]}
"""

GOOD = [0.6, 0.7, *[0.5, 0.6, 0.7] * 4]
"""What five trials find; the defaults' batch is more than half the dataset, so that they are evaluated twice."""


@pytest.fixture
def space(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    return str(file)


@pytest.fixture
def study(tmp_path, dataset, evaluate, space):
    """A function that tunes Shared-Bottom, with changes."""

    def go(out="study", trials=4, **changes):
        options = {"trials": trials, "space": space, "evaluate": evaluate} | changes
        data, model = options.pop("dataset", dataset), options.pop("model", "shared_bottom")
        return tune(data, model, tmp_path / out, **options)

    return go


def report_of(path):
    """The report without what differs from one call to the next."""
    report = json.loads((path / "report.json").read_text())
    return report | {
        "trials": [trial | {"seconds": 0} for trial in report["trials"]],
        "best": report["best"] and report["best"] | {"seconds": 0},
    }


def in_turn(*values):
    """An evaluation that gives these values, one after another, and the last one ever after."""
    left = list(values)
    return lambda model, split: {"mean": left.pop(0) if len(left) > 1 else left[0]}


def interrupted_at(number, step):
    def progress(at):
        if at.number == number and at.training is not None and at.training.step == step:
            raise KeyboardInterrupt

    return progress


def test_trial_0_is_the_models_own_defaults_so_that_the_best_is_never_worse(tmp_path, dataset, evaluate, study):
    result = study()
    defaults = Run.load(result.path / "trials" / "0").config
    assert defaults == TrainConfig(
        model="shared_bottom", settings=defaults.settings, threads=1, evaluations_per_epoch=3
    ).model_copy(update={"tensorboard": False, "checkpoint_every": None})
    plain = train(dataset, TrainConfig(model="shared_bottom"), tmp_path / "plain", evaluate=evaluate)
    assert defaults.settings == plain.config.settings
    assert result.trials[0].settings["model.hidden"] == [256, 128]  # not among the choices
    assert result.best_value >= result.trials[0].value
    assert result.best_value == max(trial.value for trial in result.trials)


def test_the_best_settings_are_a_config_that_trains_to_the_same_value(tmp_path, dataset, evaluate, study):
    result = study()
    config = load_config(result.path / "best.yaml")
    assert config == result.best_config
    assert (config.tensorboard, config.checkpoint_every) == (True, TrainConfig().checkpoint_every)
    run = train(dataset, config, tmp_path / "run", evaluate=evaluate)
    assert run.report["best"]["value"] == result.best_value
    assert Run.load(result.best_run).report["best"]["value"] == result.best_value


def test_a_trial_is_worth_what_its_best_checkpoint_is(dataset, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("evaluations_per_epoch: 3", "evaluations_per_epoch: 3, keep: epoch"))
    result = tune(dataset, "shared_bottom", tmp_path / "study", trials=1, space=str(space), evaluate=in_turn(0.9, 0.7))
    assert result.best_value == 0.7


def test_the_report_tells_of_every_trial(dataset, study):
    result = study(trials=3)
    report = json.loads((result.path / "report.json").read_text())
    assert report["model"] == "shared_bottom"
    assert report["fingerprint"] == dataset.manifest.fingerprint
    assert report["monitor"] == "mean"
    assert [trial["number"] for trial in report["trials"]] == [0, 1, 2]
    for trial in report["trials"]:
        assert trial.keys() >= {"number", "state", "value", "settings", "seconds"}
        assert trial["settings"].keys() == {
            *("model.width", "model.hidden", "model.head_hidden", "model.dropout"),
            *("train.batch_size", "train.learning_rate"),
        }
    assert report["best"] == report["trials"][result.best_trial]
    assert len({json.dumps(trial["settings"]) for trial in report["trials"]}) == 3


def test_only_the_best_trial_keeps_its_checkpoints(study):
    result = study(trials=5)
    for trial in result.trials:
        found = {file.name for file in (result.path / "trials" / str(trial.number)).glob("*.safetensors")}
        assert found == ({"best.safetensors", "last.safetensors"} if trial.number == result.best_trial else set())
    Run.load(result.best_run).load_model()


def test_a_study_goes_on_to_more_trials_as_if_it_had_never_stopped(study):
    whole = study("whole", trials=12)  # beyond the sampler's first ten, which are random
    for trials in (1, 4, 4, 3, 12):
        result = study("parts", trials=trials)
    assert report_of(result.path) == report_of(whole.path)
    assert (result.path / "best.yaml").read_bytes() == (whole.path / "best.yaml").read_bytes()
    assert result.best_config == whole.best_config


def test_trials_cut_short_are_begun_anew_with_the_same_settings(study, monkeypatch):
    whole = study("whole", trials=5)
    for number, step in ((0, 1), (0, 1), (2, 4), (3, 9)):
        with pytest.raises(KeyboardInterrupt):
            study("cut", trials=5, progress=interrupted_at(number, step))

    def die(*arguments):
        raise KeyboardInterrupt

    for owner, name in ((study_module.Study, "tell"), (study_module, "write_atomically")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, die)
            with pytest.raises(KeyboardInterrupt):
                study("cut", trials=5)
    assert report_of(study("cut", trials=5).path) == report_of(whole.path)


KILLED = """
    import os, signal, sys

    from infnet.data.dataset import Dataset
    from infnet.evaluation.evaluate import split_metrics
    from infnet.training.search import tune

    data = Dataset.open(sys.argv[1])

    def die(at):
        if at.number == 1 and at.training is not None and at.training.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    tune(data, "shared_bottom", sys.argv[3], trials=3, space=sys.argv[2], evaluate=split_metrics(data), progress=die)
"""


def test_a_killed_process_costs_the_trial_under_way_and_nothing_else(tmp_path, dataset, study, space):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(dataset.path), space, str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert killed.returncode < 0, killed.stderr
    assert len(json.loads((tmp_path / "killed" / "report.json").read_text())["trials"]) == 1
    assert report_of(study("killed", trials=3).path) == report_of(study("whole", trials=3).path)


def test_a_trial_that_falls_behind_is_pruned_and_leaves_a_run_that_is_whole(study):
    result = study(trials=6, evaluate=in_turn(*GOOD, 0.1, 0.2, 0.3))
    pruned = result.trials[5]
    assert (pruned.state, pruned.value) == ("pruned", 0.2)  # the first evaluation decides nothing
    assert [trial.state for trial in result.trials[:5]] == ["complete"] * 5
    run = Run.load(result.path / "trials" / "5")
    assert not run.is_finished
    assert [json.loads(line)["kind"] for line in run.metrics_path.read_text().splitlines()][-1] == "evaluation"
    assert result.best_trial == 0


def test_the_last_evaluation_prunes_nothing(study):
    result = study(trials=6, evaluate=in_turn(*GOOD, 0.5, 0.6, 0.1))
    assert result.trials[5].state == "complete"


def test_of_a_loss_the_lowest_is_the_best(tmp_path, study):
    (tmp_path / "loss.yaml").write_text(SPACE.replace("epochs: 1,", "epochs: 1, monitor: t0_logloss,"))
    values = [0.5] * 3 + [0.4] * 3 + [0.6] * 3
    result = study(trials=3, space=str(tmp_path / "loss.yaml"), evaluate=lambda *_: {"t0_logloss": values.pop(0)})
    assert (result.best_trial, result.best_value, result.monitor) == (1, 0.4, "t0_logloss")


def test_a_trial_whose_loss_is_no_number_fails_alone(tmp_path, study):
    (tmp_path / "wild.yaml").write_text(SPACE.replace("1.0e-2]", "1.0e+30]"))
    result = study(trials=5, space=str(tmp_path / "wild.yaml"))
    wild = [trial for trial in result.trials if trial.settings["train.learning_rate"] > 1]
    assert wild
    assert all(trial.state == "failed" and "is no finite number" in trial.reason for trial in wild)
    assert result.trials[result.best_trial].state == "complete"


def test_if_every_trial_fails_the_reason_is_told(study):
    with pytest.raises(TrainingError, match=r"none of 2 trials came to its end \(mean is no number") as caught:
        study(trials=2, evaluate=in_turn(float("nan")))
    assert "\n" not in str(caught.value)


def test_settings_that_only_together_are_refused_fail_without_training(tmp_path, study):
    (tmp_path / "heads.yaml").write_text(
        "model: {num_heads: [1, 4], width: [4, 8, 6]}\ntrain: {threads: 1, batch_size: [64]}"
    )
    result = study(trials=20, model="infnet", space=str(tmp_path / "heads.yaml"), evaluate=in_turn(0.5))
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert [trial.settings["model.width"] for trial in failed] == [6]
    assert "width 6 is not divisible by num_heads 4" in failed[0].reason


def test_no_settings_are_tried_twice_and_a_space_can_come_to_its_end(tmp_path, study):
    (tmp_path / "few.yaml").write_text("model: {width: [4, 8]}\ntrain: {threads: 1, batch_size: [64, 1024]}")
    result = study(trials=40, space=str(tmp_path / "few.yaml"), evaluate=in_turn(0.5))
    tried = [tuple(trial.settings.values()) for trial in result.trials]
    assert len(tried) == len(set(tried))
    assert set(tried) == {(width, size) for width in (4, 8) for size in (64, 1024)} | {(16, 512)}


def test_what_does_not_apply_to_the_model_is_left_out_and_reported(tmp_path, study):
    (tmp_path / "more.yaml").write_text(SPACE.replace("width:", "num_blocks: [1, 2], width:"))
    result = study(trials=2, space=str(tmp_path / "more.yaml"), evaluate=in_turn(0.5))
    assert result.skipped == {"model.num_blocks": "model 'shared_bottom' has no such setting"}
    assert json.loads((result.path / "report.json").read_text())["skipped"] == result.skipped
    assert "model.num_blocks" not in result.trials[1].settings


def test_every_model_is_offered_the_same_settings_in_the_same_order(tmp_path, study):
    (tmp_path / "fair.yaml").write_text("model: {width: [4, 8, 12]}\ntrain: {threads: 1, batch_size: [64, 256, 512]}")
    options = {"trials": 4, "space": str(tmp_path / "fair.yaml"), "evaluate": in_turn(0.5)}
    one, other = study("a", **options), study("b", model="infnet", **options)
    assert [trial.settings for trial in one.trials[1:]] == [trial.settings for trial in other.trials[1:]]


def test_another_seed_tries_other_settings(study):
    one, other = study("a", trials=4, evaluate=in_turn(0.5)), study("b", trials=4, seed=1, evaluate=in_turn(0.5))
    assert [trial.settings for trial in one.trials] != [trial.settings for trial in other.trials]
    assert other.best_config.seed == 1


def test_a_study_of_something_else_is_not_gone_on_with(tmp_path, study):
    study(trials=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "changed.yaml").write_text(SPACE.replace("[4, 8]", "[4, 16]"))
    for changes, message in (
        ({"dataset": write_dataset(tmp_path / "other", fingerprint="b" * 64)}, r"a study of dataset aaaa.*with bbbb"),
        ({"model": "infnet"}, "a study of model shared_bottom, asked to go on with infnet"),
        ({"space": str(tmp_path / "changed.yaml")}, "a study of space"),
        ({"epochs": 2}, "a study of space"),
        ({"seed": 1}, "a study of seed 0, asked to go on with 1"),
    ):
        with pytest.raises(SpecError, match=message) as caught:
            study(trials=2, **changes)
        assert "\n" not in str(caught.value)
        assert "choose another --out" in str(caught.value)


def test_a_directory_with_something_else_is_left_alone(tmp_path, study):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.tex").write_text("years of work")
    with pytest.raises(SpecError, match="is not empty and holds no study"):
        study()
    assert [file.name for file in (tmp_path / "study").iterdir()] == ["thesis.tex"]


def test_a_damaged_database_is_named(study):
    result = study(trials=1)
    (result.path / "study.db").write_bytes(b"not a database, for sure, but long enough to be looked at" * 99)
    with pytest.raises(ArtifactError, match=r"study\.db: the study is damaged") as caught:
        study(trials=2)
    assert "\n" not in str(caught.value)


def test_mistakes_are_found_before_anything_is_written(tmp_path, study):
    for changes, message in (
        ({"trials": 0}, "--trials: wanted at least 1, found 0"),
        ({"space": "tiny"}, "space tiny: cannot be read"),
        ({"model": "infnett"}, "unknown model 'infnett'; did you mean 'infnet'"),
        ({"epochs": 0}, "train.epochs"),
    ):
        with pytest.raises(SpecError, match=message):
            study(**changes)
    (tmp_path / "metric.yaml").write_text("train: {monitor: t0_acu}")
    with pytest.raises(SpecError, match=r"train\.monitor: no metric 't0_acu'"):
        study(space=str(tmp_path / "metric.yaml"))
    assert not (tmp_path / "study").exists()


def test_without_optuna_the_way_out_is_told(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SpecError, match=r"pip install 'infnet\[tune\]'"):
        study()


def test_optuna_keeps_quiet_and_as_loud_as_it_was(study, capfd):
    import optuna

    before = optuna.logging.get_verbosity()
    study(trials=2, evaluate=in_turn(0.5))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert optuna.logging.get_verbosity() == before


def test_the_configuration_of_a_trial_stands_beside_it(study):
    result = study(trials=2)
    found = yaml.safe_load((result.path / "trials" / "1" / "config.yaml").read_text())
    settings = result.trials[1].settings
    assert found["model"]["width"] == settings["model.width"]
    assert found["train"]["learning_rate"] == settings["train.learning_rate"]
