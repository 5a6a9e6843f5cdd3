"""How a store's records are spelt in bytes, the same in every store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from infnet.errors import DataError
from infnet.serving.feature_store.base import HistoryEvent

__all__ = ["LATEST_MS", "as_bytes", "as_text", "check_events", "decode_values", "encode_values"]

LATEST_MS = 2**53
"""Times lie within this of 1970: as far as Redis counts exactly."""
_MOST_ORDER = 2**63 - 1
_decoder = msgspec.json.Decoder(dict[str, Any])


def as_bytes(key: str) -> bytes:
    """A key in UTF-8; halves of a surrogate pair, which JSON lets through, are kept."""
    return key.encode(errors="surrogatepass")


def as_text(key: bytes) -> str:
    """The key of :func:`as_bytes`."""
    return key.decode(errors="surrogatepass")


def encode_values(of: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """Key and JSON of the raw features of users or items.

    Raises:
        DataError: A value has no JSON.
    """
    for key, values in of.items():
        try:
            yield key, msgspec.json.encode(values)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise DataError(f"features of '{key}' cannot be kept ({error}); wanted text, numbers, lists") from error


def decode_values(values: bytes) -> dict[str, Any]:
    """The raw features of one user or item."""
    return _decoder.decode(values)


def check_events(events: Sequence[HistoryEvent]) -> None:
    """See that the events can be kept.

    Raises:
        DataError: A time or an order is out of range.
    """
    for event in events:
        if not -LATEST_MS <= event.time_ms <= LATEST_MS:
            raise DataError(f"event of item '{event.item}' is at {event.time_ms}, wanted ms since 1970")
        if not 0 <= event.order <= _MOST_ORDER:
            raise DataError(f"event of item '{event.item}' has order {event.order}, wanted 0 to 2**63 - 1")
