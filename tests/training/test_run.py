import json
import math

import pytest
import torch

from infnet.errors import ArtifactError, SpecError
from infnet.models import build_model
from infnet.training.run import Run
from small_dataset import write_dataset


@pytest.fixture
def run(tmp_path, dataset, small_config):
    return Run.create(tmp_path / "run", dataset, small_config())


def test_a_run_remembers_its_dataset_config_and_versions(run, dataset, small_config):
    loaded = Run.load(run.path)
    assert loaded.config == small_config()
    assert loaded.layout == dataset.layout
    assert loaded.dataset_path == dataset.path.resolve()
    assert loaded.about["seed"] == small_config().seed
    assert {"infnet", "python", "torch", "numpy", "polars", "platform", "threads"} <= set(loaded.about["versions"])
    assert not loaded.is_finished


def test_a_run_loads_the_model_it_saved_in_evaluation_mode(run, dataset):
    torch.manual_seed(5)
    model = build_model(run.config.model, dataset.layout, run.config.settings)
    run.save_best(model, {"step": 3})
    before = torch.get_rng_state()
    loaded = Run.load(run.path).load_model()
    assert not loaded.training
    assert torch.equal(before, torch.get_rng_state())  # loading draws no random numbers
    for (name, one), other in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_run_without_a_checkpoint_says_so(run):
    with pytest.raises(ArtifactError, match=r"best\.safetensors: there is no checkpoint"):
        run.load_model()


def test_a_directory_with_something_else_is_left_alone(tmp_path, dataset, small_config):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(SpecError, match="is not empty and holds no run"):
            Run.create(tmp_path, dataset, small_config(), force=force)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path, dataset, small_config):
    (tmp_path / "run").write_text("")
    with pytest.raises(SpecError, match="holds no run"):
        Run.create(tmp_path / "run", dataset, small_config())


def test_a_run_is_replaced_only_by_force_and_other_files_stay(run, dataset, small_config):
    run.write_report({"steps": 1})
    (run.path / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"--resume.*--force"):
        Run.create(run.path, dataset, small_config())
    replaced = Run.create(run.path, dataset, small_config(seed=8), force=True)
    assert Run.load(run.path).config.seed == 8
    assert not replaced.is_finished
    assert (run.path / "notes.txt").read_text() == "mine"


def test_the_beginnings_of_a_run_killed_while_created_are_no_obstacle(run, dataset, small_config):
    (run.path / "run.json").rename(run.path / ".run.json.tmp")
    Run.create(run.path, dataset, small_config())
    assert Run.exists(run.path)


def test_another_dataset_is_refused(run, tmp_path):
    (tmp_path / "other").mkdir()
    other = write_dataset(tmp_path / "other", fingerprint="b" * 64)
    with pytest.raises(ArtifactError, match=r"has the fingerprint bbbb.*was trained on aaaa"):
        run.check_dataset(other)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="is no run"):
        Run.load(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "manifest.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "\0\0"])
def test_a_damaged_file_of_a_run_is_named(run, name, content):
    (run.path / name).write_text(content)
    with pytest.raises(ArtifactError, match=name):
        Run.load(run.path)


def test_a_damaged_config_is_named(run):
    for content in ("train: {epochs: x}", "\0", "train: {unknown: 1}"):
        (run.path / "config.yaml").write_text(content)
        with pytest.raises(ArtifactError, match=r"config\.yaml"):
            Run.load(run.path)
    (run.path / "config.yaml").unlink()
    with pytest.raises(ArtifactError, match=r"config\.yaml"):
        Run.load(run.path)


def test_a_run_of_another_format_says_which(run):
    about = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(about | {"format_version": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        Run.load(run.path)


def test_an_undefined_metric_is_null_in_the_report(run):
    run.write_report({"metrics": {"like_gauc": math.nan}})
    assert json.loads((run.path / "report.json").read_text()) == {"metrics": {"like_gauc": None}}
    assert run.report == {"metrics": {"like_gauc": None}}


def test_a_report_of_an_unfinished_run_says_how_to_finish(run):
    with pytest.raises(ArtifactError, match=r"training has not ended.*--resume"):
        _ = run.report


@pytest.mark.parametrize("changes", [{"learning_rate": 0.5}, {"seed": 3}, {"settings": {"width": 2}}, {"model": "x"}])
def test_resuming_with_settings_that_change_the_result_is_refused(run, small_config, changes):
    with pytest.raises(SpecError, match=r"was begun with (train|model)"):
        run.go_on_with(small_config(**changes))


def test_resuming_may_be_more_patient_and_longer(run, small_config):
    run.go_on_with(small_config(patience=9, epochs=30, threads=2))
    assert Run.load(run.path).config == small_config(patience=9, epochs=30, threads=2)


def test_a_cosine_run_cannot_be_made_longer(tmp_path, dataset, small_config):
    run = Run.create(tmp_path / "cosine", dataset, small_config(schedule="cosine"))
    with pytest.raises(SpecError, match=r"train\.epochs"):
        run.go_on_with(small_config(schedule="cosine", epochs=30))
