"""From a bundle and new samples to the next bundle: grow, learn, be judged, be exported."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from infnet.data.dataset import Dataset
from infnet.data.layout import Layout
from infnet.data.workspace import check_replaceable
from infnet.evaluation.predict import predict
from infnet.evaluation.predictions import Predictions
from infnet.export.bundle import Bundle
from infnet.export.exporter import write_bundle
from infnet.export.graph import require_exporter
from infnet.export.learning import LearningState, item_counts, last_seen
from infnet.export.manifest import MANIFEST, Lineage
from infnet.export.source import BundleSource
from infnet.models.base import RankingModel
from infnet.serving.label_join import Delayed
from infnet.training.config import TrainConfig
from infnet.training.environment import find_device, training_environment
from infnet.training.prefetch import Prefetcher
from infnet.training.schedule import Schedule
from infnet.training.state import TrainState
from infnet.training.step import Stepper
from infnet.updating.growth import Growth, grow
from infnet.updating.guard import GuardError, GuardSettings, Verdict, judge
from infnet.updating.histories import merged_histories
from infnet.updating.partition import TRAIN, VALID, write_partition
from infnet.updating.reading import ReadSamples
from infnet.updating.samples import collect_samples, delayed_tasks

__all__ = ["UpdateReport", "UpdateSettings", "update_bundle"]


@dataclass(frozen=True)
class UpdateSettings:
    """How to update."""

    holdout: float = 0.05
    """Share of requests, chosen by id, that is never learnt from; the same in every update."""
    evict_after_days: float | None = None
    """Forget values that nothing has named for so long; None keeps all."""
    delayed: Delayed = "wait"
    """As the samples were joined."""
    shuffle: bool = True
    """Learn in an order that depends on the run's seed and the number of updates; else in order of time."""
    guard: GuardSettings = field(default_factory=GuardSettings)
    device: str = "cpu"


@dataclass(frozen=True)
class UpdateReport:
    """What an update did."""

    version: str
    parent: str
    updates: int
    """From the run's bundle to this one."""
    rows: int
    """Learnt from."""
    samples_part: int
    """The newest partition of samples."""
    newest_ms: int
    """Time of the newest impression in the weights."""
    new_users: int
    new_items: int
    added: Mapping[str, int]
    """By vocabulary, values that got a row."""
    forgotten: Mapping[str, int]
    """By vocabulary, values that lost theirs."""
    verdict: Verdict
    seconds: Mapping[str, float]
    """By stage."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: value for name, value in vars(self).items() if name != "verdict"}
        return plain | {"guard": self.verdict.as_json()}


def update_bundle(
    bundle: Path | str,
    samples: Path | str,
    out: Path | str,
    settings: UpdateSettings | None = None,
    *,
    users: pl.DataFrame | None = None,
    items: pl.DataFrame | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> UpdateReport:
    """Go on training a bundle with samples that it has not seen, and write the next one if it is no worse.

    One pass over the new samples, parameters and optimisers as the bundle left them, batches at most as large and
    learning rates as the run's (without warm-up or decay). From the same bundle, samples and settings the same bytes
    come out; killed at any moment, it leaves ``out`` as it was.

    Args:
        bundle: With its checkpoint.
        samples: Directory that the label join wrote.
        out: Directory to make; an older bundle there is replaced.
        settings: How.
        users, items: Raw features of new or changed users and items (:func:`infnet.updating.growth.grow`).
        on_stage: Called with what is being done.

    Raises:
        GuardError: The candidate is worse than the bundle, or uncalibrated; it is not kept.
        DataError: There is nothing new to learn from, or a value cannot be read.
        ArtifactError: Bundle or samples are damaged, or the bundle carries no checkpoint.
        TrainingError: The loss is no finite number.
    """
    update = _Update(Bundle.open(bundle), Path(samples), Path(out), settings or UpdateSettings(), on_stage)
    check_replaceable(Path(out), MANIFEST)
    require_exporter()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{Path(out).name}.update-", dir=Path(out).parent) as work:
        return update.run(Path(work), users, items)


class _Update:
    def __init__(
        self, parent: Bundle, samples: Path, out: Path, settings: UpdateSettings, on_stage: Callable[[str], None]
    ) -> None:
        self._parent, self._samples_at, self._out, self._settings = parent, samples, out, settings
        self._on_stage, self._seconds = on_stage, dict[str, float]()
        self._lineage = parent.manifest.lineage
        self._learning = parent.learning()
        self._old = parent.catalogue()
        late = delayed_tasks(self._old.spec) if settings.delayed == "fake_negative" else ()
        changes = {"device": settings.device, "fake_negatives": late}
        self._config = self._learning.config.model_copy(update=changes)

    def run(self, work: Path, users: pl.DataFrame | None, items: pl.DataFrame | None) -> UpdateReport:
        settings, parent = self._settings, self._parent
        with self._stage("reading samples"):
            samples = collect_samples(
                self._samples_at,
                self._old.spec,
                since_part=self._lineage.samples_part,
                holdout=settings.holdout,
                delayed=settings.delayed,
            )
            read = ReadSamples.read(samples, self._old.encoder, self._old.item_values)
        with self._stage("growing"):
            days = settings.evict_after_days
            growth = grow(self._old, self._learning, read, users=users, items=items, evict_after_days=days)
            encoder = growth.catalogue.encoder
            changes = {"vocabularies": encoder.vocabularies, "num_rows": encoder.num_rows}
            layout = parent.layout.model_copy(update=changes)
        with self._stage("encoding"):
            partition = write_partition(_made(work / "new"), read, growth.catalogue, layout)
        with self._stage("learning"):
            state = self._learn(layout, growth, partition)
        with self._stage("judging"):
            verdict = self._judge(state.model, partition, read.only_valid(), _made(work / "live"))
            if not verdict.accepted:
                raise GuardError(
                    f"{parent.path}: its update is refused, since on {verdict.rows} held-out rows "
                    f"{'; '.join(verdict.reasons)}; stay with version {parent.manifest.version}",
                    verdict,
                )
        with self._stage("exporting"):
            source = self._source(state, growth, partition, read)
            made = write_bundle(
                source,
                self._out,
                precision=parent.manifest.precision,
                int8_dense=parent.manifest.int8_dense,
                calibration=None if parent.calibration is None else parent.calibration.settings,
                like=parent,
                on_stage=self._on_stage,
            )
        return UpdateReport(
            version=made.manifest.version,
            parent=parent.manifest.version,
            updates=made.manifest.lineage.updates,
            rows=partition.num_rows(TRAIN),
            samples_part=samples.last_part,
            newest_ms=made.manifest.trained_to_ms,
            new_users=growth.num_new_users,
            new_items=growth.num_new_items,
            added=dict(growth.relisting.added),
            forgotten={name: len(values) for name, values in growth.relisting.forgotten.items()},
            verdict=verdict,
            seconds=self._seconds,
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._on_stage(name)
        started = time.perf_counter()
        yield
        self._seconds[name] = round(time.perf_counter() - started, 3)

    def _learn(self, layout: Layout, growth: Growth, partition: Dataset) -> TrainState:
        config, number = self._config, self._lineage.updates
        device = find_device(config)
        with training_environment(config.model_copy(update={"seed": config.seed + number}), device):
            state = TrainState.begin(layout, config, device)
            learning = replace(self._learning, tensors=_moved(self._learning.tensors, growth))
            state.take(learning.checkpoint(), self._parent.path)
            stepper = Stepper(state, config, Schedule("constant", 0, 0), self._parent.path)
            state.model.train()
            ordered = partition.batches(
                TRAIN,
                _batch_size(partition.num_rows(TRAIN), config),
                seed=config.seed if self._settings.shuffle else None,
                epoch=number,
                sessions=config.sessions,
                gaps=state.model.layout.has_gaps,
            )
            with Prefetcher(ordered, config.prefetch) as batches:
                for batch in batches:
                    stepper.step(batch)
            stepper.check_finite()
        state.model.cpu().eval()
        return state

    def _judge(self, candidate: RankingModel, partition: Dataset, valid: ReadSamples, work: Path) -> Verdict:
        """Against the live model, which reads the same requests by its own encoder."""
        layout = self._parent.layout
        before = write_partition(work, valid, self._old, layout)
        with torch.random.fork_rng(devices=[]):
            live = TrainState.begin(layout, self._config, torch.device("cpu"))
        live.take(self._learning.checkpoint(), self._parent.path)
        found: list[Predictions] = [
            predict(model, dataset, VALID) for model, dataset in ((live.model, before), (candidate, partition))
        ]
        users = valid.users.to_numpy()[valid.request]
        return judge(found[0], found[1], layout.tasks, users, self._settings.guard)

    def _source(self, state: TrainState, growth: Growth, partition: Dataset, read: ReadSamples) -> BundleSource:
        parent, relisting = self._parent.manifest, growth.relisting
        catalogue = growth.catalogue
        counts = np.where(growth.items[:, None] < 0, 0, self._parent.item_counts()[np.maximum(growth.items, 0)])
        is_repeat = read.samples.rows.filter(~pl.col("is_valid"))["is_repeat"]
        old_seen = np.where(relisting.origin < 0, 0, self._learning.seen[np.maximum(relisting.origin, 0)])
        learning = LearningState(
            config=self._learning.config,
            tensors=state.tensors(),
            seen=np.maximum(old_seen, last_seen(partition)),
            waiting=relisting.waiting,
        )
        return BundleSource(
            origin=self._parent.path,
            name=parent.name,
            fingerprint=parent.fingerprint,
            run=parent.run,
            trained_to_ms=max(parent.trained_to_ms, read.samples.newest_ms),
            lineage=Lineage(
                parent=parent.version,
                updates=self._lineage.updates + 1,
                samples_part=read.samples.last_part,
            ),
            model=state.model,
            catalogue=replace(catalogue, histories=merged_histories(catalogue, partition, read.users)),
            counts=counts + item_counts(partition, is_repeat.to_numpy()),
            learning=learning,
            judge=partition,
            split=TRAIN,
        )


def _moved(tensors: Mapping[str, Tensor], growth: Growth) -> dict[str, Tensor]:
    """A checkpoint whose table has the rows of the grown vocabularies; moments of new values begin at zero."""
    start, is_new = torch.from_numpy(growth.start), torch.from_numpy(growth.relisting.origin < 0)
    moved = dict(tensors)
    moved["model.embedding.weight"] = tensors["model.embedding.weight"][start]
    for name, moments in tensors.items():
        if name.startswith("optimizers.table.") and moments.ndim == 2:
            moved[name] = moments[start].masked_fill_(is_new[:, None], 0.0)
    return moved


def _batch_size(num_rows: int, config: TrainConfig) -> int:
    """As few batches as the run's size allows, about equally filled: a last one of a few rows would be a noisy step."""
    return -(-num_rows // -(-num_rows // config.batch_size))


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
