"""The feature store of several processes: a Redis server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from infnet.errors import SpecError, StoreError
from infnet.serving.feature_store.base import FeatureStore, Fetched, History, HistoryEvent, Lookup, UserRecord
from infnet.serving.feature_store.records import (
    LATEST_MS,
    as_bytes,
    as_text,
    check_events,
    decode_values,
    encode_values,
)
from infnet.serving.feature_store.redis_accounts import RedisAccounts

__all__ = ["RedisStore"]

_REQUEST_MS = 3_600_000
"""How long it is known whose request one was."""
_CHUNK = 1000
"""Commands, or events, that are sent at once: what a server does well within the shortest timeout."""
_HEAD = Struct(">qq")
"""Before the item of a history's member: time, then order, so that Redis sorts members of one time by their order."""


class RedisStore(FeatureStore):
    """Keeps everything on one Redis server, or on a primary with replicas, for any number of processes.

    Nothing waits for a server that does not answer: a call fails after ``timeout_s`` without a byte from it, and the
    next one tries again. Redis should neither evict (``maxmemory-policy noeviction``) nor be without persistence,
    unless histories may be lost.

    Args:
        url: ``redis://[[user]:password@]host[:port][/database]``, ``rediss://`` for TLS, ``unix://[:password@]path``.
        bounds: Events kept (:class:`FeatureStore`).
        ttl_s: What has not been written for so long is forgotten.
        timeout_s: To connect, and for each answer.
        namespace: What all keys begin with.

    Raises:
        SpecError: The URL cannot be read.
    """

    def __init__(
        self,
        url: str,
        bounds: Mapping[str, int],
        *,
        ttl_s: float = 90 * 86_400.0,
        timeout_s: float = 0.05,
        namespace: str = "infnet",
    ) -> None:
        super().__init__(bounds)
        self._ttl_ms = max(1, round(1000 * ttl_s))
        self._namespace = as_bytes(namespace)
        self._redis = _client(url, timeout_s)
        self._shown = _address(self._redis.connection_pool.connection_kwargs)
        self.accounts = RedisAccounts(self._pipeline, self._namespace)

    def fetch(self, lookups: Sequence[Lookup]) -> list[Fetched]:
        """The answers to several lookups, in one round trip."""
        wanted = [*dict.fromkeys(item for lookup in lookups for item in lookup.items)]
        with self._pipeline(transaction=False) as pipeline:
            if wanted:
                pipeline.mget([self._key(b"item", item) for item in wanted])
            for lookup in lookups:
                pipeline.get(self._user_key(b"user", lookup.user))
                for behaviour, before in lookup.before.items():
                    limit = lookup.limits.get(behaviour, self.bound(behaviour))
                    key = self._user_key(b"history:" + as_bytes(behaviour), lookup.user)
                    latest = max(-LATEST_MS, min(before, LATEST_MS))
                    earliest = max(-LATEST_MS, lookup.since.get(behaviour, -LATEST_MS))
                    pipeline.zrevrangebyscore(key, f"({latest}", earliest, start=0, num=limit)
                if lookup.request_id is not None:
                    pipeline.set(self._key(b"request", lookup.request_id), as_bytes(lookup.user), px=_REQUEST_MS)
            answers = iter(pipeline.execute())
        values = next(answers) if wanted else ()
        items = {item: None if v is None else decode_values(v) for item, v in zip(wanted, values, strict=True)}
        fetched = []
        for lookup in lookups:
            features = next(answers)
            histories = {behaviour: _history(next(answers)) for behaviour in lookup.before}
            if lookup.request_id is not None:
                next(answers)
            record = UserRecord(None if features is None else decode_values(features), histories)
            fetched.append(Fetched(record, [items[item] for item in lookup.items]))
        return fetched

    def append(self, events: Sequence[HistoryEvent]) -> None:
        """Add events to histories, a thousand in one transaction."""
        check_events(events)
        for first in range(0, len(events), _CHUNK):
            histories: defaultdict[tuple[str, str], dict[bytes, int]] = defaultdict(dict)
            for user, behaviour, item, time_ms, order in events[first : first + _CHUNK]:
                histories[user, behaviour][_HEAD.pack(time_ms, order) + as_bytes(item)] = time_ms
            with self._pipeline(transaction=True) as pipeline:
                for (user, behaviour), members in histories.items():
                    key = self._user_key(b"history:" + as_bytes(behaviour), user)
                    pipeline.zadd(key, members)
                    pipeline.zremrangebyrank(key, 0, -self.bound(behaviour) - 1)
                    pipeline.pexpire(key, self._ttl_ms)
                pipeline.execute()

    def put_users(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Set raw features of users."""
        self._put([(self._user_key(b"user", key), features) for key, features in encode_values(values)])

    def put_items(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Set raw dynamic features of items."""
        self._put([(self._key(b"item", key), features) for key, features in encode_values(values)])

    def users_of(self, request_ids: Sequence[str]) -> list[str | None]:
        """Whose requests these were, within the last hour."""
        if not request_ids:
            return []
        with self._answering():
            found: Any = self._redis.mget([self._key(b"request", request_id) for request_id in request_ids])
        return [None if user is None else as_text(user) for user in found]

    def mark(self, name: str, value: str, *, anew: bool = True) -> bool:
        """Remember a note for good."""
        with self._answering():
            return bool(self._redis.set(self._key(b"mark", name), as_bytes(value), xx=not anew))

    def marked(self, name: str) -> str | None:
        """The note of a name."""
        with self._answering():
            value: Any = self._redis.get(self._key(b"mark", name))
        return None if value is None else as_text(value)

    def ping(self) -> None:
        """See that the server answers."""
        with self._answering():
            self._redis.ping()

    def close(self) -> None:
        """Let go of the connections."""
        self._redis.close()

    def _put(self, values: Sequence[tuple[bytes, bytes]]) -> None:
        for first in range(0, len(values), _CHUNK):
            with self._pipeline(transaction=False) as pipeline:
                for key, features in values[first : first + _CHUNK]:
                    pipeline.set(key, features, px=self._ttl_ms)
                pipeline.execute()

    def _key(self, kind: bytes, key: str) -> bytes:
        return b"%b:%b:%b" % (self._namespace, kind, as_bytes(key))

    def _user_key(self, kind: bytes, user: str) -> bytes:
        """All keys of a user are in one hash slot, should the data move to a cluster."""
        return b"%b:%b:{u%b}" % (self._namespace, kind, as_bytes(user))

    @contextmanager
    def _pipeline(self, *, transaction: bool) -> Iterator[Pipeline]:
        with self._answering(), self._redis.pipeline(transaction=transaction) as pipeline:
            yield pipeline

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RedisTimeoutError as error:
            raise StoreError(
                f"Redis at {self._shown} does not answer in time; see that it runs and has room"
            ) from error
        except RedisConnectionError as error:
            raise StoreError(f"Redis at {self._shown} cannot be reached ({_line(error)}); see that it runs") from error
        except RedisError as error:
            raise StoreError(f"Redis at {self._shown} refuses a command ({_line(error)}); see its log") from error


def _client(url: str, timeout_s: float) -> Redis:
    try:
        pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # Once more over a new connection, at once, if the server has closed the old one; never after a timeout.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        pool.connection_class(**pool.connection_kwargs)  # reads the settings, connects to nothing
    except (TypeError, ValueError):
        raise SpecError(  # their messages quote the URL, password and all
            "the URL of the feature store cannot be read; wanted redis://[[user]:password@]host[:port][/database], "
            "with %-escapes for what is special in a password"
        ) from None
    return Redis.from_pool(pool)


def _address(settings: Mapping[str, Any]) -> str:
    """Where the server is, without the password."""
    place = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
    return f"{place}/{settings.get('db') or 0}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _history(members: Sequence[bytes]) -> History:
    return History(
        [as_text(member[_HEAD.size :]) for member in members], [_HEAD.unpack_from(member)[0] for member in members]
    )
