"""Make the next items of an iterator ahead, in one background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["Prefetcher"]

_T = TypeVar("_T")


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetcher(Generic[_T]):
    """The same items in the same order, up to ``size`` of them made ahead.

    What the iterator raises is raised here, at its place. Leave it as a context manager: the thread then ends.
    With size 0 there is no thread and nothing is made ahead.
    """

    def __init__(self, items: Iterator[_T], size: int) -> None:
        self._items = items
        self._queue: queue.Queue[_T | _End] = queue.Queue(maxsize=max(1, size))
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_direct = size == 0
        if not self._is_direct:
            self._thread = threading.Thread(target=self._produce, name="infnet-prefetch", daemon=True)
            self._thread.start()

    def __enter__(self) -> Prefetcher[_T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        if self._is_direct:
            return next(self._items)
        if self._stopped.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, _End):
            self.close()
            if item.error is not None:
                raise item.error
            raise StopIteration
        return item

    def close(self) -> None:
        """End the thread and forget what is ready."""
        self._stopped.set()
        with suppress(queue.Empty):
            while True:  # room for the thread's put in waiting
                self._queue.get_nowait()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _produce(self) -> None:
        end = _End(None)
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as error:
            end = _End(error)
        self._put(end)

    def _put(self, item: _T | _End) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False
