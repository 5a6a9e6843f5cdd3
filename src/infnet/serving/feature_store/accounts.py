"""What every store promises of money: ads that were sold, and what campaigns have spent of it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from infnet.serving.events import Sale

__all__ = ["KEPT_MS", "SOLD_MS", "Accounts", "Charge", "Sales", "decode_sales", "encode_sales", "exposure_id"]

KEPT_MS = 2 * 86_400_000
"""How long the accounts of a day are kept at least: beside charges of later days, or on a server after its last charge.
A day that is charged has accounts, however long ago it was, so that old traffic can be replayed."""
SOLD_MS = 3_600_000
"""How long it is known what was sold: impressions of that long ago are not paid for."""

Sales = Mapping[str, Sale]
"""Of one request, by item."""

_decoder = msgspec.json.Decoder(dict[str, Sale])


class Charge(NamedTuple):
    """What a campaign pays for one impression. The same one charged twice is charged once."""

    exposure: bytes
    """Of :func:`exposure_id`."""
    campaign: str
    day_ms: int
    """When the day began that pays, in ms since 1970."""
    amount: float
    """Finite, not negative."""


class Accounts(ABC):
    """Sales and spending, shared by all who share the store; safe to use from several threads.

    Raises:
        StoreError: From every method, when the store cannot be reached or does not answer in time.
    """

    @abstractmethod
    def put_sales(self, sales: Mapping[str, Sales]) -> None:
        """Remember for an hour what was sold, by request."""

    @abstractmethod
    def sales_of(self, request_ids: Sequence[str]) -> list[Sales]:
        """What requests sold; nothing of those not remembered (any more)."""

    @abstractmethod
    def charge(self, charges: Sequence[Charge]) -> list[bool]:
        """Add to what campaigns have spent; for each charge whether it is new.

        A charge and the note that it was made are one: after a failure, or a death, charge again.
        """

    @abstractmethod
    def spent(self, days_ms: Sequence[int]) -> list[dict[str, float]]:
        """By day what each campaign has spent; a campaign that is missing has spent nothing."""


def exposure_id(request_id: str, item: str) -> bytes:
    """Names the one impression that an item of a request may have."""
    text = f"{len(request_id)}:{request_id}{item}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def encode_sales(sales: Sales) -> bytes:
    """What a request sold, as stores keep it."""
    return msgspec.json.encode(sales)


def decode_sales(kept: bytes | str | None) -> dict[str, Sale]:
    """What :func:`encode_sales` made; nothing of nothing."""
    return {} if kept is None else _decoder.decode(kept)
