"""Accounts on a Redis server: a hash of what campaigns have spent and a set of what was charged, per day."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from redis.client import Pipeline

from infnet.serving.feature_store.accounts import (
    KEPT_MS,
    SOLD_MS,
    Accounts,
    Charge,
    Sales,
    decode_sales,
    encode_sales,
)
from infnet.serving.feature_store.records import as_bytes, as_text

__all__ = ["RedisAccounts"]

_CHUNK = 1000
_CHARGE = """
if redis.call('SADD', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HINCRBYFLOAT', KEYS[2], ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
"""


class RedisAccounts(Accounts):
    """Shared by every process that uses the server; a charge is one script, which happens as a whole.

    Args:
        pipeline: Opens one; its failures are explained there.
        namespace: What all keys begin with.
    """

    def __init__(self, pipeline: Callable[..., AbstractContextManager[Pipeline]], namespace: bytes) -> None:
        self._pipeline, self._namespace = pipeline, namespace

    def put_sales(self, sales: Mapping[str, Sales]) -> None:
        """Remember for an hour what was sold, by request."""
        given = [*sales.items()]
        for first in range(0, len(given), _CHUNK):
            with self._pipeline(transaction=False) as pipeline:
                for request_id, each in given[first : first + _CHUNK]:
                    pipeline.set(self._sales_key(request_id), encode_sales(each), px=SOLD_MS)
                pipeline.execute()

    def sales_of(self, request_ids: Sequence[str]) -> list[Sales]:
        """What requests sold."""
        found: list[bytes | None] = []
        for first in range(0, len(request_ids), _CHUNK):
            with self._pipeline(transaction=False) as pipeline:
                pipeline.mget([self._sales_key(each) for each in request_ids[first : first + _CHUNK]])
                found += pipeline.execute()[0]
        return [decode_sales(each) for each in found]

    def charge(self, charges: Sequence[Charge]) -> list[bool]:
        """Add to what campaigns have spent."""
        is_new: list[bool] = []
        for first in range(0, len(charges), _CHUNK):
            with self._pipeline(transaction=False) as pipeline:
                for each in charges[first : first + _CHUNK]:
                    keys = (self._day_key(b"charged", each.day_ms), self._day_key(b"spent", each.day_ms))
                    given: Any = (each.exposure, as_bytes(each.campaign), repr(each.amount), KEPT_MS)
                    pipeline.eval(_CHARGE, len(keys), *keys, *given)
                is_new += map(bool, pipeline.execute())
        return is_new

    def spent(self, days_ms: Sequence[int]) -> list[dict[str, float]]:
        """By day what each campaign has spent."""
        with self._pipeline(transaction=False) as pipeline:
            for day_ms in days_ms:
                pipeline.hgetall(self._day_key(b"spent", day_ms))
            found = pipeline.execute()
        return [{as_text(campaign): float(amount) for campaign, amount in each.items()} for each in found]

    def _sales_key(self, request_id: str) -> bytes:
        return b"%b:sales:%b" % (self._namespace, as_bytes(request_id))

    def _day_key(self, kind: bytes, day_ms: int) -> bytes:
        """Both keys of a day are in one hash slot, should the data move to a cluster."""
        return b"%b:%b:{d%d}" % (self._namespace, kind, day_ms)
