"""Who lives in the synthetic world: users with interests, items with topics, drawn from a seed.

Everything here is hidden from a recommender; the observable columns are made from it in
:mod:`infnet.data.sources.profiles`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Ints", "Items", "Users", "draw_items", "draw_users", "topic_similarity"]

Floats = NDArray[np.float32]
Ints = NDArray[np.integer]

NUM_AGES, NUM_GENDERS, NUM_CHRONOTYPES = 7, 2, 4
STYLE_WIDTH = 8
# Base strength of a user's interests: four liked topics, one disliked.
_STRENGTHS = np.array([1.8, 1.2, 0.8, 0.5, -1.2], np.float32)


@dataclass(frozen=True)
class Users:
    """Hidden properties of U users with K interests each."""

    topics: NDArray[np.int16]
    """(U, K) topic of each interest."""
    strength: Floats
    """(U, K) strength at rest; negative for a dislike."""
    period_h: Floats
    """(U, K, 2) periods, in hours, of the slow and the fast swing of an interest."""
    phase: Floats
    """(U, K, 2) phases of the swings, in turns."""
    drift: float
    """How far interests swing: 1 as the world's equations have it, 0 not at all."""
    style: Floats
    """(U, S) taste in style, matched with an item's by inner product."""
    click_bias: Floats
    patience: Floats
    """Shift of the log watch time."""
    like_bias: Floats
    spend_bias: Floats
    return_bias: Floats
    activity: Floats
    """Sessions per day relative to the average user's; heavy-tailed, mean 1."""
    chronotype: NDArray[np.int8]
    tab_taste: Floats
    """(U,) in 0..1, where in the list of tabs the user tends to be."""
    join_day: NDArray[np.int16]
    """First day of the log on which the user can appear."""
    age_group: NDArray[np.int8]
    gender: NDArray[np.int8]


@dataclass(frozen=True)
class Items:
    """Hidden properties of I items."""

    topics: NDArray[np.int16]
    """(I, 2) main and second topic; equal if there is only one."""
    author: NDArray[np.int32]
    style: Floats
    """(I, S)."""
    quality: Floats
    popularity: Floats
    """Weight in the exposure policy when new; heavy-tailed."""
    upload_day: NDArray[np.int16]
    """Relative to the first day of the log; negative before it."""
    duration_ms: NDArray[np.int32]
    is_ad: NDArray[np.bool_]
    price: Floats
    """What a purchase brings; 0 unless an ad."""


def topic_similarity(num_topics: int, rng: np.random.Generator) -> Floats:
    """(T, T) similarity of topics in 0..1: the squared positive cosine of random directions, 1 on the diagonal."""
    directions = rng.standard_normal((num_topics, 6), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    # An elementwise sum, not a matrix product: BLAS kernels differ between processors in the last bit.
    cosine = (directions[:, None, :] * directions[None, :, :]).sum(axis=-1)
    similarity = np.maximum(cosine, 0.0) ** 2
    np.fill_diagonal(similarity, 1.0)
    return similarity.astype(np.float32)


def draw_users(num_users: int, num_topics: int, num_days: int, drift: float, rng: np.random.Generator) -> Users:
    """Users whose interests follow their age and gender a little, and themselves mostly."""
    age_group = rng.choice(NUM_AGES, num_users, p=[0.06, 0.22, 0.26, 0.2, 0.14, 0.08, 0.04]).astype(np.int8)
    gender = rng.integers(0, NUM_GENDERS, num_users, dtype=np.int8)
    kinds = NUM_AGES * NUM_GENDERS
    preference = np.exp(rng.standard_normal((kinds, num_topics)))  # topics by demographic group
    cumulative = np.cumsum(preference / preference.sum(axis=1, keepdims=True), axis=1)
    group = age_group.astype(np.int64) * NUM_GENDERS + gender
    num_interests = len(_STRENGTHS)
    draws = rng.random((num_users, num_interests))
    topics = np.empty((num_users, num_interests), np.int16)
    for kind in range(kinds):
        members = np.flatnonzero(group == kind)
        topics[members] = np.minimum(np.searchsorted(cumulative[kind], draws[members]), num_topics - 1)
    # A dislike is nobody's fashion: it comes from all topics alike, and not from the liked ones.
    disliked = rng.integers(0, num_topics, num_users)
    for _ in range(num_topics):
        clash = (topics[:, :-1] == disliked[:, None]).any(axis=1)
        if num_topics <= num_interests or not clash.any():
            break
        disliked = np.where(clash, (disliked + 1) % num_topics, disliked)
    topics[:, -1] = disliked
    spread = np.exp(0.35 * rng.standard_normal((num_users, num_interests)))
    slow = rng.uniform(12 * 24, 40 * 24, (num_users, num_interests))
    fast = rng.uniform(2 * 24, 6 * 24, (num_users, num_interests))
    activity = np.exp(0.9 * rng.standard_normal(num_users) - 0.405)
    joins_late = rng.random(num_users) < 0.12
    join_day = np.where(joins_late, rng.integers(0, num_days, num_users), 0)
    normal = rng.standard_normal((5, num_users))
    return Users(
        topics=topics,
        strength=(_STRENGTHS * spread).astype(np.float32),
        period_h=np.stack([slow, fast], axis=-1).astype(np.float32),
        phase=rng.random((num_users, num_interests, 2), dtype=np.float32),
        drift=drift,
        style=rng.standard_normal((num_users, STYLE_WIDTH), dtype=np.float32),
        click_bias=(0.6 * normal[0] + 0.05 * (age_group - 2)).astype(np.float32),
        patience=(0.35 * normal[1] + 0.06 * (age_group - 2)).astype(np.float32),
        like_bias=(0.7 * normal[2] + 0.2 * gender).astype(np.float32),
        spend_bias=(0.7 * normal[3] + 0.15 * (age_group - 2)).astype(np.float32),
        return_bias=(0.7 * normal[4] + 0.35 * np.log(activity)).astype(np.float32),
        activity=activity.astype(np.float32),
        chronotype=rng.integers(0, NUM_CHRONOTYPES, num_users, dtype=np.int8),
        tab_taste=rng.random(num_users, dtype=np.float32),
        join_day=join_day.astype(np.int16),
        age_group=age_group,
        gender=gender,
    )


def draw_items(num_items: int, num_topics: int, num_days: int, rng: np.random.Generator) -> Items:
    """Items made by authors who mostly keep to one topic and one style."""
    num_authors = max(1, num_items // 4)
    output = np.exp(rng.standard_normal(num_authors))  # a few authors upload much
    author = rng.choice(num_authors, num_items, p=output / output.sum()).astype(np.int32)
    demand = 1.0 / np.arange(1, num_topics + 1) ** 0.6
    home = rng.choice(num_topics, num_authors, p=demand / demand.sum())
    anywhere = rng.choice(num_topics, (2, num_items), p=demand / demand.sum())
    at_home = rng.random(num_items) < 0.85
    main = np.where(at_home, home[author], anywhere[0])
    second = np.where(rng.random(num_items) < 0.4, anywhere[1], main)
    author_style = rng.standard_normal((num_authors, STYLE_WIDTH), dtype=np.float32)
    own_style = rng.standard_normal((num_items, STYLE_WIDTH), dtype=np.float32)
    fame = rng.standard_normal(num_authors)[author]
    quality = 0.45 * fame + 0.45 * rng.standard_normal(num_items)
    popularity = np.exp(0.9 * rng.standard_normal(num_items) + quality)
    age_days = rng.exponential(25.0, num_items)
    is_new = rng.random(num_items) < 0.35
    # At least one item is there on the first day.
    is_new[0] = False
    upload_day = np.where(is_new, rng.integers(0, num_days, num_items), -1 - np.floor(age_days))
    length_of_topic = 0.3 * rng.standard_normal(num_topics)
    seconds = np.exp(3.0 + length_of_topic[main] + 0.75 * rng.standard_normal(num_items))
    is_ad = rng.random(num_items) < 0.12
    price = np.round(np.exp(3.0 + 0.8 * rng.standard_normal(num_items)), 2)
    return Items(
        topics=np.stack([main, second], axis=1).astype(np.int16),
        author=author,
        style=(0.8 * author_style[author] + 0.6 * own_style).astype(np.float32),
        quality=quality.astype(np.float32),
        popularity=popularity.astype(np.float32),
        upload_day=upload_day.astype(np.int16),
        duration_ms=np.clip(seconds * 1000.0, 3000.0, 300_000.0).astype(np.int32),
        is_ad=is_ad,
        price=np.where(is_ad, price, 0.0).astype(np.float32),
    )
