import os

import pytest
import torch
from torch import nn

from infnet.errors import ArtifactError, TrainingError
from infnet.training import checkpoint as module
from infnet.training.checkpoint import load_checkpoint, load_parameters, save_checkpoint

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([True, False]),
    "step": torch.tensor(7),
    "none": torch.zeros(0, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.safetensors"


def test_tensors_and_state_come_back_bit_for_bit(path):
    state = {"best": 0.1 + 0.2, "none": None, "metrics": {"auc": 1e-300}, "step": 3}
    save_checkpoint(path, TENSORS, state)
    loaded = load_checkpoint(path)
    assert loaded.state == state
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_tied_and_sliced_tensors_are_saved_as_they_look(path):
    base = torch.arange(8.0)
    save_checkpoint(path, {"x": base, "same": base, "part": base[2:4], "across": base.reshape(2, 4).T}, {})
    loaded = load_checkpoint(path).tensors
    assert torch.equal(loaded["same"], base)
    assert torch.equal(loaded["part"], base[2:4])
    assert torch.equal(loaded["across"], base.reshape(2, 4).T)


def test_any_flipped_byte_is_noticed(path):
    save_checkpoint(path, TENSORS, {"step": 3, "word": "here"})
    whole = bytearray(path.read_bytes())
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            load_checkpoint(path)


def test_a_damaged_file_is_named_in_one_line_with_the_way_out(path):
    save_checkpoint(path, TENSORS, {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + b"\0\0\0\0\0\0\0\1")
    with pytest.raises(ArtifactError, match=r"last\.safetensors: .*damaged.*checksum.*train again") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1])
def test_a_cut_off_file_is_damaged(path, length):
    save_checkpoint(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="damaged"):
        load_checkpoint(path)


def test_a_missing_checkpoint_says_so(path):
    with pytest.raises(ArtifactError, match="there is no checkpoint"):
        load_checkpoint(path)


def test_another_format_says_so(path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_VERSION", 99)
    save_checkpoint(path, TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="format 99"):
        load_checkpoint(path)


def test_a_failed_sync_leaves_the_older_checkpoint_and_nothing_else(path, monkeypatch):
    save_checkpoint(path, {"x": torch.ones(2)}, {"step": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"x": torch.zeros(2)}, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path).state == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_disk_that_takes_no_more_leaves_the_older_checkpoint_and_nothing_else(path):
    resource = pytest.importorskip("resource")
    save_checkpoint(path, {"x": torch.ones(2)}, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"last\.safetensors: cannot be written .*free space"):
            save_checkpoint(path, {"x": torch.zeros(100_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(path).state == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_parameters_of_another_model_are_refused_by_name(path):
    save_checkpoint(path, nn.Linear(2, 3).state_dict(), {})
    checkpoint = load_checkpoint(path)
    with pytest.raises(ArtifactError, match=r"weight has the shape \(3, 2\), the model wants \(4, 2\)"):
        load_parameters(nn.Linear(2, 4), checkpoint, path)
    with pytest.raises(ArtifactError, match="bias is in the checkpoint, not the model"):
        load_parameters(nn.Linear(2, 3, bias=False), checkpoint, path)
    with pytest.raises(ArtifactError, match=r"0\.bias is in the model, not the checkpoint"):
        load_parameters(nn.Sequential(nn.Linear(2, 3)), checkpoint, path)
