"""Write a synthetic world as raw data in KuaiRand's layout, with the truth beside it.

A directory holds, as Parquet:

- ``data/log_DATE_PART.parquet``: KuaiRand's log columns and ``position`` (from 1), ``revenue``, ``return_next_day``;
  by user, then time; no two rows of a user share a ``time_ms``
- ``data/user_features.parquet``, ``data/video_features_basic.parquet``, ``data/video_features_statistic.parquet``
- ``truth/truth_DATE_PART.parquet``: the same rows in the same order: ``user_id, video_id, time_ms``, the true
  probabilities and expectations of :mod:`infnet.data.sources.world`, and ``p_return``
- ``world.json``: the configuration, from which :func:`load_world` makes the same world, and the report

Days follow one another: who was shown what they like comes back sooner, and ``return_next_day`` of a row says whether
the user has rows on the next day. PART counts blocks of 65,536 users, so memory does not grow with the world.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from infnet.data.sources.exposure import TABS, Policy, row_times
from infnet.data.sources.latent import Floats, Ints
from infnet.data.sources.presence import first_day, next_day
from infnet.data.sources.profiles import user_features, video_features_basic, video_features_statistic
from infnet.data.sources.truth import LABELS, Ceiling
from infnet.data.sources.world import World, WorldConfig
from infnet.errors import DataError

__all__ = ["WorldReport", "generate", "load_world", "write_world"]

_BLOCK = 65_536
_VERSION = 1


class WorldReport(BaseModel):
    """What was written."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rows: int
    users: int
    """Who appear in the log."""
    items: int
    """That appear in the log."""
    days: int
    click_rate: float
    like_rate: float
    long_view_rate: float
    return_rate: float
    random_share: float
    mean_watch_time: float
    """Seconds per impression."""
    revenue: float
    """In all."""
    best_auc: dict[str, float]
    """By task, see :func:`infnet.data.sources.truth.best_auc`; over all rows."""


def generate(world: World) -> Iterator[tuple[str, pl.DataFrame, pl.DataFrame]]:
    """(DATE_PART, log, truth) one after the other, day by day and block by block."""
    config = world.config
    num_blocks = -(-config.num_users // _BLOCK)
    here = [_first_day(world, block) for block in range(num_blocks)]
    for day in range(config.num_days):
        policy = Policy(world.users, world.items, day)
        stamp = (config.first_day + timedelta(day)).strftime("%Y%m%d")
        for block in range(num_blocks):
            rng = np.random.default_rng([config.seed, 20, day, block])
            users = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, config.num_users))
            join_day = world.users.join_day[users]
            here[block] = (here[block] & (join_day <= day)) | ((join_day == day) & (day > 0))
            if not here[block].any():
                here[block] = next_day(world, users, here[block], np.zeros(0, np.float32), rng)[0]
                continue
            log, truth, joy = _one_day(world, policy, users[here[block]], day, rng)
            was_here = here[block]
            here[block], p_return = next_day(world, users, was_here, joy, rng)
            local = log["user_id"].to_numpy() - users[0]
            log = log.with_columns(return_next_day=pl.Series(here[block][local].astype(np.int8)))
            truth = truth.with_columns(p_return=pl.Series(p_return[local]))
            yield f"{stamp}_{block:03d}", log, truth


def _first_day(world: World, block: int) -> NDArray[np.bool_]:
    users = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, world.config.num_users))
    return first_day(world, users, np.random.default_rng([world.config.seed, 21, block]))


def _one_day(
    world: World, policy: Policy, here: Ints, day: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame, Floats]:
    """Log and truth of the users ``here`` on a day, and the joy of each."""
    config = world.config
    shown = policy.show(here, config.sessions_per_day, config.session_length, config.random_share, rng)
    visits, row = shown.visits, shown.row
    reaction = world.react(visits, row, shown.item, shown.position)
    feedback = reaction.sample(rng)
    probabilities = reaction.probabilities()
    play_ms = feedback["play_time_ms"].astype(np.int64)
    keys = {
        "user_id": visits.user[row],
        "video_id": shown.item,
        "time_ms": world.first_ms() + row_times(shown, play_ms, rng),
    }
    stamp = int((config.first_day + timedelta(day)).strftime("%Y%m%d"))
    revenue = feedback.pop("revenue")
    log = pl.DataFrame(
        {
            "user_id": keys["user_id"],
            "video_id": keys["video_id"],
            "date": np.full(len(row), stamp, np.int32),
            "hourmin": (visits.hour[row] % 24 * 100).astype(np.int16),
            "time_ms": keys["time_ms"],
            **feedback,
            "is_rand": shown.is_random.astype(np.int8),
            "tab": TABS[visits.tab[row]],
            "position": shown.position.astype(np.int16),
            "revenue": revenue,
        }
    )
    local = np.searchsorted(here, keys["user_id"])
    joy = np.bincount(local, probabilities["p_long_view"], len(here)) / np.bincount(local, minlength=len(here))
    return log, pl.DataFrame(keys | probabilities), joy.astype(np.float32)


def write_world(world: World, out: Path, progress: Callable[[int, int], None] | None = None) -> WorldReport:
    """Write the raw files of a world to a new directory, which appears when it is complete.

    Args:
        out: Must not exist, or be empty.
        progress: Called after each day's block with the days finished and all days.

    Raises:
        DataError: ``out`` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty directory; give another --out or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "data").mkdir(parents=True)
        (partial / "truth").mkdir()
        report = _write(world, partial, progress)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _write(world: World, partial: Path, progress: Callable[[int, int], None] | None) -> WorldReport:
    for name, make in (
        ("user_features", user_features),
        ("video_features_basic", video_features_basic),
        ("video_features_statistic", video_features_statistic),
    ):
        make(world).write_parquet(partial / "data" / f"{name}.parquet")
    sums: dict[str, float] = {}
    seen_users = np.zeros(world.config.num_users, bool)
    seen_items = np.zeros(world.config.num_items, bool)
    ceiling = Ceiling()
    rows, stamps = 0, set()
    for name, log, truth in generate(world):
        log.write_parquet(partial / "data" / f"log_{name}.parquet")
        truth.write_parquet(partial / "truth" / f"truth_{name}.parquet")
        ceiling.add(log, truth)
        rows += log.height
        seen_users[log["user_id"].to_numpy()] = True
        seen_items[log["video_id"].to_numpy()] = True
        for column in (*LABELS.values(), "is_rand", "play_time_ms", "revenue"):
            sums[column] = sums.get(column, 0.0) + float(log[column].cast(pl.Float64).sum())
        stamps.add(name[:8])
        if progress is not None:
            progress(len(stamps), world.config.num_days)
    if not rows:
        raise DataError("nobody came on any day of this world; raise num_users or num_days")
    report = WorldReport(
        rows=rows,
        users=int(seen_users.sum()),
        items=int(seen_items.sum()),
        days=len(stamps),
        click_rate=sums["is_click"] / rows,
        like_rate=sums["is_like"] / rows,
        long_view_rate=sums["long_view"] / rows,
        return_rate=sums["return_next_day"] / rows,
        random_share=sums["is_rand"] / rows,
        mean_watch_time=sums["play_time_ms"] / rows / 1000,
        revenue=sums["revenue"],
        best_auc=ceiling.aucs(),
    )
    record: dict[str, object] = {"version": _VERSION}
    record |= {"config": world.config.model_dump(mode="json"), "report": report.model_dump(mode="json")}
    (partial / "world.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return report


def load_world(directory: Path) -> World:
    """The world that wrote ``directory``, to simulate on with.

    Raises:
        DataError: There is no readable ``world.json``, or another version of this package wrote it in another way.
    """
    path = directory / "world.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, config = record["version"], WorldConfig.model_validate(record["config"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(f"{path} is no record of a world; write one with infnet data synthesize") from error
    if version != _VERSION:
        raise DataError(f"{path} is of version {version}, wanted {_VERSION}; write it anew with infnet data synthesize")
    return World.create(config)
