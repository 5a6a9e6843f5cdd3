"""The parts of the service put together by hand: a real model, store and log, of which any can be made to fail."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from infnet.errors import StoreError
from infnet.export.bundle import MANIFEST, Bundle, FileRecord, sha256_of
from infnet.serving.ads.billing import Billing
from infnet.serving.ads.desk import AdDesk
from infnet.serving.arms import Arm, Arms
from infnet.serving.event_log import EventLog
from infnet.serving.exposure import ExposureMemory
from infnet.serving.feature_store.base import FeatureStore, Lookup, history_bounds
from infnet.serving.feature_store.embedded import EmbeddedStore
from infnet.serving.features import FeatureService
from infnet.serving.ingest import EventIngest
from infnet.serving.live import ModelHolder
from infnet.serving.metrics import ServiceMetrics
from infnet.serving.policy_file import PolicyFile
from infnet.serving.service import RankingService
from infnet.serving.store_feeder import StoreFeeder
from infnet.serving.system import fill_store
from infnet.serving.ticket import Ticket
from infnet.serving.wire import EventsReply, RankBody

__all__ = ["SECRET", "Faulty", "Parts", "altered", "count", "holder_of", "records", "replaced", "running", "wait_until"]

SECRET = "/srv/secret/place"
"""Part of every failure's reason; no client may read it."""
LATER = 2**52

_holders: dict[Path, ModelHolder] = {}
_numbers = itertools.count()


class Faulty:
    """Stands before a store or a log, and fails or dawdles as it is told.

    Attributes:
        behind: What answers; may be exchanged.
        is_down: Whether every call raises StoreError.
        delay_s: Before every call.
        breaks: By the name of a call, how many of the next ones raise StoreError.
        calls: How often each was called.
        before: Called with a call's name and arguments before it is made.
    """

    def __init__(self, behind: Any) -> None:
        self.behind = behind
        self.is_down, self.delay_s = False, 0.0
        self.breaks: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.before: Callable[..., None] = lambda name, *args: None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.behind, name)
        if name == "accounts":
            return _Accounts(self)
        if not callable(found) or name in ("close", "bound"):
            return found

        return self._guarded(name, lambda: self.behind)

    def _guarded(self, name: str, behind: Callable[[], Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            self.before(name, *args)
            time.sleep(self.delay_s)
            is_broken = self.breaks[name] > 0
            self.breaks[name] -= is_broken
            if self.is_down or is_broken:
                raise StoreError(f"{SECRET}: does not answer")
            return getattr(behind(), name)(*args, **options)

        return call


class _Accounts:
    """Those of a store, which fail with it."""

    def __init__(self, store: Faulty) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return self._store._guarded(name, lambda: self._store.behind.accounts)


class Parts:
    """A service without its transport, its threads not started; a context manager.

    Args:
        bundle: Served for good.
        directory: Of the store and of the log; parts opened there later find what earlier ones left.
        holder: Instead of the bundle.
        store: Instead of an embedded one in the directory.
        fills: Whether the store is filled from the bundle's histories at once.
        options: Of :class:`RankingService`.
    """

    def __init__(
        self,
        bundle: Bundle,
        directory: Path,
        *,
        holder: ModelHolder | None = None,
        policy: PolicyFile | None = None,
        store: FeatureStore | None = None,
        fills: bool = True,
        writer: str = "w",
        **options: Any,
    ) -> None:
        self.bundle, self.directory = bundle, directory
        self.holder = holder or holder_of(bundle)
        self.bounds = history_bounds(bundle.layout.behaviours, {})
        self.store = Faulty(EmbeddedStore(directory / "state", self.bounds) if store is None else store)
        self.log = Faulty(EventLog(directory / "events", fsync="never", writer=writer))
        self.metrics = ServiceMetrics()
        self.memory = ExposureMemory(self.metrics)
        self.features = FeatureService(self.store)
        arms = Arms(Arm(self.holder, policy))
        self.desk = AdDesk(self.store.accounts, lambda: arms.ads)
        self.billing = Billing(self.store, self.memory, self.metrics, lambda: bool(arms.ads))
        self.service = RankingService(
            arms,
            self.features,
            self.log,
            self.memory,
            self.metrics,
            self.desk,
            self.billing,
            **{"deadline_s": 5.0, **options},
        )
        self.fills = 0
        self.feeder = StoreFeeder(self.log, self.store, self.holder, self.metrics, self._fill, self.billing)
        self.ingest = EventIngest(
            self.log, self.store, self.feeder, self.holder, self.memory, self.metrics, self.billing
        )
        if fills:
            fill_store(self.store, self.holder.live)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.is_down, self.store.breaks, self.store.delay_s = False, Counter(), 0.0
        self.close()

    def close(self) -> None:
        """As at the end of a process that is told to end."""
        self.feeder.close()
        self.die()

    def die(self) -> None:
        """As at the end of a process that is killed, as far as one process can tell."""
        self.log.close()
        self.store.close()

    def feed(self) -> None:
        """Start the feeder, and wait until the store has what the log has."""
        self.feeder.start()
        wait_until(lambda: not self.feeder.is_behind)

    def ticket(self, user: str | int = "u1", items: Any = (1, 2, 3), **fields: Any) -> Ticket:
        """Of a request that arrives now."""
        body = msgspec.convert({"user_id": user, "item_ids": list(items), **fields}, RankBody)
        return self.service.admit(body, time.perf_counter())

    def answer(self, user: str | int = "u1", items: Any = (1, 2, 3), **fields: Any) -> Any:
        """To a single request; raises what there is instead of an answer."""
        (outcome,) = self.service.answer([self.ticket(user, items, **fields)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def tell(self, *events: dict[str, Any]) -> EventsReply:
        """Send events; of item 7 in request r, unless they say otherwise."""
        given = ({"request_id": "r", "item_id": "7", "type": "click", **event} for event in events)
        return self.ingest.take([json.dumps(event).encode() for event in given])

    def history(self, user: str, behaviour: str = "click") -> list[tuple[str, int]]:
        """What the store has of a user: items and times, most recent first."""
        (found,) = self.store.behind.fetch([Lookup(user, before={behaviour: LATER})])
        return [*zip(*found.user.histories[behaviour], strict=True)]

    def served(self) -> list[dict[str, Any]]:
        return records(self.directory / "events", "served")

    def events(self) -> list[dict[str, Any]]:
        return records(self.directory / "events", "events")

    def lose_store(self) -> None:
        """Put an empty store in the place of what there was."""
        lost, empty = self.store.behind, EmbeddedStore(self.directory / f"state-{next(_numbers)}", self.bounds)
        self.store.behind = empty
        lost.close()

    def _fill(self) -> None:
        self.fills += 1
        fill_store(self.store, self.holder.live)


def holder_of(bundle: Bundle) -> ModelHolder:
    """Of a bundle; one for everybody, not to be changed."""
    if bundle.path not in _holders:
        _holders[bundle.path] = ModelHolder(bundle.path)
    return _holders[bundle.path]


def altered(bundle: Bundle, path: Path, **changes: NDArray[Any] | bytes) -> Path:
    """A copy of a bundle, of another version, in which some files hold something else; its checksums are right.

    Args:
        bundle: Stays as it is.
        path: Of the copy.
        changes: By file, with ``__`` for a slash and ``_dot_`` for a dot.
    """
    shutil.copytree(bundle.path, path)
    spec = path / "spec.yaml"
    spec.write_text(f"{spec.read_text()}# {path}\n")
    files = {"spec.yaml": spec}
    for spelt, content in changes.items():
        name = spelt.replace("__", "/").replace("_dot_", ".")
        files[name] = path / name
        if isinstance(content, bytes):
            files[name].write_bytes(content)
        else:
            np.save(files[name], content)
    found = {name: FileRecord(size=file.stat().st_size, sha256=sha256_of(file)) for name, file in files.items()}
    manifest = bundle.manifest.model_copy(update={"files": bundle.manifest.files | found})
    (path / MANIFEST).write_text(manifest.model_dump_json())
    return path


def records(log: Path, stream: str) -> list[dict[str, Any]]:
    """What a stream of an event log holds."""
    files = sorted((log / stream).glob("*.ndjson"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def count(metrics: ServiceMetrics | str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have some labels; 0 if there are none."""
    text = metrics if isinstance(metrics, str) else metrics.exposition().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def wait_until(is_done: Callable[[], Any], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not is_done():
        if time.monotonic() > end:
            raise AssertionError("did not happen in time")
        time.sleep(0.002)


@contextmanager
def running(*calls: Callable[[], object]) -> Iterator[None]:
    """Calls that run in threads of their own meanwhile, which take turns often, and end by themselves."""
    failures: list[BaseException] = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    turn_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        for thread in threads:
            thread.join(30)
        sys.setswitchinterval(turn_s)
    assert not failures, failures
    assert not any(thread.is_alive() for thread in threads)


def replaced(holder: ModelHolder, **changes: Any) -> ModelHolder:
    """A holder of the same model, in which something is different."""
    other = ModelHolder.__new__(ModelHolder)
    other.__dict__.update(holder.__dict__)
    other.live = dataclasses.replace(holder.live, **changes)
    return other
