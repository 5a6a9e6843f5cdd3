"""The policy of a service: a file that may change while it serves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from infnet.errors import InfnetError, SpecError
from infnet.ranking.policy import Policy
from infnet.serving.live import LiveModel, ModelHolder

__all__ = ["PolicyFile"]

_log = structlog.get_logger(__name__)


class PolicyFile:
    """A policy that is read again when its file changes.

    What cannot be read, or names what the model does not predict, is refused, and the old policy goes on. A new model
    that does not predict what the policy reads is refused likewise.

    Args:
        path: The YAML file.
        holder: Of the model whose predictions it reads.
        every_s: Between looks.

    Attributes:
        live: The policy to rank by; take it once per request.
        refused: Why the file as it is now is not used; None if it is.
        on_change: Called with the policy when another one is taken, and with None when one is refused.

    Raises:
        SpecError: The first one cannot be used.
    """

    def __init__(self, path: Path, holder: ModelHolder, *, every_s: float = 0.5) -> None:
        self.path, self._holder, self._every_s = path, holder, every_s
        self._seen = self._stamp()
        self.live = self._load()
        self.refused: str | None = None
        self.on_change: Callable[[Policy | None], None] = lambda policy: None
        holder.checks.append(self._check)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="policy-watcher", daemon=True)

    def watch(self) -> None:
        """Begin to look for changes."""
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        """End watching."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _load(self) -> Policy:
        return Policy.load(self.path, self._holder.live.ranker.bundle.layout.tasks)

    def _check(self, model: LiveModel) -> None:
        try:
            Policy(self.live.spec, model.ranker.bundle.layout.tasks)
        except SpecError as error:
            raise SpecError(f"does not go with the policy {self.path}: {error}") from error

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                self._read()

    def _read(self) -> None:
        try:
            policy = self._load()
        except InfnetError as error:
            self.refused = str(error)
            _log.error("policy_refused", reason=self.refused, serving=self.live.version)
            self.on_change(None)
            return
        self.refused = None
        if policy.version != self.live.version:
            _log.info("policy_changed", version=policy.version, before=self.live.version)
            self.live = policy
            self.on_change(policy)

    def _stamp(self) -> tuple[int, int, int] | None:
        """Changes with the file's contents; None if it is not there."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
