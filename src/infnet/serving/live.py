"""The model that is served: loaded, tried, swapped for another while requests go on."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from infnet.errors import ArtifactError, InfnetError, SpecError, did_you_mean
from infnet.export.bundle import BackendName, Bundle
from infnet.schema import DatasetSpec, load_spec
from infnet.serving.events import IMPRESSION
from infnet.serving.publication import ModelDirectory, Publication
from infnet.serving.ranker import Ranker

__all__ = ["LiveModel", "ModelHolder"]

_log = structlog.get_logger(__name__)
_WARM_REQUESTS, _WARM_CANDIDATES = 20, 200


@dataclass(frozen=True)
class LiveModel:
    """A ranker with what the service reads of its bundle; encoder, tables and graph are of one version."""

    ranker: Ranker
    spec: DatasetSpec
    version: str
    loaded_ms: int

    @classmethod
    def load(cls, path: Path, *, backend: BackendName | None = None, threads: int = 1) -> LiveModel:
        """Open a bundle, verify every file, and let it answer some requests.

        Raises:
            ArtifactError: It is no bundle, is damaged, or answers nonsense.
        """
        try:
            bundle = Bundle.open(path, verify="full")
            model = cls(
                ranker=Ranker(bundle, backend=backend, threads=threads),
                spec=load_spec(bundle.path / "spec.yaml"),
                version=bundle.manifest.version,
                loaded_ms=time.time_ns() // 1_000_000,
            )
            model._warm_up()
        except InfnetError:
            raise
        except Exception as error:  # of a library that reads a part of it
            raise ArtifactError(
                f"{path}: cannot be loaded ({type(error).__name__}: {error}); export it again"
            ) from error
        return model

    def _warm_up(self) -> None:
        bundle, rng = self.ranker.bundle, np.random.default_rng(0)
        now = max((int(h.times.max()) for h in bundle.histories if len(h.times)), default=self.loaded_ms)
        for _ in range(_WARM_REQUESTS):
            user = bundle.users.key(int(rng.integers(1, len(bundle.users) + 1))) if len(bundle.users) else "nobody"
            keys = [bundle.items.key(int(i)) for i in rng.integers(1, len(bundle.items) + 1, _WARM_CANDIDATES)]
            if not np.isfinite(self.ranker.score(user, keys, time_ms=now)).all():
                raise ArtifactError(f"{bundle.path}: predicts what is no number; train or export it again")

    @cached_property
    def delays_ms(self) -> Mapping[str, int]:
        """By behaviour, how long after it an event is seen."""
        return {behaviour.name: round(1000 * behaviour.delay_s) for behaviour in self.spec.behaviours}

    @cached_property
    def behaviours_of(self) -> Mapping[str, tuple[str, ...]]:
        """The behaviours that an event type is one of."""
        found: dict[str, tuple[str, ...]] = {}
        for behaviour in self.spec.behaviours:
            found[behaviour.event_type] = (*found.get(behaviour.event_type, ()), behaviour.name)
        return found

    @cached_property
    def event_types(self) -> frozenset[str]:
        """Every type of event that means something to it."""
        return frozenset({IMPRESSION, *self.behaviours_of, *(task.event_type for task in self.spec.tasks)})

    @cached_property
    def dynamic_features(self) -> tuple[str, ...]:
        """Candidate features that a feature store may hold for each item."""
        features = self.ranker.bundle.encoder.features.values()
        return tuple(f.name for f in features if f.side == "candidate" and f.reads == "column")

    def check_task(self, name: str) -> None:
        """See that it predicts something.

        Raises:
            SpecError: It has no such task.
        """
        if name not in self.ranker.tasks:
            raise SpecError(f"no task is called '{name}'{did_you_mean(name, self.ranker.tasks)}")

    def item_vectors(self, items: NDArray[np.integer]) -> NDArray[np.floating]:
        """(N, D) what the model makes of each item's own features, by which items are compared.

        Args:
            items: (N,) item indices; the unknown one, 0, is like no other.
        """
        tokens = self.ranker.bundle.engine_tables.tokens.take(items)
        vectors: NDArray[np.floating] = tokens.reshape(len(items), -1)
        vectors[items == 0] = 0.0
        return vectors

    @property
    def prior(self) -> NDArray[np.float32]:
        """(num_items,) a score of each item for anyone."""
        return self.ranker.bundle.prior


class ModelHolder:
    """The live model, and the thread that looks for another.

    A request takes :attr:`live` once and stays with it, so that a swap is one assignment and nobody waits for it. What
    cannot be loaded is refused, and the old one serves on.

    Args:
        path: A bundle, served for good, or a directory of versions (:class:`ModelDirectory`), which is watched.
        every_s: Between looks.

    Attributes:
        live: The model to serve with.
        on_swap: Called after a swap with the new model, and with None after a refusal.
        checks: Called with a new model before it is swapped in; an ``InfnetError`` refuses it.
    """

    def __init__(
        self,
        path: Path,
        *,
        backend: BackendName | None = None,
        threads: int = 1,
        every_s: float = 0.5,
    ) -> None:
        self._path, self._backend, self._threads = path, backend, threads
        self._every_s = every_s
        self.on_swap: Callable[[LiveModel | None], None] = lambda model: None
        self.checks: list[Callable[[LiveModel], None]] = []
        self._directory = ModelDirectory(path) if ModelDirectory.is_one(path) else None
        self._refused: Publication | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.live = self._first()

    @property
    def refused(self) -> str | None:
        """The version that is published but could not be loaded."""
        return None if self._refused is None else self._refused.version

    def watch(self) -> None:
        """Begin to look for other versions, if the path is a directory of them."""
        if self._directory is not None and self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="model-watcher", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End watching."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _first(self) -> LiveModel:
        if self._directory is None:
            return self._load(self._path)
        publication = self._directory.publication()
        try:
            return self._load(self._directory.bundle_path(publication.version))
        except InfnetError as error:
            self._refuse(publication, error)
            for version in reversed(publication.previous):
                try:
                    return self._load(self._directory.bundle_path(version))
                except InfnetError:
                    continue
            raise

    def _load(self, path: Path) -> LiveModel:
        return LiveModel.load(path, backend=self._backend, threads=self._threads)

    def _watch(self) -> None:
        complaint = None
        while not self._stop.wait(self._every_s):
            try:
                self._look()
                complaint = None
            except Exception as error:  # nothing about a new model may end the service of the old one
                if str(error) != complaint:
                    _log.exception("model_watch_failed")
                complaint = str(error)

    def _look(self) -> None:
        assert self._directory is not None
        publication = self._directory.publication()
        version = publication.version
        if version == self.live.version:
            self._refused = None
        if version == self.live.version or publication == self._refused:
            return
        try:
            model = self._load(self._directory.bundle_path(version))
            if model.version != version:
                raise ArtifactError(f"holds version {model.version}, wanted {version}; publish it again")
            for check in self.checks:
                check(model)
        except InfnetError as error:
            self._refuse(publication, error)
            return
        before, self._refused, self.live = self.live.version, None, model
        _log.info("model_swapped", version=version, before=before)
        self.on_swap(model)
        del model
        _release_memory()

    def _refuse(self, publication: Publication, error: Exception) -> None:
        self._refused = publication
        _log.error("model_refused", version=publication.version, reason=str(error))
        self.on_swap(None)


def _release_memory() -> None:
    """Give what a model that is gone held back to the system; the allocator would keep it."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # no glibc
        return
