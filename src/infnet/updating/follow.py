"""The loop: join, update when enough has come, judge, publish; again and again."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from infnet.errors import ArtifactError, InfnetError
from infnet.export.bundle import Bundle
from infnet.schema import load_spec
from infnet.serving.label_join import join_labels
from infnet.serving.publication import ModelDirectory
from infnet.updating.guard import GuardError
from infnet.updating.samples import count_new
from infnet.updating.update import UpdateReport, UpdateSettings, update_bundle

__all__ = ["Follower", "Round", "bundle_at"]


@dataclass(frozen=True)
class Round:
    """One turn of the loop."""

    outcome: Literal["published", "waiting", "refused", "failed"]
    """``waiting`` for more samples; ``refused`` by the guard; ``failed`` for another reason, and tried again."""
    version: str
    """What is served after it."""
    freshness_s: float
    """Now less the time of the newest impression in the served weights."""
    new_samples: int
    """That the served weights have not learnt from."""
    seconds: float
    """It took."""
    reason: str | None = None
    """Of a refusal or failure."""
    report: UpdateReport | None = None
    """Of an update that was published."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = asdict(self) | {"report": None if self.report is None else self.report.as_json()}
        return plain


def bundle_at(path: Path) -> Path:
    """The bundle itself, or the current version of a directory of versions."""
    return ModelDirectory(path).current() or path


class Follower:
    """Keeps a directory of versions fresh.

    Args:
        bundle: What to begin with if nothing has been published yet: a bundle, or a directory of versions.
        events: The event log.
        samples: Where its joined samples are kept.
        to: The directory of versions that servers watch.
        settings: Of each update.
        min_samples: New samples that an update needs. After a refusal it needs as many further ones.
        stop: Ends a round between two stages once it is set, leaving everything as it was.
    """

    def __init__(
        self,
        bundle: Path,
        events: Path,
        samples: Path,
        to: Path,
        settings: UpdateSettings | None = None,
        *,
        min_samples: int = 500,
        stop: threading.Event | None = None,
    ) -> None:
        self.directory = ModelDirectory(to)
        self.stop = stop or threading.Event()
        self._events, self._samples = events, samples
        self._settings, self._min_samples = settings or UpdateSettings(), min_samples
        self._refused: Mapping[str, int] = {}
        """Version, and new samples that it had when its update was refused."""
        first = self.directory.current() or bundle_at(bundle)
        Bundle.open(first).learning()  # says no before anything is published
        if self.directory.current() is None:
            self.directory.publish(first)

    def run(self, every_s: float, on_round: Callable[[Round], None]) -> None:
        """Rounds until :attr:`stop` is set, one every ``every_s`` seconds or as soon as the last one is over."""
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                on_round(self.round())
            except _StoppedError:
                return
            self.stop.wait(max(0.0, began + every_s - time.monotonic()))

    def round(self) -> Round:
        """Join, and update if there is enough to learn from."""
        began, live, new = time.monotonic(), self._current(), 0
        outcome: Literal["published", "waiting", "refused", "failed"] = "waiting"
        reason, report = None, None
        version = live.manifest.version
        try:
            join_labels(self._events, self._samples, load_spec(live.path / "spec.yaml"), delayed=self._settings.delayed)
            new = count_new(self._samples, live.manifest.lineage.samples_part)
            if new >= self._refused.get(version, 0) + self._min_samples:
                report = self._update(live)
                outcome, new = "published", 0
        except GuardError as error:
            self._refused = {version: new}
            outcome, reason = "refused", str(error)
        except InfnetError as error:
            outcome, reason = "failed", str(error)
        live = self._current()
        return Round(
            outcome=outcome,
            version=live.manifest.version,
            freshness_s=round(time.time() - live.manifest.trained_to_ms / 1000, 3),
            new_samples=new,
            seconds=round(time.monotonic() - began, 3),
            reason=reason,
            report=report,
        )

    def _update(self, live: Bundle) -> UpdateReport:
        with tempfile.TemporaryDirectory(prefix="infnet-update-") as work:
            out = Path(work) / "bundle"
            report = update_bundle(live.path, self._samples, out, self._settings, on_stage=self._check)
            self._check("publishing")
            self.directory.publish(out)
        return report

    def _check(self, _: str) -> None:
        if self.stop.is_set():
            raise _StoppedError

    def _current(self) -> Bundle:
        path = self.directory.current()
        if path is None:
            raise ArtifactError(f"{self.directory.path}: holds no published model any more; publish a bundle again")
        return Bundle.open(path)


class _StoppedError(Exception):
    """The loop was told to end."""
