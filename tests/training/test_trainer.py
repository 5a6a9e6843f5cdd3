import json
import math

import pytest
import torch

from infnet.data.dataset import Dataset
from infnet.data.sessions import SessionGrouping
from infnet.errors import DataError, SpecError, TrainingError
from infnet.evaluation.evaluate import split_metrics
from infnet.models import RankingModel, SharedBottomConfig
from infnet.training.checkpoint import load_checkpoint
from infnet.training.run import Run
from infnet.training.trainer import train
from small_dataset import write_dataset


def lines(run, kind=None):
    entries = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [entry for entry in entries if kind in (None, entry["kind"])]


def script(*values):
    """An evaluation that gives these values, one after another."""
    left = list(values)
    return lambda model, split: {"mean": left.pop(0)}


def test_training_beats_chance_and_the_run_tells_how(tmp_path, dataset, evaluate, small_config):
    run = train(dataset, small_config(epochs=10, patience=10, seed=1), tmp_path / "run", evaluate=evaluate)
    assert run.report["metrics"]["mean_auc"] > 0.7
    assert run.report["metrics"]["watch_r2"] > 0.1
    assert run.report["steps"] == 10 * 10
    assert run.report["rows"] == 10 * 600
    losses = [entry["loss"] for entry in lines(run, "train")]
    assert losses[-1] < losses[0]
    assert evaluate(Run.load(run.path).load_model(), "valid") == run.report["metrics"]


@pytest.mark.parametrize(
    ("optimizer", "weighting"),
    [("adam", "fixed"), ("adamw", "gradnorm"), ("adagrad", "uncertainty"), ("adam", "pcgrad"), ("adam", "cagrad")],
)
def test_a_small_model_overfits_32_rows(tmp_path, small_config, weighting, optimizer):
    (tmp_path / "data").mkdir()
    few = write_dataset(tmp_path / "data", {"train": 32, "valid": 32})
    config = small_config(
        settings={"width": 8, "hidden": [64], "head_hidden": [16]},
        epochs=80,
        evaluations_per_epoch=1,
        patience=80,
        batch_size=32,
        learning_rate=0.1 if optimizer == "adagrad" else 0.02,
        optimizer=optimizer,
        task_weighting=weighting,
    )

    def on_training_rows(model: RankingModel, split: str):
        return split_metrics(few)(model, "train")

    run = train(few, config, tmp_path / "run", evaluate=on_training_rows)
    assert run.report["metrics"]["mean_auc"] > 0.99


def test_two_runs_with_one_seed_are_the_same_bytes_and_another_seed_is_not(tmp_path, dataset, evaluate, small_config):
    config = small_config(prefetch=2)
    runs = [train(dataset, config, tmp_path / "a", evaluate=evaluate)]
    torch.rand(7)  # what the caller draws in between does not matter
    runs.append(train(dataset, config.model_copy(update={"prefetch": 0}), tmp_path / "b", evaluate=evaluate))
    runs.append(train(dataset, small_config(seed=1), tmp_path / "c", evaluate=evaluate))
    a, b, c = (load_checkpoint(run.last_path).tensors for run in runs)
    assert a.keys() == b.keys() == c.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["model.embedding.weight"], c["model.embedding.weight"])
    assert runs[0].best_path.read_bytes() == runs[1].best_path.read_bytes()


def test_training_leaves_the_process_as_it_was(tmp_path, dataset, evaluate, small_config):
    torch.manual_seed(11)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(dataset, small_config(epochs=1, threads=threads + 1), tmp_path / "run", evaluate=evaluate)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_stops_after_patience_evaluations_without_a_better_one_and_keeps_the_best(tmp_path, dataset, small_config):
    evaluate = script(0.5, 0.7, 0.6, 0.7, 0.69, 0.9)  # equal is not better
    run = train(dataset, small_config(epochs=20, patience=3), tmp_path / "run", evaluate=evaluate)
    assert run.report["stopped"] == "early"
    assert run.report["epochs"] == 5
    assert run.report["best"] == {"value": 0.7, "step": 20, "epoch": 2.0}
    assert load_checkpoint(run.best_path).state["step"] == 20
    assert [entry["is_best"] for entry in lines(run, "evaluation")] == [True, True, False, False, False]


def test_a_run_ended_from_outside_after_an_evaluation_can_go_on(tmp_path, dataset, small_config):
    class Enough(Exception):  # noqa: N818
        pass

    seen = []

    def stop(value):
        seen.append(value)
        if len(seen) == 2:
            raise Enough

    with pytest.raises(Enough):
        train(dataset, small_config(), tmp_path / "run", evaluate=script(0.5, 0.7), on_evaluation=stop)
    assert seen == [0.5, 0.7]
    run = Run.load(tmp_path / "run")
    assert not run.is_finished
    assert load_checkpoint(run.best_path).state["step"] == 20
    assert load_checkpoint(run.last_path).state["step"] == 20
    again = train(dataset, small_config(), run.path, evaluate=script(0.6), resume=True)
    assert again.report["best"]["value"] == 0.7
    assert again.report["steps"] == 30


def test_a_monitored_loss_is_better_when_lower(tmp_path, dataset, small_config):
    values = [0.5, 0.4, 0.6]
    config = small_config(monitor="t0_logloss")
    run = train(dataset, config, tmp_path / "run", evaluate=lambda model, split: {"t0_logloss": values.pop(0)})
    assert run.report["best"]["value"] == 0.4


def test_evaluations_are_spread_over_the_epoch_and_can_stop_within_it(tmp_path, dataset, small_config):
    config = small_config(evaluations_per_epoch=4, patience=2, epochs=5)
    run = train(dataset, config, tmp_path / "run", evaluate=script(0.5, 0.6, 0.7, 0.8, 0.9, 0.1, 0.1))
    assert [entry["step"] for entry in lines(run, "evaluation")] == [3, 5, 8, 10, 13, 15, 18]
    assert run.report["stopped"] == "early"
    assert run.report["steps"] == 18


def test_evaluations_within_an_epoch_can_be_for_the_curves_alone(tmp_path, dataset, small_config):
    config = small_config(evaluations_per_epoch=2, patience=2, epochs=9, keep="epoch")
    seen = []
    evaluate = script(0.9, 0.5, 0.9, 0.6, 0.9, 0.4, 0.9, 0.4, 0.9)
    run = train(dataset, config, tmp_path / "run", evaluate=evaluate, on_evaluation=seen.append)
    assert seen == [0.9, 0.5, 0.9, 0.6, 0.9, 0.4, 0.9, 0.4]
    assert run.report["best"] == {"value": 0.6, "step": 20, "epoch": 2.0}
    assert load_checkpoint(run.best_path).state["step"] == 20
    assert run.report["stopped"] == "early"
    assert [entry["is_best"] for entry in lines(run, "evaluation")] == [False, True, False, True, *[False] * 4]


def test_an_epoch_of_fewer_batches_than_evaluations_is_evaluated_once_after_each(tmp_path, dataset, small_config):
    config = small_config(epochs=2, batch_size=400, evaluations_per_epoch=5)
    run = train(dataset, config, tmp_path / "run", evaluate=script(0.1, 0.2, 0.3, 0.4))
    assert [entry["step"] for entry in lines(run, "evaluation")] == [1, 2, 3, 4]


def test_models_are_evaluated_without_dropout_and_without_gradients(tmp_path, dataset, small_config):
    seen = []

    def evaluate(model, split):
        seen.append((model.training, torch.is_grad_enabled(), split))
        return {"mean": 0.5}

    train(dataset, small_config(epochs=2), tmp_path / "run", evaluate=evaluate)
    assert seen == [(False, False, "valid")] * 2


def test_learning_rates_follow_the_schedule(tmp_path, dataset, small_config):
    config = small_config(epochs=2, warmup_steps=4, schedule="cosine", log_every=1)
    run = train(dataset, config, tmp_path / "run", evaluate=script(0.5, 0.6))
    rates = [entry["learning_rate"] / 0.01 for entry in lines(run, "train")]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 16)) for i in range(16)])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sessions_train_in_every_precision(tmp_path, dataset, evaluate, small_config, precision):
    sessions = SessionGrouping(gap_s=1000, max_candidates=4)
    config = small_config(precision=precision, sessions=sessions, clip_norm=5.0, model="infnet", settings={"width": 4})
    run = train(dataset, config, tmp_path / "run", evaluate=evaluate)
    assert run.report["rows"] == 3 * 600
    assert run.load_model().embedding.weight.dtype == torch.float32
    assert run.report["metrics"]["mean_auc"] > 0.6


def test_tensorboard_files_hold_the_curves(tmp_path, dataset, evaluate, small_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(dataset, small_config(epochs=2, tensorboard=True), tmp_path / "run", evaluate=evaluate)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("valid/mean_auc")] == [10, 20]
    assert {"train/loss", "train/t0_loss", "train/learning_rate", "valid/watch_r2"} <= set(events.Tags()["scalars"])


def test_progress_counts_every_step_and_names_the_best(tmp_path, dataset, evaluate, small_config):
    seen = []
    run = train(dataset, small_config(epochs=2), tmp_path / "run", evaluate=evaluate, progress=seen.append)
    assert sorted({at.step for at in seen}) == list(range(1, 21))
    assert sum(at.is_evaluating for at in seen) == 2
    assert seen[-1].best == run.report["best"]["value"]
    assert all(at.batches == 10 and at.epochs == 2 for at in seen)


class PoisonedDataset(Dataset):
    """Its 14th training batch, the 4th of epoch 2, holds an infinite watch time."""

    def batches(self, split, batch_size, **options):
        for index, batch in enumerate(super().batches(split, batch_size, **options)):
            if split == "train" and options["epoch"] == 1 and index == 3:
                batch.labels[0, 0, 2] = math.inf
            yield batch


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loss_that_is_no_number_stops_with_its_place_and_keeps_the_best(
    tmp_path, dataset, evaluate, small_config, prefetch
):
    poisoned = PoisonedDataset(dataset.path, dataset.manifest)
    config = small_config(checkpoint_every=1, prefetch=prefetch)
    with pytest.raises(
        TrainingError, match=r"task 'watch' is no finite number at epoch 2, batch 4 .*rate 0\.01"
    ) as caught:
        train(poisoned, config, tmp_path / "run", evaluate=evaluate)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "run" / "best.safetensors") in str(caught.value)
    run = Run.load(tmp_path / "run")
    assert not run.is_finished
    evaluate(run.load_model(), "valid")
    tensors = load_checkpoint(run.last_path).tensors
    assert all(t.isfinite().all() for name, t in tensors.items() if name.startswith("model."))


def test_a_diverging_model_is_noticed_and_told_apart(tmp_path, dataset, evaluate, small_config):
    with pytest.raises(TrainingError, match=r"largest parameter .* with norm .*lower train\.learning_rate"):
        train(dataset, small_config(learning_rate=1e30), tmp_path / "run", evaluate=evaluate)


def test_a_monitored_metric_that_is_undefined_stops_with_the_way_out(tmp_path, dataset, small_config):
    with pytest.raises(TrainingError, match=r"mean is no number.*train\.monitor"):
        train(dataset, small_config(), tmp_path / "run", evaluate=script(math.nan))


def test_mistakes_are_found_before_anything_is_written(tmp_path, dataset, evaluate, small_config):
    for changes, message in (
        ({"monitor": "t0_acu"}, r"train\.monitor: no metric 't0_acu'; did you mean 't0_auc'"),
        ({"model": "infnett"}, "unknown model 'infnett'; did you mean 'infnet'"),
        ({"settings": {"widht": 3}}, "has no setting 'widht'; did you mean 'width'"),
        ({"device": "cuda:99"}, r"train\.device: 'cuda:99' cannot be used here"),
    ):
        with pytest.raises(SpecError, match=message):
            train(dataset, small_config(**changes), tmp_path / "run", evaluate=evaluate)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_is_named(tmp_path, evaluate, small_config):
    (tmp_path / "data").mkdir()
    empty = write_dataset(tmp_path / "data", {"train": 64, "valid": 0})
    with pytest.raises(DataError, match="split 'valid' has no rows"):
        train(empty, small_config(), tmp_path / "run", evaluate=evaluate)


def test_the_run_keeps_every_setting_of_the_model_even_the_defaults(tmp_path, dataset, evaluate, small_config):
    run = train(dataset, small_config(epochs=1, settings={"width": 4}), tmp_path / "run", evaluate=evaluate)
    kept = Run.load(run.path).config.settings
    assert kept == SharedBottomConfig(width=4).model_dump(mode="json")
    assert set(kept) == set(SharedBottomConfig.model_fields)
