"""From a training run to a bundle, which appears whole and checked or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

import infnet
from infnet.data.batches import BatchBuilder
from infnet.data.dataset import Dataset
from infnet.data.workspace import replacing
from infnet.errors import SpecError, TrainingError
from infnet.evaluation.auc import auc
from infnet.evaluation.efficiency import request_rows, seconds_of
from infnet.export.bundle import Bundle, serving_network, sha256_of
from infnet.export.calibration import CALIBRATION, CalibrationSettings, calibrate
from infnet.export.catalogue import write_entities
from infnet.export.engine import Engine
from infnet.export.graph import GraphInputs, quantize_dense, require_runtime, trace_graph, write_graph
from infnet.export.item_tables import dense_parameters, write_tables
from infnet.export.learning import prior_scores
from infnet.export.manifest import BUNDLE_VERSION, MANIFEST, BackendName, BundleManifest, FileRecord
from infnet.export.replay import replayed
from infnet.export.source import BundleSource
from infnet.export.tables import Precision
from infnet.training.checkpoint import save_checkpoint, write_atomically
from infnet.training.run import Run

__all__ = ["MAX_DIFFERENCE", "MAX_LOSS", "export_run", "sampled_aucs", "write_bundle"]

MAX_DIFFERENCE = 1e-5
"""Between bundle and training model, relative to the largest logit."""
MAX_LOSS = 0.0005
"""Of validation AUC by compression, the mean over binary tasks."""

_BACKENDS: tuple[BackendName, ...] = ("onnx", "torch")
_REQUESTS, _CANDIDATES = 32, 40
"""Compared with the training model."""
_TIMED_CANDIDATES = 500
_JUDGED_ROWS = 20_000
"""On which compression is judged."""


def export_run(
    run: Run | Path | str,
    out: Path | str,
    *,
    precision: Precision = "float32",
    int8_dense: bool = False,
    checkpoint: bool = True,
    calibration: CalibrationSettings | None = None,
    data: Path | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Write a run's best checkpoint as a bundle.

    Args:
        run: The run.
        out: Directory to make; an older bundle there is replaced.
        precision: Of tables.
        int8_dense: Turn products with weights in the graph into int8 ones.
        checkpoint: Carry along what training needs to go on; without it the bundle cannot be updated.
        calibration: How predictions are calibrated on validation rows; None leaves them as they are.
        data: Where the run's dataset is now; where it was by default.
        on_stage: Called with what is being done.

    Raises:
        SpecError: The model cannot be exported or calibrated so, or an exporter is not installed.
        TrainingError: Bundle and model disagree, or compression costs too much; nothing is written.
        ArtifactError: Run or dataset is missing or damaged.
        DataError: ``out`` is something else or cannot be written.
    """
    require_runtime()
    source = BundleSource.of_run(run if isinstance(run, Run) else Run.load(run), data, checkpoint=checkpoint)
    return write_bundle(
        source, out, precision=precision, int8_dense=int8_dense, calibration=calibration, on_stage=on_stage
    )


def write_bundle(
    source: BundleSource,
    out: Path | str,
    *,
    precision: Precision = "float32",
    int8_dense: bool = False,
    calibration: CalibrationSettings | None = None,
    like: Bundle | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Write a bundle, which appears whole and checked against the model or not at all.

    Args:
        source: What it is made from.
        out: Directory to make; an older bundle there is replaced.
        precision: Of tables.
        int8_dense: Turn products with weights in the graph into int8 ones.
        calibration: How predictions are calibrated on the source's rows; None leaves them as they are.
        like: A bundle of the same architecture, whose graphs need not be traced, nor requests timed, again; where there
            are too few rows to calibrate by, its curves stay.
        on_stage: Called with what is being done.

    Raises:
        SpecError: The model cannot be exported, or an exporter is not installed.
        TrainingError: Bundle and model disagree, or compression costs too much; nothing is written.
        DataError: ``out`` is something else or cannot be written.
    """
    require_runtime()
    out = Path(out)
    with replacing(out, MANIFEST) as directory:
        export = _Export(source, directory, on_stage, like)
        if calibration is not None:
            export.calibrate(calibration)
        export.write(precision, int8_dense=int8_dense)
    return Bundle.open(out)


class _Export:
    def __init__(
        self, source: BundleSource, directory: Path, on_stage: Callable[[str], None], like: Bundle | None
    ) -> None:
        self._source, self._directory, self._on_stage, self._like = source, directory, on_stage, like
        self._model, self._items = source.model, source.catalogue.items.table
        self._network = serving_network(source.model, padded=False)
        self._rows = source.judge.rows(source.split)
        self._has_gaps = source.model.layout.has_gaps

    def calibrate(self, settings: CalibrationSettings) -> None:
        """Write the calibration."""
        source = self._source
        if self._like is None and not source.judge.manifest.splits.get("valid"):
            raise SpecError(f"{source.origin}: has no validation rows to calibrate by; export it without calibration")
        self._on_stage("calibrating")
        before = None if self._like is None else self._like.calibration
        found = calibrate(source.model, source.judge, "valid", settings, before)
        write_atomically(self._directory / CALIBRATION, found.model_dump_json(indent=1))

    def write(self, precision: Precision, *, int8_dense: bool) -> None:
        """Write everything else, the manifest last."""
        directory = self._directory
        self._on_stage("copying users, items and encoders")
        self._write_entities()
        dense = {name: value for name, value in self._model.state_dict().items() if name != "embedding.weight"}
        save_checkpoint(directory / "model.safetensors", dense, {})
        save_file(dense_parameters(self._network), directory / "serving.safetensors")
        self._on_stage("computing the tables of items")
        write_tables(self._network, self._items, directory / "tables", "float32")
        manifest = self._manifest()
        bundle = Bundle(directory, manifest)
        self._on_stage("writing the graphs")
        self._write_graphs(bundle)
        engines = _engines(bundle)
        self._on_stage("comparing with the training model")
        parity = {name: self._difference(engine) for name, engine in engines.items()}
        for name, difference in parity.items():
            if not difference <= MAX_DIFFERENCE:
                raise TrainingError(
                    f"{self._source.origin}: the bundle's {name} back end and the model differ by {difference:.1e} of "
                    f"the largest logit, wanted at most {MAX_DIFFERENCE:.0e}; report this, nothing was written"
                )
        loss: dict[str, float] = {}
        if precision != "float32" or int8_dense:
            self._on_stage("compressing, and judging what it costs")
            before = sampled_aucs(engines["onnx"], self._source.judge, self._source.split)
            manifest = manifest.model_copy(update={"precision": precision, "int8_dense": int8_dense})
            bundle = self._compressed(manifest)
            engines = _engines(bundle)
            after = sampled_aucs(engines["onnx"], self._source.judge, self._source.split)
            loss = {task: before[task] - after[task] for task in before}
            mean = float(np.mean([*loss.values()])) if loss else 0.0
            if not mean <= MAX_LOSS:
                raise TrainingError(
                    f"{self._source.origin}: {precision}{' with int8 products' if int8_dense else ''} costs "
                    f"{mean:.5f} of validation AUC, wanted at most {MAX_LOSS}; export it with less compression, "
                    "nothing was written"
                )
        if self._like is not None:
            request_ms = self._like.manifest.request_ms
        else:
            request_ms = {name: 1000 * self._request_seconds(engine) for name, engine in engines.items()}
        files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
        for path in files:
            path.chmod(0o644)  # some libraries write private ones; a bundle is for whoever serves it
        update = {
            "parity": parity,
            "loss": loss,
            "request_ms": request_ms,
            "backend": min(request_ms, key=lambda name: request_ms[name]),
            "files": {
                path.relative_to(directory).as_posix(): FileRecord(size=path.stat().st_size, sha256=sha256_of(path))
                for path in files
            },
        }
        manifest = manifest.model_copy(update=update)
        write_atomically(directory / MANIFEST, manifest.model_dump_json(indent=1))

    def _write_entities(self) -> None:
        source, directory = self._source, self._directory
        source.catalogue.write(directory, source.model.layout)
        np.save(directory / "items" / "prior.npy", prior_scores(source.counts))
        if source.learning is not None:
            source.learning.write(directory)
            np.save(directory / "items" / "counts.npy", source.counts)
            write_entities(self._items, directory / "items")

    def _manifest(self) -> BundleManifest:
        source = self._source
        return BundleManifest(
            format_version=BUNDLE_VERSION,
            package_version=infnet.__version__,
            name=source.name,
            model=self._model.name,
            settings=self._model.config.model_dump(mode="json"),
            layout=self._model.layout,
            num_users=source.catalogue.users.num,
            num_items=source.catalogue.items.num,
            item_tables=self._network.item_tables,
            reads_targets=self._network.reads_targets,
            precision="float32",
            int8_dense=False,
            fingerprint=source.fingerprint,
            run=dict(source.run),
            trained_to_ms=source.trained_to_ms,
            lineage=source.lineage,
            parity={},
            loss={},
            request_ms={},
            backend="onnx",
            files={},
        )

    def _write_graphs(self, bundle: Bundle) -> None:
        # Two of everything that is dynamic: what is one while it is traced stays one.
        for name, num_requests in (("whole", 1), ("padded", 2)):
            network = serving_network(self._model, padded=num_requests > 1)
            traced = self._like.traced(name) if self._like else trace_graph(network, self._blank(bundle, num_requests))
            write_graph(traced, network, self._directory / f"{name}.onnx")
            if self._source.learning is not None:
                (self._directory / "traced").mkdir(exist_ok=True)
                (self._directory / "traced" / f"{name}.onnx").write_bytes(traced)

    def _blank(self, bundle: Bundle, num_requests: int) -> GraphInputs:
        """Zeros in the shapes of a request."""
        tables, behaviours = bundle.engine_tables, self._model.layout.behaviours
        num_request, num_item, num_own = self._model.inputs.num_tokens
        width, leading = tables.tokens.shape[2], (num_requests, 3)
        shapes = [table.shape[1:] for table in tables.items.values()]
        if tables.reads_targets:
            shapes.append((len(behaviours), width))

        def zeros(*shape: int) -> NDArray[np.float32]:
            return np.zeros(shape, np.float32)

        return GraphInputs(
            request=zeros(num_requests, num_request, width),
            fields=zeros(*leading, num_item + num_own, width),
            own=zeros(*leading, num_own, width),
            tables=[zeros(*leading, *shape) for shape in shapes],
            events=[zeros(num_requests, 2 + index, width) for index in range(len(behaviours))],
            present=[zeros(num_requests, 2 + index) for index in range(len(behaviours))],
        )

    def _compressed(self, manifest: BundleManifest) -> Bundle:
        shutil.rmtree(self._directory / "tables")
        write_tables(self._network, self._items, self._directory / "tables", manifest.precision)
        if manifest.int8_dense:
            for name in ("whole", "padded"):
                quantize_dense(self._directory / f"{name}.onnx")
        return Bundle(self._directory, manifest)

    def _chosen(self, index: int, num_candidates: int) -> NDArray[np.int64]:
        rng = np.random.default_rng(index)
        return rng.integers(0, len(self._rows), num_candidates)

    def _difference(self, engine: Engine) -> float:
        """Of sampled requests, one by one and together."""
        builder = BatchBuilder(self._source.judge, self._rows, gaps=self._has_gaps)
        requests, wanted = [], []
        with torch.inference_mode():
            for index in range(_REQUESTS):
                chosen = self._chosen(index, 1 + (index * _CANDIDATES) // _REQUESTS)
                requests.append(replayed(self._source.judge, self._rows, chosen, gaps=self._has_gaps))
                wanted.append(self._model(builder.build(chosen[None]))[0].numpy())
        largest = max(np.abs(each).max() for each in wanted)
        alone = [engine.logits([request])[0] for request in requests]
        worst = 0.0
        for found in (alone, engine.logits(requests)):
            # NaN has to win, which max() of Python does not promise.
            worst = float(np.maximum(worst, np.max([np.abs(f - w).max() for f, w in zip(found, wanted, strict=True)])))
        return worst / float(largest)

    def _request_seconds(self, engine: Engine) -> float:
        chosen = request_rows(self._source.judge, self._source.split, _TIMED_CANDIDATES)
        request = replayed(self._source.judge, self._rows, chosen, gaps=self._has_gaps)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return seconds_of(lambda: engine.logits([request]), 20)
        finally:
            torch.set_num_threads(threads)


def _engines(bundle: Bundle) -> dict[BackendName, Engine]:
    return {name: bundle.engine(name) for name in _BACKENDS}


def sampled_aucs(engine: Engine, dataset: Dataset, split: str) -> dict[str, float]:
    """AUC of each binary task over up to 20,000 rows of a split, evenly spaced, each a request by itself."""
    rows, layout = dataset.rows(split), engine.layout
    chosen = np.unique(np.linspace(0, len(rows) - 1, _JUDGED_ROWS).astype(np.int64))
    found = []
    for part in np.array_split(chosen, max(1, len(chosen) // 256)):
        requests = [replayed(dataset, rows, row[None], gaps=layout.has_gaps) for row in part]
        found += [logits[0] for logits in engine.logits(requests)]
    scores, labels = np.stack(found), rows.labels[chosen]
    aucs = {}
    for index, task in enumerate(layout.tasks):
        seen = ~np.isnan(labels[:, index])
        is_positive = labels[seen, index] > 0
        if task.kind == "binary" and 0 < is_positive.sum() < len(is_positive):
            aucs[task.name] = auc(is_positive, scores[seen, index])
    return aucs
