"""What is known of users and items right now: an embedded store for one process, Redis for several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infnet.serving.feature_store.base import FeatureStore

__all__ = ["open_store"]


def open_store(
    place: str | Path, bounds: Mapping[str, int], *, ttl_s: float = 90 * 86_400.0, timeout_s: float = 0.05
) -> FeatureStore:
    """The store at a place.

    Args:
        place: URL of a Redis (``redis://``, ``rediss://``, ``unix://``), or path of an embedded store's directory.
        bounds: Events kept (:class:`FeatureStore`).
        ttl_s: What has not been written for so long is forgotten.
        timeout_s: Of Redis, for each answer.

    Raises:
        SpecError: The URL cannot be read.
        StoreError: The directory cannot be used.
    """
    if isinstance(place, str):
        from infnet.serving.feature_store.redis import RedisStore

        return RedisStore(place, bounds, ttl_s=ttl_s, timeout_s=timeout_s)
    from infnet.serving.feature_store.embedded import EmbeddedStore

    return EmbeddedStore(place, bounds, ttl_s=ttl_s)
