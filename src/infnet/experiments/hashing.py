"""Who falls where: GrowthBook's published hash, buckets and namespaces.

Growth Book, Inc., "Build Your Own SDK", specification 0.7: https://docs.growthbook.io/lib/build-your-own. Whoever
follows it, in whatever language, puts a user into the same bucket as we do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = [
    "HashVersion",
    "Range",
    "bucket_ranges",
    "choose_variation",
    "equal_weights",
    "fnv1a_32",
    "in_namespace",
    "unit_hash",
]

HashVersion = Literal[1, 2]
"""2 has 10,000 buckets and no correlation between seeds; 1 has 1,000 buckets and is there for older assignments."""

Range = tuple[float, float]
"""Of buckets, from a share up to below another."""

_OFFSET, _PRIME, _MASK = 0x811C9DC5, 0x01000193, 0xFFFFFFFF


def fnv1a_32(text: str, state: int = _OFFSET) -> int:
    """FNV-1a of 32 bits over code points; ``state`` is the hash of what stands before the text.

    Fowler, Noll, Vo, "The FNV Non-Cryptographic Hash Algorithm".
    """
    for character in text:
        state = ((state ^ ord(character)) * _PRIME) & _MASK
    return state


def unit_hash(seed: str, value: str, version: HashVersion = 2) -> float:
    """Bucket of a value, at least 0 and below 1."""
    if version == 2:
        return fnv1a_32(str(fnv1a_32(seed + value))) % 10_000 / 10_000
    return fnv1a_32(value + seed) % 1000 / 1000


def equal_weights(num_variations: int) -> list[float]:
    """The same share for every variation; empty for none."""
    return [1 / num_variations] * num_variations if num_variations > 0 else []


def bucket_ranges(num_variations: int, coverage: float = 1.0, weights: Sequence[float] | None = None) -> list[Range]:
    """The buckets of each variation.

    A variation's range begins where it would with full coverage, so that more coverage takes nobody out of his
    variation.

    Args:
        num_variations: How many there are.
        coverage: Share of everybody that is in any; cut to 0 to 1.
        weights: Of each variation; equal if there are not as many or they do not sum to 1.
    """
    coverage = min(max(coverage, 0.0), 1.0)
    if weights is None or len(weights) != num_variations or not 0.99 <= sum(weights) <= 1.01:
        weights = equal_weights(num_variations)
    ranges, start = list[Range](), 0.0
    for weight in weights:
        ranges.append((start, start + coverage * weight))
        start += weight
    return ranges


def choose_variation(bucket: float, ranges: Sequence[Range]) -> int:
    """Index of the range that a bucket is in, -1 for none."""
    for index, (start, end) in enumerate(ranges):
        if start <= bucket < end:
            return index
    return -1


def in_namespace(user_id: str, namespace: str, within: Range) -> bool:
    """Whether a user's bucket in a namespace is within a range; ranges that are disjoint exclude each other."""
    start, end = within
    return start <= unit_hash(f"__{namespace}", user_id, 1) < end
