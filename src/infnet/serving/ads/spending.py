"""What campaigns have spent, as the feature store had it a moment ago."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from infnet.errors import InfnetError, StoreError
from infnet.serving.feature_store.accounts import Accounts

__all__ = ["Spending"]

_log = structlog.get_logger(__name__)
_EVERY_S = 1.0
_STALE_S = 10.0
"""What is older is not known any more."""


class Spending:
    """Read from the store every second, and from nowhere else; no request waits for it.

    Args:
        accounts: Of the store.
        days: Gives which days are read, by when they begin in ms since 1970; while there are none nothing is read.
    """

    def __init__(self, accounts: Accounts, days: Callable[[], set[int]]) -> None:
        self._accounts, self._days = accounts, days
        self._known: dict[int, Mapping[str, float]] = {}
        self._read_at = 0.0
        self._fails = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ad-spending", daemon=True)

    def of(self, day_ms: int) -> Mapping[str, float] | None:
        """What campaigns have spent of a day; None if it is not known, or has not been for ten seconds."""
        if time.monotonic() - self._read_at > _STALE_S:
            return None
        return self._known.get(day_ms)

    def start(self) -> None:
        """Read for the first time, and go on doing so."""
        self.refresh()
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> None:
        """Read once; what was known stays if the store fails."""
        days = sorted(self._days())
        if not days:
            return
        asked_at = time.monotonic()
        try:
            found = self._accounts.spent(days)
        except StoreError as error:
            if not self._fails:
                _log.warning("ad_spending_unknown", reason=str(error))
            self._fails = True
            return
        self._known, self._read_at, self._fails = dict(zip(days, found, strict=True)), asked_at, False

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                self.refresh()
            except InfnetError:
                _log.exception("ad_spending_failed")
