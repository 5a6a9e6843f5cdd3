"""Which values have a row of their own from now on: those seen often enough come, those not seen for long go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.encoders import Encoder
from infnet.export.catalogue import Catalogue
from infnet.export.learning import LearningState
from infnet.features.categorical import CategoricalFeature
from infnet.updating.reading import ReadSamples

__all__ = ["Relisting", "relist"]

_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Relisting:
    """Vocabularies before and after."""

    encoder: Encoder
    """With the new values, without the forgotten ones."""
    origin: NDArray[np.int64]
    """(num_rows,) per embedding row the old row of the same value; -1 for a new value."""
    added: Mapping[str, int]
    """By vocabulary, values that got a row."""
    forgotten: Mapping[str, pl.Series]
    """By vocabulary, values that lost theirs."""
    waiting: pl.DataFrame
    """Values seen too rarely yet."""


def relist(
    catalogue: Catalogue,
    learning: LearningState,
    samples: ReadSamples,
    of_items: Mapping[str, pl.DataFrame],
    evict_after_days: float | None = None,
) -> Relisting:
    """New vocabularies from the values that samples to learn from name.

    A value gets a row once as many impressions as its feature's ``min_count`` have named it, over all updates. It
    loses the row when none has for ``evict_after_days``. Buckets, hashes and hours stay as they are.

    Args:
        catalogue, learning: Of the bundle so far.
        samples: To learn from.
        of_items: Per item feature that reads a column, what is newly known: columns ``key`` and ``value``.
        evict_after_days: None keeps every value.
    """
    encoder = catalogue.encoder
    listing = {
        f.vocabulary_name or "": f.min_count
        for f in encoder.features.values()
        if isinstance(f, CategoricalFeature) and f.hash_buckets is None
    }
    named = _named(encoder, listing, samples, of_items)
    known = pl.concat(
        [encoder.values(name).with_columns(vocabulary=pl.lit(name)) for name in listing]
        or [pl.DataFrame(schema={"value": pl.String, "row": pl.Int32, "vocabulary": pl.String})]
    )
    fresh = pl.concat([named, learning.waiting.select(named.columns)]).join(known, on=_KEY, how="anti")
    counted = fresh.group_by(_KEY).agg(pl.col("count").sum(), pl.col("seen_ms").max())
    least = pl.col("vocabulary").replace_strict(listing, default=1)
    counted = counted.sort("vocabulary", "count", "value", descending=[False, True, False])
    added, waiting = counted.filter(pl.col("count") >= least), counted.filter(pl.col("count") < least)
    forgotten = known.clear()
    if evict_after_days is not None:
        newest = max(samples.samples.newest_ms, int(learning.seen.max(initial=0)))
        horizon = newest - round(evict_after_days * _DAY_MS)
        seen = np.maximum(learning.seen, _touched(catalogue, samples, named.join(known, on=_KEY)))
        forgotten = known.filter(pl.Series(seen[known["row"].to_numpy()] < horizon, dtype=pl.Boolean))
        waiting = waiting.filter(pl.col("seen_ms") >= horizon)
    kept = known.join(forgotten, on=_KEY, how="anti", maintain_order="left")
    changed = {*added["vocabulary"], *forgotten["vocabulary"]}
    listed = {name: pl.concat([_of(kept, name), _of(added, name)]) for name in changed}
    relisted, origin = encoder.relisted(listed)
    return Relisting(
        encoder=relisted,
        origin=origin,
        added={name: len(_of(added, name)) for name in sorted({*added["vocabulary"]})},
        forgotten={name: _of(forgotten, name) for name in sorted({*forgotten["vocabulary"]})},
        waiting=waiting,
    )


_KEY = ["vocabulary", "value"]


def _of(frame: pl.DataFrame, vocabulary: str) -> pl.Series:
    return frame.filter(pl.col("vocabulary") == vocabulary)["value"]


def _named(
    encoder: Encoder, listing: Mapping[str, int], samples: ReadSamples, of_items: Mapping[str, pl.DataFrame]
) -> pl.DataFrame:
    """What impressions to learn from name of the vocabularies listed: their number ``count`` by ``vocabulary`` and
    ``value``, and ``seen_ms``, the time of the newest."""
    learnt = (~samples.samples.rows["is_valid"] & ~samples.samples.rows["is_repeat"]).to_numpy()
    times = samples.samples.rows["impression_ms"].to_numpy()[learnt]
    request = samples.request[learnt]
    items = samples.items.filter(pl.Series(learnt))
    parts = [pl.DataFrame(schema={"vocabulary": pl.String, "value": pl.String, "count": pl.Int64, "seen_ms": pl.Int64})]

    def count(name: str, values: pl.Series, of_row: NDArray[np.int64]) -> None:
        """Values, of which row i has number ``of_row[i]``."""
        vocabulary = encoder.features[name].vocabulary_name
        if vocabulary not in listing:
            return
        rows = pl.DataFrame({"place": of_row, "seen_ms": times}).group_by("place")
        weights = rows.agg(pl.len().cast(pl.Int64).alias("count"), pl.col("seen_ms").max())
        frame = pl.DataFrame({"value": values, "place": np.arange(len(values))}).join(weights, on="place")
        frame = frame.explode("value") if frame.schema["value"] == pl.List(pl.String) else frame
        found = frame.drop_nulls("value").group_by("value").agg(pl.col("count").sum(), pl.col("seen_ms").max())
        parts.append(found.select(pl.lit(vocabulary).alias("vocabulary"), "value", "count", "seen_ms"))

    of_request: dict[str, pl.Series] = {**samples.user, **samples.context}
    for name, values in of_request.items():
        count(name, values, request)
    for name, values in samples.candidate.items():
        count(name, values, np.flatnonzero(learnt))
    for name, feature in encoder.features.items():
        if feature.side == "item" and feature.reads == "key":
            count(name, items, np.arange(len(items)))
        elif feature.side == "item" and name in of_items:
            found = items.to_frame("key").join(of_items[name], on="key", how="left", maintain_order="left")
            count(name, found["value"], np.arange(len(items)))
    return pl.concat(parts).group_by("vocabulary", "value").agg(pl.col("count").sum(), pl.col("seen_ms").max())


def _touched(catalogue: Catalogue, samples: ReadSamples, named: pl.DataFrame) -> NDArray[np.int64]:
    """When the samples last named what each embedding row stands for (num_rows,)."""
    seen = np.zeros(catalogue.encoder.num_rows, dtype=np.int64)
    times = samples.samples.requests["time_ms"].to_numpy()

    def note(table: NDArray[np.int32], indices: NDArray[np.int64], at: NDArray[np.int64]) -> None:
        last = np.zeros(len(table), dtype=np.int64)
        np.maximum.at(last, indices, at)
        for column in table.T:
            here = (column >= 0) & (last > 0)
            np.maximum.at(seen, column[here], last[here])

    note(catalogue.users.table.ids, catalogue.users.find(samples.users), times)
    items = catalogue.items
    note(items.table.ids, items.find(samples.items), times[samples.request])
    for keys, at in _past(samples):
        note(items.table.ids, items.find(keys), at)
    np.maximum.at(seen, named["row"].to_numpy(), named["seen_ms"].to_numpy())
    return seen


def _past(samples: ReadSamples) -> Iterable[tuple[pl.Series, NDArray[np.int64]]]:
    """Items of served histories, with their times."""
    requests = samples.samples.requests
    for name in requests.columns:
        if name.endswith("_items"):
            past = requests.select(keys=name, times=f"{name.removesuffix('_items')}_times").explode("keys", "times")
            past = past.drop_nulls()
            yield past["keys"], past["times"].to_numpy()
