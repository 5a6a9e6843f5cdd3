import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sample_partitions import write_part

from infnet.errors import ArtifactError, DataError
from infnet.evaluation import calibrators
from infnet.evaluation.predict import predict
from infnet.export.bundle import Bundle
from infnet.export.calibration import CalibrationSettings
from infnet.export.exporter import export_run
from infnet.serving.ranker import Ranker
from infnet.training.checkpoint import load_checkpoint
from infnet.updating import update as module
from infnet.updating.guard import GuardError, GuardSettings
from infnet.updating.samples import collect_samples
from infnet.updating.update import UpdateSettings, update_bundle
from small_bundle import NEWCOMER, graphs_of

STRAIGHT = UpdateSettings(holdout=0.0, shuffle=False, guard=GuardSettings(when_unsure="accept"))


def checkpoint(path):
    return load_checkpoint(path / "checkpoint.safetensors").tensors


def contents(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def known_log(bundle, log):
    """Samples that name nothing new."""
    items = {*bundle.encoder.values("item")["value"]}
    return [pair for pair in log if pair[0]["user_id"] != NEWCOMER and pair[1]["item_id"] in items][:128]


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


def test_an_update_of_a_calibrated_bundle_is_calibrated(run, bundle, samples, tmp_path, accept, monkeypatch):
    with graphs_of(bundle), monkeypatch.context() as patch:
        patch.setattr(calibrators, "_LEAST_ROWS", 30)
        patch.setattr(calibrators, "_LEAST_POSITIVES", 5)
        parent = export_run(run, tmp_path / "parent", calibration=CalibrationSettings(method="isotonic"))
    update_bundle(parent.path, samples, tmp_path / "next", accept)
    made = Bundle.open(tmp_path / "next").calibration
    assert made.settings == parent.calibration.settings
    assert made.tasks == parent.calibration.tasks, "so few rows are no reason for other curves"


def test_the_same_update_gives_the_same_bytes(bundle, samples, tmp_path, accept):
    versions = [update_bundle(bundle.path, samples, tmp_path / name, accept).version for name in "ab"]
    assert versions[0] == versions[1]


def test_an_update_shuffles_unless_told_not_to(plain, samples, tmp_path):
    found = []
    for name, shuffle in (("a", False), ("b", True), ("c", True)):
        update_bundle(plain.path, samples, tmp_path / name, replace(STRAIGHT, shuffle=shuffle))
        found.append(checkpoint(tmp_path / name)["model.embedding.weight"])
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


STAGES = ("reading samples", "growing", "encoding", "learning", "judging", "exporting", "writing the graphs")


def test_an_update_that_fails_anywhere_leaves_nothing(bundle, samples, tmp_path, accept):
    class FailedError(Exception):
        pass

    def fail(at):
        def on_stage(name):
            if name == at:
                raise FailedError

        return on_stage

    for stage in STAGES:
        with pytest.raises(FailedError):
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
    killed = subprocess.run(command, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    wanted = update_bundle(bundle.path, samples, tmp_path / "undisturbed", accept)
    assert update_bundle(bundle.path, samples, out, accept).version == wanted.version


def test_held_out_requests_are_never_learnt_from(bundle, known_log, tmp_path):
    settings = replace(STRAIGHT, holdout=0.3)
    write_part(tmp_path / "samples", 1, known_log)
    report = update_bundle(bundle.path, tmp_path / "samples", tmp_path / "a", settings)
    assert 10 < report.verdict.rows < 60
    assert report.rows == len(known_log) - report.verdict.rows
    samples = collect_samples(tmp_path / "samples", bundle.catalogue().spec, since_part=0, holdout=0.3)
    held = samples.rows.filter("is_valid")["request"].to_numpy()
    ids = {*samples.requests["request_id"].gather(held)}
    wrong = [
        (r, s | ({"label_click": 1 - s["label_click"], "label_watch": 1e6} if r["request_id"] in ids else {}))
        for r, s in known_log
    ]
    assert sum(pair not in known_log for pair in wrong) == report.verdict.rows
    write_part(tmp_path / "other", 1, wrong)
    update_bundle(bundle.path, tmp_path / "other", tmp_path / "b", settings)
    one, two = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)


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
    assert message.startswith(f"{bundle.path}: its update is refused, since on {verdict.rows} held-out rows ")
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
    assert report.added == {"item": 1, "user": 1}
    (live, live_rows), (candidate, rows) = seen
    assert torch.equal(live, checkpoint(bundle.path)["model.embedding.weight"])
    assert (live_rows, rows) == (bundle.layout.num_rows, bundle.layout.num_rows + 2)
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


def events_of(bundle, user):
    """By behaviour (item key, time), oldest first."""
    index, found = int(bundle.users.find([user])[0]), {}
    for behaviour, history in zip(bundle.layout.behaviours, bundle.histories, strict=True):
        events = slice(history.starts[index], history.starts[index + 1])
        items = [bundle.items.key(int(i)) for i in history.items[events]]
        found[behaviour.name] = [*zip(items, history.times[events].tolist(), strict=True)] if index else []
    return found


def test_histories_of_the_next_bundle_hold_what_requests_read(bundle, log, tmp_path, accept):
    told = {"click_items": ["7", "9", "8"], "click_times": [10**13, 10**13 - 5, 77]}
    changed = [(request | (told if request["user_id"] == "u3" else {}), sample) for request, sample in log[:50]]
    write_part(tmp_path / "samples", 1, changed)
    update_bundle(bundle.path, tmp_path / "samples", tmp_path / "out", accept)
    made = Bundle.open(tmp_path / "out")
    assert ("9", 10**13 - 5) in events_of(made, "u3")["click"]
    for user in ("u1", "u3", "u5", NEWCOMER):
        before, after = events_of(bundle, user), events_of(made, user)
        for behaviour in made.layout.behaviours:
            name, served = behaviour.name, set()
            for request, _ in changed:
                if request["user_id"] == user:
                    served |= {*zip(request[f"{name}_items"], request[f"{name}_times"], strict=True)}
            wanted = sorted(served | {*before[name]}, key=lambda event: event[1])
            assert after[name] == wanted[-behaviour.length :]


def test_the_report_is_plain(bundle, samples, tmp_path, accept):
    report = update_bundle(bundle.path, samples, tmp_path / "out", accept).as_json()
    assert json.loads(json.dumps(report)) == report
    assert report["guard"]["accepted"] is True
    assert report["seconds"].keys() >= {"learning", "judging", "exporting"}
