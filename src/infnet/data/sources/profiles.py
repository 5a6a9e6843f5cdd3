"""The observable columns of the synthetic world's users and items, in KuaiRand's layout and names."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.sources.latent import Ints
from infnet.data.sources.world import World

__all__ = ["user_features", "video_features_basic", "video_features_statistic"]

# Values of KuaiRand's encrypted user features. 0 and 1 tell the gender and age group here, the others nothing.
_ONEHOT_SIZES = {2: 50, 3: 1471, 4: 15, 5: 34, 6: 3, 7: 118, 8: 454, 9: 7, 10: 5, 11: 5}
_FRIENDS = ([1, 5, 30, 60, 120, 250], ["0", "[1,5)", "[5,30)", "[30,60)", "[60,120)", "[120,250)", "250+"])
_FANS = ([1, 10, 100, 1000, 5000, 10_000], ["0", "[1,10)", "[10,100)", "[100,1k)", "[1k,5k)", "[5k,1w)", "[1w,10w)"])
_FOLLOWS = (
    [1, 11, 51, 101, 151, 251, 501],
    ["0", "(0,10]", "(10,50]", "(50,100]", "(100,150]", "(150,250]", "(250,500]", "500+"],
)
_DAYS = ([31, 61, 91, 181, 366, 731], ["15-30", "31-60", "61-90", "91-180", "181-365", "366-730", "730+"])


def _ranges(values: Ints, scale: tuple[list[int], list[str]]) -> pl.Series:
    edges, names = scale
    return pl.Series(names).gather(np.searchsorted(edges, values, side="right"))


def user_features(world: World) -> pl.DataFrame:
    """One row per user, all known before the log begins."""
    users, n = world.users, world.config.num_users
    rng = np.random.default_rng([world.config.seed, 10])

    def count(log_mean: float, spread: float, lift: NDArray[np.floating]) -> NDArray[np.int64]:
        return np.floor(np.exp(log_mean + spread * rng.standard_normal(n) + lift)).astype(np.int64)

    busy = np.log(users.activity)
    follows = count(4.0, 1.2, 0.4 * busy)
    fans = count(2.0, 1.6, 0.2 * busy)
    friends = count(1.5, 1.3, 0.2 * busy)
    registered = 15 + count(6.0, 0.9, np.zeros(n))
    degree = np.searchsorted([-1.2, -0.2], busy + 0.3 * rng.standard_normal(n))
    low = users.return_bias + 0.5 * rng.standard_normal(n) < -1.5
    columns: dict[str, pl.Series | NDArray[np.generic]] = {
        "user_id": np.arange(n),
        "user_active_degree": pl.Series(["middle_active", "high_active", "full_active"]).gather(degree),
        "is_lowactive_period": low.astype(np.int8),
        "is_live_streamer": (rng.random(n) < 0.03).astype(np.int8),
        "is_video_author": (rng.random(n) < 0.4).astype(np.int8),
        "follow_user_num": follows,
        "follow_user_num_range": _ranges(follows, _FOLLOWS),
        "fans_user_num": fans,
        "fans_user_num_range": _ranges(fans, _FANS),
        "friend_user_num": friends,
        "friend_user_num_range": _ranges(friends, _FRIENDS),
        "register_days": registered,
        "register_days_range": _ranges(registered, _DAYS),
        "onehot_feat0": users.gender,
        "onehot_feat1": users.age_group,
    }
    for index, size in _ONEHOT_SIZES.items():
        columns[f"onehot_feat{index}"] = np.minimum(rng.exponential(size / 5, n), size - 1).astype(np.int16)
    for index in range(12, 18):
        columns[f"onehot_feat{index}"] = (rng.random(n) < 0.05).astype(np.int8)
    return pl.DataFrame(columns)


def video_features_basic(world: World) -> pl.DataFrame:
    """One row per item; ``price`` (of an ad's product, 0 for the rest) is beyond KuaiRand's columns."""
    items, n = world.items, world.config.num_items
    rng = np.random.default_rng([world.config.seed, 11])
    first = world.config.first_day
    earliest = int(items.upload_day.min())
    dates = pl.Series([(first + timedelta(d)).isoformat() for d in range(earliest, world.config.num_days + 1)])
    main, second = items.topics[:, 0], items.topics[:, 1]
    tags = pl.select(
        pl.when(pl.lit(pl.Series(main == second)))
        .then(pl.lit(pl.Series(main)).cast(pl.String))
        .otherwise(pl.lit(pl.Series(main)).cast(pl.String) + "," + pl.lit(pl.Series(second)).cast(pl.String))
    ).to_series()
    upright = rng.random(n) < 0.8
    return pl.DataFrame(
        {
            "video_id": np.arange(n),
            "author_id": items.author,
            "video_type": pl.Series(["NORMAL", "AD"]).gather(items.is_ad.astype(np.int64)),
            "upload_dt": dates.gather(items.upload_day.astype(np.int64) - earliest),
            "upload_type": pl.Series(["LongImport", "ShortImport", "Kmovie", "Web"]).gather(
                rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
            ),
            "visible_status": np.zeros(n, np.int8),
            "video_duration": items.duration_ms,
            "server_width": np.where(upright, 720, 1280).astype(np.int16),
            "server_height": np.where(upright, 1280, 720).astype(np.int16),
            "music_id": np.minimum(rng.exponential(n / 4, n), n - 1).astype(np.int32),
            "music_type": rng.choice(np.array([4, 7, 9], np.int8), n, p=[0.1, 0.2, 0.7]),
            "tag": tags,
            "price": items.price,
        }
    )


def video_features_statistic(world: World) -> pl.DataFrame:
    """One row per item: what it had gathered before the log's first day, so none looks ahead; 0 for later uploads."""
    items, n = world.items, world.config.num_items
    rng = np.random.default_rng([world.config.seed, 12])
    days = np.clip(-items.upload_day.astype(np.float64), 0, 30)
    shows = rng.poisson(20 * days * items.popularity / items.popularity.mean())
    click = 1 / (1 + np.exp(0.5 - 0.8 * items.quality.astype(np.float64)))
    plays = rng.binomial(shows, click)
    return pl.DataFrame(
        {
            "video_id": np.arange(n),
            "show_cnt": shows,
            "play_cnt": plays,
            "long_time_play_cnt": rng.binomial(plays, np.clip(click + 0.25, 0.05, 0.95)),
            "like_cnt": rng.binomial(plays, 0.1 * click),
        }
    )
