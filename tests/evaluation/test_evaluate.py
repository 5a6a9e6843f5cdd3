import pytest
import torch

from infnet.errors import ArtifactError
from infnet.evaluation.evaluate import evaluate_run
from infnet.models import build_model
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from small_dataset import write_dataset

NUM_ROWS = 150


@pytest.fixture
def run(tmp_path):
    dataset = write_dataset(tmp_path / "data", {"valid": NUM_ROWS, "test": NUM_ROWS})
    config = TrainConfig(model="shared_bottom")
    run = Run.create(tmp_path / "run", dataset, config)
    torch.manual_seed(0)
    run.save_best(build_model(config.model, dataset.layout, config.settings), {})
    return run


def test_a_run_is_judged_on_every_row_of_the_split(run):
    found = evaluate_run(run, "test").as_json()
    assert found["counts"]["rows"] == NUM_ROWS
    assert found["counts"]["tasks"]["t0"]["rows"] == NUM_ROWS
    assert found["counts"]["tasks"]["t1"]["rows"] == NUM_ROWS - len(range(0, NUM_ROWS, 7))
    assert 0 <= found["mean"]["auc"] <= 1


def test_batch_size_changes_no_metric(run):
    whole = evaluate_run(run, "test", batch_size=1000).as_flat()
    # One row's score may move by a rounding with the shape of the products, so AUC by less than a pair.
    assert evaluate_run(run, "test", batch_size=7).as_flat() == pytest.approx(whole, rel=1e-4)


def test_splits_differ(run):
    assert evaluate_run(run, "valid").as_json() != evaluate_run(run, "test").as_json()


def test_progress_ends_at_all_rows(run):
    seen = []
    evaluate_run(run, "test", batch_size=64, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, NUM_ROWS), (128, NUM_ROWS), (NUM_ROWS, NUM_ROWS)]


def test_a_moved_dataset_is_found_where_it_is_said_to_be(run, tmp_path):
    before = evaluate_run(run, "test")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="say where with --data DIR"):
        evaluate_run(run, "test")
    assert evaluate_run(run, "test", data=tmp_path / "elsewhere") == before


def test_another_dataset_is_refused(run, tmp_path):
    write_dataset(tmp_path / "other", {"test": NUM_ROWS}, fingerprint="b" * 64)
    with pytest.raises(ArtifactError, match="fingerprint bbbb"):
        evaluate_run(run, "test", data=tmp_path / "other")


def test_an_unknown_split_is_refused_with_a_suggestion(run):
    with pytest.raises(ArtifactError, match="did you mean 'test'"):
        evaluate_run(run, "tests")
