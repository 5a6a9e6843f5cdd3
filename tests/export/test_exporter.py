import shutil
import sys

import numpy as np
import pytest
import torch

from infnet.data.batches import BatchBuilder
from infnet.errors import ArtifactError, DataError, SpecError, TrainingError
from infnet.evaluation.auc import auc
from infnet.export import exporter as module
from infnet.export.bundle import Bundle
from infnet.export.exporter import MAX_DIFFERENCE, export_run
from infnet.export.folded import FoldedINFNet
from infnet.export.graph import trace_graph
from infnet.export.replay import replayed
from infnet.models import build_model
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from small_bundle import graphs_of, small_bundle, small_run

BACKENDS = ("onnx", "torch")


@pytest.fixture(scope="session", params=["infnet", "din"])
def exported(request, tmp_path_factory):
    """A run and its bundle."""
    return small_run(tmp_path_factory, request.param), small_bundle(tmp_path_factory, request.param)


def pages_of(dataset):
    rng, num = np.random.default_rng(5), dataset.num_rows("valid")
    return [rng.integers(0, num, size) for size in (1, 1, 2, 3, 30, 8, 8, 1)]


def contents(directory):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


def logits_of(bundle, dataset, pages, backend=None):
    """Of every page of row numbers, together."""
    rows = dataset.rows("valid")
    return bundle.engine(backend).logits([replayed(dataset, rows, page, gaps=True) for page in pages])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bundle_scores_like_the_training_model(exported, dataset, backend):
    run, bundle = exported
    assert bundle.manifest.parity.keys() == {*BACKENDS}
    assert 0 <= bundle.manifest.parity[backend] <= MAX_DIFFERENCE <= 1e-5
    pages, rows = pages_of(dataset), dataset.rows("valid")
    model, builder = run.load_model(), BatchBuilder(dataset, rows, gaps=True)
    with torch.inference_mode():
        wanted = [model(builder.build(page[None]))[0].numpy() for page in pages]
    largest = max(np.abs(logits).max() for logits in wanted)
    alone = [logits_of(bundle, dataset, [page], backend)[0] for page in pages]
    for found in (alone, logits_of(bundle, dataset, pages, backend)):
        assert max(np.abs(mine - w).max() for mine, w in zip(found, wanted, strict=True)) <= 1e-5 * largest


def test_a_bundle_says_what_it_was_made_from(exported, dataset):
    run, bundle = exported
    manifest = bundle.manifest
    assert (manifest.model, manifest.settings) == (run.config.model, run.load_model().config.model_dump(mode="json"))
    assert manifest.fingerprint == dataset.manifest.fingerprint
    assert (manifest.num_users, manifest.num_items) == (dataset.manifest.num_users, dataset.manifest.num_items)
    assert manifest.run["valid"] == run.report["metrics"]
    assert (manifest.precision, manifest.int8_dense, manifest.loss) == ("float32", False, {})
    assert manifest.backend == min(manifest.request_ms, key=manifest.request_ms.get)


def test_the_models_parameters_cross_over(exported):
    run, bundle = exported
    model, found = run.load_model().state_dict(), bundle.load_model().state_dict()
    assert model.keys() == found.keys()
    assert all(torch.equal(model[name], found[name]) for name in model if name != "embedding.weight")
    assert np.array_equal(bundle.engine_tables.embedding.take(np.arange(5))[:, 0], model["embedding.weight"][:5])


def test_exporting_twice_gives_the_same_bytes(tmp_path_factory, tmp_path):
    run, bundle = small_run(tmp_path_factory, "din"), small_bundle(tmp_path_factory, "din")
    again = export_run(run, tmp_path / "again")
    differing = [name for name, file in bundle.manifest.files.items() if again.manifest.files[name] != file]
    assert differing == []
    assert again.manifest.version == bundle.manifest.version


@pytest.mark.parametrize("off_by", [1e-3, np.nan])
def test_a_bundle_that_disagrees_with_its_model_is_never_written(run, bundle, tmp_path, monkeypatch, off_by):
    of_items = FoldedINFNet.of_items

    def shifted(self, item):
        return {name: table + off_by for name, table in of_items(self, item).items()}

    monkeypatch.setattr(FoldedINFNet, "of_items", shifted)
    with graphs_of(bundle), pytest.raises(TrainingError) as error:
        export_run(run, tmp_path / "out")
    assert "back end and the model differ by " in str(error.value)
    assert str(error.value).endswith("report this, nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_stays_until_a_better_one_is_whole(run, bundle, dataset, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with graphs_of(bundle):
        first = export_run(run, out)
        assert first.manifest.version == bundle.manifest.version
        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(module, "MAX_DIFFERENCE", 0.0)
            with pytest.raises(TrainingError):
                export_run(run, out)
        assert contents(tmp_path) == before
        second = export_run(run, out, precision="bf16")
    assert second.manifest.precision == Bundle.open(out, verify="full").manifest.precision == "bf16"
    assert list(tmp_path.iterdir()) == [out]


def test_something_else_is_never_replaced(run, bundle, dataset, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    before = contents(tmp_path)
    for out in (tmp_path / "mine", tmp_path / "file", run.path, dataset.path):
        with graphs_of(bundle), pytest.raises(DataError, match="exists and was not made by this command"):
            export_run(run, out)
    assert contents(tmp_path) == before
    assert Run.load(run.path).report == run.report


@pytest.mark.parametrize(
    ("options", "most", "size"),
    [
        ({"precision": "bf16"}, 0.01, 0.55),
        ({"precision": "int8"}, 0.02, 0.6),
        ({"precision": "int8", "int8_dense": True}, 0.06, 0.6),
    ],
)
def test_compression_costs_little_and_is_recorded(run, bundle, dataset, tmp_path, monkeypatch, options, most, size):
    monkeypatch.setattr(module, "MAX_LOSS", 1.0)  # on so few rows AUC is a coarse measure
    with graphs_of(bundle):
        small = export_run(run, tmp_path / "small", **options)
    assert small.manifest.precision == options["precision"]
    assert small.manifest.int8_dense == options.get("int8_dense", False)
    pages, rows = np.arange(dataset.num_rows("valid"))[:, None], dataset.rows("valid")
    before, after = (np.stack(logits_of(each, dataset, pages, "onnx"))[:, 0] for each in (bundle, small))
    assert 0 < np.abs(after - before).max() <= most * np.abs(before).max()
    costs = {
        task.name: auc(rows.labels[:, i] > 0, before[:, i]) - auc(rows.labels[:, i] > 0, after[:, i])
        for i, task in enumerate(dataset.layout.tasks)
        if task.kind == "binary"
    }
    assert small.manifest.loss == pytest.approx(costs, abs=1e-9)
    whole, less = (sum(t.num_bytes for t in tables_of(each)) for each in (bundle, small))
    assert less < size * whole


def tables_of(bundle):
    tables = bundle.engine_tables
    return [tables.embedding, tables.tokens, tables.events, *tables.items.values()]


def test_compression_that_costs_too_much_is_refused(run, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOSS", -1.0)
    with graphs_of(bundle), pytest.raises(TrainingError, match="export it with less compression, nothing was written"):
        export_run(run, tmp_path / "out", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said_before_any_work(run, dataset, tmp_path, monkeypatch):
    unserved = Run.create(tmp_path / "hstu", dataset, TrainConfig(model="hstu", settings={"width": 4}))
    unserved.save_best(build_model("hstu", dataset.layout, {"width": 4}), {})
    monkeypatch.setattr(module, "_Export", None)
    with pytest.raises(SpecError, match="model 'hstu' cannot be exported"):
        export_run(unserved, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SpecError, match=r"pip install 'infnet\[serve\]'"):
        export_run(run, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SpecError, match=r"onnxscript is not installed; run pip install 'infnet\[export\]'"):
        trace_graph(None, None)
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_items_dates_is_not_exported_as_if_they_were_missing(run, bundle, dataset, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(dataset.path, older)
    (older / "items/values/item_age.npy").unlink()
    with graphs_of(bundle), pytest.raises(ArtifactError, match=r"item_age.npy: is missing, .* prepare it again"):
        export_run(run, tmp_path / "out", data=older)
    assert [path.name for path in tmp_path.iterdir()] == ["older"]


def test_a_run_whose_training_goes_on_is_not_exported(run, bundle, dataset, tmp_path):
    young = Run.create(tmp_path / "young", dataset, run.config)
    young.save_best(run.load_model(), {})
    with graphs_of(bundle), pytest.raises(ArtifactError, match="training has not ended"):
        export_run(young, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["young"]


def test_everybody_may_read_a_bundle(bundle):
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in bundle.path.rglob("*") if path.is_file())
