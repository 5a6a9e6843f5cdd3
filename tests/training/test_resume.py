"""A run that is killed again and again ends with the bytes of one that was not."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from infnet.errors import ArtifactError, SpecError
from infnet.training.checkpoint import load_checkpoint
from infnet.training.run import Run
from infnet.training.trainer import train

CHANGES = {
    "checkpoint_every": 4,
    "evaluations_per_epoch": 2,
    "log_every": 3,
    "task_weighting": "gradnorm",
    "embedding_l2": 1e-4,
}

KILLED_RUNS = """
    import os, signal, sys
    from pathlib import Path

    import torch._dynamo  # which every optimiser imports; once here instead of in every child

    from infnet.data.dataset import Dataset
    from infnet.evaluation.evaluate import split_metrics
    from infnet.training import state
    from infnet.training.config import parse_config
    from infnet.training.run import Run
    from infnet.training.trainer import train

    data, config, out = Dataset.open(sys.argv[1]), parse_config(Path(sys.argv[2]).read_text()), Path(sys.argv[3])

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_when(condition):
        return lambda at: die() if condition(at) else None

    def die_after(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            original(*args, **kwargs)
            die()

        setattr(owner, name, call)

    def go(progress=None, evaluate=split_metrics(data), **options):
        train(data, config, out, evaluate=evaluate, resume=True, progress=progress, **options)

    def between_two_checkpoints():
        go(die_when(lambda at: at.step == 7))

    def before_the_first_checkpoint():
        go(die_when(lambda at: at.step == 2))

    def while_writing_a_checkpoint():
        os.fsync = lambda descriptor: die() if at[0] > 8 else None
        at = [0]
        go(lambda now: at.__setitem__(0, now.step))

    def between_best_and_last():
        die_after(Run, "save_best")
        go()

    def while_evaluating():
        go(evaluate=die)

    def after_the_last_step():
        go(die_when(lambda at: at.epoch == 3 and at.batch == 10))

    def before_the_report():
        Run.write_report = die
        go()

    for kill in (
        before_the_first_checkpoint,
        between_two_checkpoints,
        while_writing_a_checkpoint,
        between_best_and_last,
        while_evaluating,
        after_the_last_step,
        before_the_report,
    ):
        child = os.fork()
        if child == 0:
            kill()
            os._exit(0)  # not killed: the parent complains
        _, status = os.waitpid(child, 0)
        step = "-"
        if (out / "last.safetensors").exists():
            step = state.load_checkpoint(out / "last.safetensors").state["step"]
        print(kill.__name__, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, step)
"""


def without_times(run):
    timed = {"rows_per_s", "evaluation_s"}
    entries = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in timed} for entry in entries]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bytes(tmp_path, dataset, evaluate, small_config):
    config = small_config(**CHANGES)
    assert config.settings["dropout"] > 0
    (tmp_path / "config.yaml").write_text(json.dumps(config.document()))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(KILLED_RUNS)]
    arguments = [str(dataset.path), str(tmp_path / "config.yaml"), str(tmp_path / "killed")]
    killed = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert killed.returncode == 0, killed.stderr
    moments = [line.split() for line in killed.stdout.splitlines()]
    assert len(moments) == 7
    assert all(was_killed == "True" for _, was_killed, _ in moments), killed.stdout + killed.stderr
    first, *steps = [step for _, _, step in moments]
    assert first == "-", killed.stdout
    assert [int(step) for step in steps] == sorted(int(step) for step in steps), killed.stdout
    assert (steps[:2], steps[-2:]) == (["5", "8"], ["28", "30"]), killed.stdout

    run = Run.load(tmp_path / "killed")
    assert not run.is_finished
    train(dataset, config, run.path, evaluate=evaluate, resume=True)
    whole = train(dataset, config, tmp_path / "whole", evaluate=evaluate)

    ours, theirs = load_checkpoint(run.last_path), load_checkpoint(whole.last_path)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert torch.equal(ours.tensors[name], tensor), name
    assert ours.state | {"train_s": 0} == theirs.state | {"train_s": 0}
    assert run.best_path.read_bytes() == whole.best_path.read_bytes()
    assert without_times(run) == without_times(whole)
    assert run.report["metrics"] == whole.report["metrics"]


def stop_at(step):
    class StopHere(Exception):  # noqa: N818
        pass

    def progress(at):
        if at.step == step:
            raise StopHere

    return progress, StopHere


KINDS = {
    "infnet": {"model": "infnet", "settings": {"width": 4, "dropout": 0.1}},
    "adagrad": {"task_weighting": "uncertainty", "optimizer": "adagrad"},
    "adamw": {"schedule": "cosine", "warmup_steps": 5, "optimizer": "adamw", "clip_norm": 0.1},
    "pcgrad": {"task_weighting": "pcgrad"},
    "cagrad": {"task_weighting": "cagrad", "clip_norm": 0.1},
    "sessions": {"sessions": {"gap_s": 1000, "max_candidates": 4}, "prefetch": 0, "threads": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_of_any_kind_resumes_to_the_same_bytes(tmp_path, dataset, evaluate, small_config, kind):
    config = small_config(**(CHANGES | {"epochs": 1, "task_weighting": "fixed"} | KINDS[kind]))
    whole = train(dataset, config, tmp_path / "whole", evaluate=evaluate)
    progress, stopped = stop_at(7)
    with pytest.raises(stopped):
        train(dataset, config, tmp_path / "cut", evaluate=evaluate, progress=progress)
    run = train(dataset, config, tmp_path / "cut", evaluate=evaluate, resume=True)
    ours, theirs = load_checkpoint(run.last_path), load_checkpoint(whole.last_path)
    for name, tensor in theirs.tensors.items():
        assert torch.equal(ours.tensors[name], tensor), name
    assert without_times(run) == without_times(whole)


def test_a_finished_run_resumed_stays_as_it_is_and_can_be_made_longer(tmp_path, dataset, evaluate, small_config):
    config = small_config()
    run = train(dataset, config, tmp_path / "run", evaluate=evaluate)
    before = run.last_path.read_bytes()
    train(dataset, config, tmp_path / "run", evaluate=evaluate, resume=True)
    assert run.last_path.read_bytes() == before
    longer = train(dataset, small_config(epochs=5), tmp_path / "run", evaluate=evaluate, resume=True)
    whole = train(dataset, small_config(epochs=5), tmp_path / "whole", evaluate=evaluate)
    assert longer.best_path.read_bytes() == whole.best_path.read_bytes()
    assert longer.report["steps"] == 50


def test_where_there_is_no_run_resume_begins_one(tmp_path, dataset, evaluate, small_config):
    run = train(dataset, small_config(epochs=1), tmp_path / "run", evaluate=evaluate, resume=True)
    assert run.is_finished


def test_without_resume_a_run_is_not_touched(tmp_path, dataset, evaluate, small_config):
    train(dataset, small_config(epochs=1), tmp_path / "run", evaluate=evaluate)
    with pytest.raises(SpecError, match="holds a run already"):
        train(dataset, small_config(epochs=1), tmp_path / "run", evaluate=evaluate)


def test_a_damaged_last_checkpoint_stops_the_resume(tmp_path, dataset, evaluate, small_config):
    run = train(dataset, small_config(epochs=1), tmp_path / "run", evaluate=evaluate)
    whole = run.last_path.read_bytes()
    run.last_path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"last\.safetensors: the checkpoint is damaged"):
        train(dataset, small_config(epochs=2), tmp_path / "run", evaluate=evaluate, resume=True)
