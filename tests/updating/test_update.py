import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from infnet.errors import ArtifactError, DataError
from infnet.evaluation.predict import predict
from infnet.export.bundle import Bundle
from infnet.export.exporter import export_run
from infnet.serving.ranker import Ranker
from infnet.training.checkpoint import load_checkpoint
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from infnet.training.state import TrainState
from infnet.updating import update as module
from infnet.updating.guard import GuardError, GuardSettings
from infnet.updating.update import UpdateSettings, update_bundle
from sample_partitions import write_part
from small_bundle import NEWCOMER, SETTINGS, graphs_of

STRAIGHT = UpdateSettings(holdout=0.0, shuffle=False, guard=GuardSettings(when_unsure="accept"))


def checkpoint(path):
    return load_checkpoint(path / "checkpoint.safetensors").tensors


def contents(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def plain(bundle, dataset, tmp_path_factory):
    """A bundle without dropout, whose run took batches of 32 rows."""
    settings = {"embedding_std": 1.0, "dropout": 0.0} | SETTINGS["infnet"]
    config = TrainConfig(settings=settings, batch_size=32, learning_rate=0.01, embedding_learning_rate=0.02)
    run = Run.create(tmp_path_factory.mktemp("runs") / "plain", dataset, config)
    torch.manual_seed(1)
    state = TrainState.begin(dataset.layout, config, torch.device("cpu"))
    run.save_best(state.model, {})
    state.save(run.last_path)
    run.write_report({"metrics": {}})
    with graphs_of(bundle):
        return export_run(run, tmp_path_factory.mktemp("bundles") / "plain")


@pytest.fixture(scope="module")
def known_log(log):
    """Samples of users who have been learnt from."""
    return [pair for pair in log if pair[0]["user_id"] != NEWCOMER][:128]


def test_learning_in_two_updates_is_learning_in_one(plain, known_log, tmp_path):
    write_part(tmp_path / "once", 1, known_log)
    once = update_bundle(plain.path, tmp_path / "once", tmp_path / "straight", STRAIGHT)
    assert (once.added, once.new_users, once.new_items, once.rows) == ({}, 0, 0, 128)
    write_part(tmp_path / "twice", 1, known_log[:64])
    first = update_bundle(plain.path, tmp_path / "twice", tmp_path / "first", STRAIGHT)
    write_part(tmp_path / "twice", 2, known_log[64:])
    second = update_bundle(tmp_path / "first", tmp_path / "twice", tmp_path / "second", STRAIGHT)
    assert (first.rows, second.rows) == (64, 64)
    wanted, found = checkpoint(tmp_path / "straight"), checkpoint(tmp_path / "second")
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    before = checkpoint(plain.path)
    assert not torch.equal(before["model.embedding.weight"], wanted["model.embedding.weight"])
    assert wanted["optimizers.table.step"] == before["optimizers.table.step"] + 4
    for name in ("prior.npy", "counts.npy"):
        one, two = (np.load(tmp_path / each / "items" / name) for each in ("straight", "second"))
        assert np.array_equal(one, two)
    lineage = Bundle.open(tmp_path / "second").manifest.lineage
    assert (lineage.parent, lineage.updates, lineage.samples_part) == (first.version, 2, 2)


def test_an_updated_bundle_scores_like_its_checkpoint_and_is_whole(bundle, samples, tmp_path, accept):
    report = update_bundle(bundle.path, samples, tmp_path / "next", accept)
    made = Bundle.open(tmp_path / "next", verify="full")
    assert made.manifest.version == report.version != bundle.manifest.version
    assert max(made.manifest.parity.values()) < 1e-5
    assert made.manifest.trained_to_ms == report.newest_ms > bundle.manifest.trained_to_ms
    tensors, dense = checkpoint(made.path), made.load_model().state_dict()
    assert all(torch.equal(tensors[f"model.{name}"], dense[name]) for name in dense if name != "embedding.weight")
    table = made.engine_tables.embedding.take(np.arange(made.layout.num_rows))[:, 0]
    assert np.array_equal(table, tensors["model.embedding.weight"])
    assert np.isfinite(Ranker(made).score("u1", [1, 2, 3])).all()
    assert made.manifest.request_ms == bundle.manifest.request_ms
    assert (tmp_path / "next/train.yaml").read_bytes() == (bundle.path / "train.yaml").read_bytes()


def test_the_same_update_gives_the_same_bytes(bundle, samples, tmp_path, accept):
    versions = [update_bundle(bundle.path, samples, tmp_path / name, accept).version for name in "ab"]
    assert versions[0] == versions[1]
    other = replace(accept, shuffle=False)
    assert update_bundle(bundle.path, samples, tmp_path / "c", other).version != versions[0]


STAGES = ("reading samples", "growing", "encoding", "learning", "judging", "exporting", "writing the graphs")


def test_an_update_that_fails_anywhere_leaves_nothing(bundle, samples, tmp_path, accept):
    class Failed(Exception):
        pass

    def fail(at):
        def on_stage(name):
            if name == at:
                raise Failed

        return on_stage

    for stage in STAGES:
        with pytest.raises(Failed):
            update_bundle(bundle.path, samples, tmp_path / "out", accept, on_stage=fail(stage))
        assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from infnet.updating.update import UpdateSettings, update_bundle
from infnet.updating.guard import GuardSettings
def on_stage(name):
    if name == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)
settings = UpdateSettings(guard=GuardSettings(when_unsure="accept"))
update_bundle(*sys.argv[1:4], settings, on_stage=on_stage)
"""


@pytest.mark.parametrize("stage", ["learning", "comparing with the training model"])
def test_a_killed_update_leaves_no_bundle_and_the_next_one_is_as_if_it_had_not_been(
    bundle, samples, tmp_path, accept, stage
):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(bundle.path), str(samples), str(out), stage]
    assert subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == -signal.SIGKILL
    assert not out.exists()
    wanted = update_bundle(bundle.path, samples, tmp_path / "undisturbed", accept)
    assert update_bundle(bundle.path, samples, out, accept).version == wanted.version


def test_held_out_requests_are_never_learnt_from(bundle, known_log, tmp_path):
    settings = replace(STRAIGHT, holdout=0.3)
    write_part(tmp_path / "samples", 1, known_log)
    report = update_bundle(bundle.path, tmp_path / "samples", tmp_path / "a", settings)
    assert 10 < report.verdict.rows < 60
    assert report.rows == len(known_log) - report.verdict.rows
    changed = []
    for request, sample in known_log:
        is_held = not _is_learnt(bundle, known_log, request, tmp_path)
        changed.append((request, sample | ({"label_click": 1 - sample["label_click"]} if is_held else {})))
    assert changed != known_log
    write_part(tmp_path / "other", 1, changed)
    update_bundle(bundle.path, tmp_path / "other", tmp_path / "b", settings)
    one, two = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)


def _is_learnt(bundle, log, request, tmp_path):
    from infnet.updating.samples import collect_samples

    if not hasattr(_is_learnt, "ids"):
        samples = collect_samples(tmp_path / "samples", bundle.catalogue().spec, since_part=0, holdout=0.3)
        rows = samples.rows.filter(~pl.col("is_valid"))
        _is_learnt.ids = {*samples.requests["request_id"].gather(rows["request"].to_numpy())}
    return request["request_id"] in _is_learnt.ids


def test_a_worse_candidate_is_refused_and_kept_nowhere(bundle, samples, tmp_path, monkeypatch):
    def spoilt(self, layout, growth, partition):
        state = learn(self, layout, growth, partition)
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.mul_(4.0)
        return state

    learn = module._Update._learn
    monkeypatch.setattr(module._Update, "_learn", spoilt)
    settings = UpdateSettings(holdout=0.4, guard=GuardSettings(least_rows=20))
    with pytest.raises(GuardError) as error:
        update_bundle(bundle.path, samples, tmp_path / "out", settings)
    message, verdict = str(error.value), error.value.verdict
    assert message.startswith(f"{tmp_path / 'out'}: not written, since on {verdict.rows} held-out rows ")
    assert "loss" in message
    assert "\n" not in message
    assert not verdict.accepted
    assert list(tmp_path.iterdir()) == []


def test_the_live_model_is_judged_by_its_own_encoder(bundle, samples, tmp_path, accept, monkeypatch):
    seen = []

    def spy(model, dataset, split):
        seen.append((model.embedding.weight.detach().clone(), dataset.layout.num_rows))
        return predict(model, dataset, split)

    monkeypatch.setattr(module, "predict", spy)
    report = update_bundle(bundle.path, samples, tmp_path / "out", accept)
    assert report.added == {"user": 1}
    (live, live_rows), (candidate, rows) = seen
    assert torch.equal(live, checkpoint(bundle.path)["model.embedding.weight"])
    assert (live_rows, rows) == (bundle.layout.num_rows, bundle.layout.num_rows + 1)
    assert len(candidate) == rows


def test_what_cannot_be_updated_says_why(bundle, run, samples, tmp_path):
    with graphs_of(bundle):
        slim = export_run(run, tmp_path / "slim", checkpoint=False)
    assert not slim.can_learn
    assert Ranker(slim).score("u1", [1]).shape == (1, 3)
    with pytest.raises(ArtifactError, match="was exported with --no-checkpoint and cannot be updated"):
        update_bundle(slim.path, samples, tmp_path / "out")
    with pytest.raises(DataError, match="no samples after partition 0"):
        update_bundle(bundle.path, tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes").write_text("dear")
    with pytest.raises(DataError, match="exists and was not made by this command"):
        update_bundle(bundle.path, samples, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "slim"]


def test_histories_of_the_next_bundle_hold_what_requests_read(bundle, samples, log, tmp_path, accept):
    update_bundle(bundle.path, samples, tmp_path / "out", accept)
    made = Bundle.open(tmp_path / "out")
    last = {request["user_id"]: request for request, _ in log[:192]}
    for user, request in last.items():
        index = int(made.users.find([user])[0])
        for behaviour, history in zip(made.layout.behaviours, made.histories, strict=True):
            start, end = history.starts[index], history.starts[index + 1]
            items = [made.items.key(int(i)) for i in history.items[start:end]]
            events = [*zip(items, history.times[start:end].tolist(), strict=True)]
            served = [*zip(request[f"{behaviour.name}_items"], request[f"{behaviour.name}_times"], strict=True)][::-1]
            assert events == sorted({*events}, key=lambda event: event[1])
            assert len(events) <= behaviour.length
            # What the bundle knew before may be newer: it was made at the end of the whole log.
            assert {*served} & {*events} or events[-1][1] > served[-1][1]


def test_the_report_is_plain(bundle, samples, tmp_path, accept):
    report = update_bundle(bundle.path, samples, tmp_path / "out", accept).as_json()
    assert json.loads(json.dumps(report)) == report
    assert report["guard"]["accepted"] is True
    assert report["seconds"].keys() >= {"learning", "judging", "exporting"}
