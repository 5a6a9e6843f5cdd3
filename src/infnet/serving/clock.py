"""What time it is for a service: by the machine's clock, or by what it is told."""

from __future__ import annotations

import threading
import time

from infnet.errors import DataError

__all__ = ["Clock"]


class Clock:
    """Now, in ms since 1970; safe to use from several threads.

    Args:
        replays: Requests and events say themselves when they were, as in a replay of old traffic or in a simulation:
            now is the latest time that any of them said, and the machine's time before the first.
    """

    def __init__(self, *, replays: bool = False) -> None:
        self._replays, self._latest_ms = replays, 0
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        """Now."""
        return self._latest_ms or time.time_ns() // 1_000_000

    def told(self, time_ms: int | None) -> int:
        """Now, after something has said when it was."""
        if self._replays and time_ms is not None:
            with self._lock:
                self._latest_ms = max(self._latest_ms, time_ms)
        return self.now_ms()

    def of_request(self, time_ms: int | None) -> int:
        """When a request was made.

        Args:
            time_ms: What it says itself.

        Raises:
            DataError: It says so, and the service goes by its own clock.
        """
        if time_ms is not None and not self._replays:
            raise DataError("the request brings a time_ms, and the service goes by its own clock; leave it out")
        now = self.told(time_ms)
        return now if time_ms is None else time_ms
