import math

import pytest
import torch

from infnet.errors import ArtifactError, SpecError
from infnet.models import build_model
from infnet.training.conflicts import task_conflicts
from infnet.training.objectives import task_losses
from infnet.training.run import Run
from infnet.training.trainer import train
from small_dataset import write_dataset


@pytest.fixture
def run(tmp_path, dataset, evaluate, small_config):
    return train(dataset, small_config(epochs=1), tmp_path / "run", evaluate=evaluate)


def test_cosines_are_those_of_the_shared_gradients_written_out(run, dataset):
    model, tasks = run.load_model(), run.layout.tasks
    vectors = []
    for batch in dataset.batches("train", 64, seed=run.config.seed, epoch=0):
        losses, _ = task_losses(model(batch), batch.labels, batch.present, tasks)
        shared = [parameter for name, parameter in model.named_parameters() if not name.startswith("heads.")]
        found = [torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True) for loss in losses]
        vectors.append(torch.stack([torch.cat([g.to_dense().flatten() for g in one]) for one in found]).double())
    report = task_conflicts(run, dataset, batches=100)
    assert report.batches == len(vectors) == 10
    assert [(pair.first, pair.second) for pair in report.pairs] == [("t0", "t1"), ("t0", "watch"), ("t1", "watch")]
    for pair, (i, j) in zip(report.pairs, [(0, 1), (0, 2), (1, 2)], strict=True):
        cosines = torch.stack([torch.cosine_similarity(g[i], g[j], dim=0) for g in vectors])
        ratios = torch.stack([g[i].norm() / g[j].norm() for g in vectors])
        assert pair.cosine == pytest.approx(cosines.mean().item(), rel=1e-4, abs=1e-6)
        assert pair.opposed == pytest.approx((cosines < 0).double().mean().item())
        assert pair.norm_ratio == pytest.approx(ratios.log().mean().exp().item(), rel=1e-4)


def test_only_as_many_batches_are_looked_at_as_asked_for_and_twice_gives_the_same(run, dataset):
    report = task_conflicts(run, dataset, batches=3)
    assert report.batches == 3
    assert report == task_conflicts(run, dataset, batches=3)


def test_tasks_that_never_meet_are_undefined(tmp_path, dataset, small_config):
    class Apart(type(dataset)):
        """Each batch has labels of one task only."""

        def batches(self, split, batch_size, **options):
            for index, batch in enumerate(super().batches(split, batch_size, **options)):
                batch.labels[..., [task for task in range(3) if task != index % 3]] = math.nan
                yield batch

    config = small_config()
    run = Run.create(tmp_path / "apart", dataset, config)
    run.save_best(build_model(config.model, dataset.layout, config.settings), {})
    report = task_conflicts(run, Apart(dataset.path, dataset.manifest), 6)
    assert all(math.isnan(pair.cosine) for pair in report.pairs)
    assert report.as_json()["pairs"][0] == {
        **{"first": "t0", "second": "t1"},
        **{"cosine": None, "opposed": None, "norm_ratio": None},
    }


def test_another_dataset_and_no_batches_are_refused(tmp_path, run, dataset):
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtifactError, match="has the fingerprint bbbb"):
        task_conflicts(run, write_dataset(tmp_path / "other", fingerprint="b" * 64))
    with pytest.raises(SpecError, match="--batches: wanted at least 1, found 0"):
        task_conflicts(run, dataset, 0)


def test_one_task_has_no_conflicts(run, dataset):
    layout = run.layout.model_copy(update={"tasks": run.layout.tasks[:1]})
    run.manifest = run.manifest.model_copy(update={"layout": layout})
    with pytest.raises(SpecError, match="was trained for 't0' alone"):
        task_conflicts(run, dataset)
