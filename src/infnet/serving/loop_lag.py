"""How far the event loop is behind: what has arrived meanwhile waits without anybody knowing of it."""

from __future__ import annotations

import asyncio
import time

__all__ = ["LoopLag"]

_EVERY_S = 0.005
_DECAY = 0.5
"""Of the lag, from one look to the next: what had arrived meanwhile is soon seen to."""


class LoopLag:
    """Measures by sleeping a moment and seeing how much longer it took.

    Attributes:
        seconds: The longest lag lately; one that is over halves every 5 ms.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_EVERY_S)
            late = time.perf_counter() - began - _EVERY_S
            self.seconds = max(late, _DECAY * self.seconds)
