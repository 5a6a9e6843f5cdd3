import math

import numpy as np
import pytest

from infnet.errors import ArtifactError, DataError
from infnet.evaluation.predictions import Predictions


def some_predictions():
    return Predictions(
        tasks=("click", "watch_time"),
        kinds=("binary", "regression"),
        labels=np.array([[0, 1.5], [1, math.nan], [1, 0]], dtype=np.float32),
        scores=np.array([[0.1, 2.0], [0.2, 1.0], [0.9, 0.1]]),
        users=np.array([4, 4, 7]),
    )


def test_what_is_saved_is_loaded(tmp_path):
    saved = some_predictions()
    saved.save(tmp_path / "test.npz")
    loaded = Predictions.load(tmp_path / "test.npz")
    assert (loaded.tasks, loaded.kinds, len(loaded)) == (saved.tasks, saved.kinds, 3)
    for name in ("labels", "scores", "users"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
        assert getattr(loaded, name).dtype == getattr(saved, name).dtype


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "test.npz"
    some_predictions().save(file)
    before = file.read_bytes()

    def full_disk(handle, **arrays):
        handle.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        some_predictions().save(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.npz: is not there"):
        Predictions.load(tmp_path / "none.npz")

    (tmp_path / "text.npz").write_text("task,label\n")
    with pytest.raises(ArtifactError, match=r"text\.npz: holds no predictions"):
        Predictions.load(tmp_path / "text.npz")

    some_predictions().save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"half\.npz: holds no predictions"):
        Predictions.load(tmp_path / "half.npz")

    np.savez(tmp_path / "other.npz", labels=np.zeros((2, 1)))
    with pytest.raises(ArtifactError, match=r"other\.npz: holds no predictions .*tasks"):
        Predictions.load(tmp_path / "other.npz")

    np.save(tmp_path / "array.npz", np.zeros(3))
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz") if (tmp_path / "array.npz.npy").exists() else None
    with pytest.raises(ArtifactError, match=r"array\.npz: holds no predictions"):
        Predictions.load(tmp_path / "array.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros((3, 1))}, r"scores have the shape \(3, 1\)"),
        ({"labels": np.zeros((2, 2))}, r"labels have the shape \(2, 2\)"),
        ({"users": np.zeros(2, dtype=int)}, "wanted"),
        ({"kinds": ("binary",)}, "kinds are"),
        ({"kinds": ("binary", "ordinal")}, "ordinal"),
        ({"tasks": ("click", "click")}, "name one twice"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change, message):
    parts = {name: getattr(some_predictions(), name) for name in ("tasks", "kinds", "labels", "scores", "users")}
    with pytest.raises(DataError, match=message):
        Predictions(**(parts | change))
