"""Users and items of the next bundle: the old ones under new numbers, new ones, and what was told of either."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.dataset import EntityTable, History
from infnet.data.encoders import Encoder, side_features
from infnet.errors import DataError
from infnet.export.catalogue import Entities
from infnet.features import UNKNOWN, Feature, as_text
from infnet.updating.reading import ReadSamples
from infnet.updating.vocabularies import Relisting

__all__ = ["EntitySide", "GivenTable", "MovedRows", "as_served", "dates_of", "grown_entities", "renumbered"]

EntitySide = Literal["user", "item"]

_KEY = " key"
"""Column of canonical keys, a name that no raw column has."""


class MovedRows:
    """Embedding rows before and after."""

    def __init__(self, old: Encoder, relisting: Relisting) -> None:
        self.encoder, self.relisting = relisting.encoder, relisting
        unknown = np.zeros(self.encoder.num_rows, dtype=np.int64)
        back = np.zeros(old.num_rows, dtype=np.int32)
        for before, after in zip(old.vocabularies, self.encoder.vocabularies, strict=True):
            unknown[after.first : after.first + after.size] = before.first + UNKNOWN
            back[before.first : before.first + before.size] = after.first + UNKNOWN
        origin = relisting.origin
        self.start = np.where(origin < 0, unknown, origin)
        is_known = origin >= 0
        back[origin[is_known]] = np.flatnonzero(is_known)
        self._new_of_old = back

    def moved(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Old rows, -1 for padding -> new rows; forgotten values become the unknown one."""
        moved: NDArray[np.int32] = np.where(ids < 0, ids, self._new_of_old[np.maximum(ids, 0)]).astype(np.int32)
        return moved


class GivenTable:
    """A raw table of users or items that somebody handed over."""

    def __init__(self, side: EntitySide, table: pl.DataFrame | None, key: str, encoder: Encoder) -> None:
        self._encoder = encoder
        self._table = pl.DataFrame(schema={_KEY: pl.String}) if table is None else _keyed(side, table, key)
        reads = ("column", "item") if side == "item" else ("column",)
        sides = ("item", "candidate") if side == "item" else ("user",)
        self._features = [
            f
            for f in encoder.features.values()
            if f.side in sides and f.reads in reads and f.source in self._table.columns
        ]
        self.names = [f.name for f in self._features if f.side == side]

    @property
    def keys(self) -> pl.Series:
        """Of its rows."""
        return self._table[_KEY]

    def values(self, name: str) -> pl.DataFrame:
        """What a feature reads: columns ``key`` and ``value``."""
        feature = self._encoder.features[name]
        return self._table.select(
            pl.col(_KEY).alias("key"), value=self._encoder.read(name, self._table[feature.source])
        )

    def dates(self, feature: Feature) -> pl.Series | None:
        """What a feature of a request reads of its item, if the table has the column."""
        if feature not in self._features:
            return None
        raw = self._table[feature.source]
        self._encoder.read(feature.name, raw, [0] * len(raw))  # names what it cannot read
        return self._table.select(
            feature.item_value(pl.col(feature.source), raw.dtype, self._encoder.timezone).cast(pl.Float64)
        ).to_series()


def _keyed(side: EntitySide, table: pl.DataFrame, key: str) -> pl.DataFrame:
    """The table with its keys in one spelling under ``key``."""
    if key not in table.columns:
        raise DataError(f"the table of {side}s has no column '{key}', the key of the spec's own; name it so")
    keyed = table.with_columns(as_text(pl.col(key), table.schema[key]).alias(_KEY))
    if keyed[_KEY].null_count():
        raise DataError(f"the table of {side}s has a row without {key}; every row needs its key")
    return keyed.unique(_KEY, keep="last", maintain_order=True)


def grown_entities(
    side: EntitySide, old: Entities, named: pl.Series, given: GivenTable, rows: MovedRows
) -> tuple[Entities, NDArray[np.int64]]:
    """All entities from now on, and per index the old one, -1 for new ones."""
    kept = old.keys.filter(~pl.Series(_is_forgotten(side, old, rows)[1:], dtype=pl.Boolean))
    keys = pl.concat([kept, named, given.keys]).unique().drop_nulls().alias("key")
    keys = keys.filter(keys.str.len_bytes() > 0).to_frame().sort(pl.col("key").str.len_bytes(), "key")["key"]
    origin = np.append(0, old.find(keys))
    origin[1:][origin[1:] == 0] = -1
    encoder = rows.encoder
    features = side_features(list(encoder.features.values()), side)
    ids = rows.moved(old.table.ids)[np.maximum(origin, 0)]
    dense = old.table.dense[np.maximum(origin, 0)]
    table = Entities(keys, EntityTable(ids, dense))
    columns = _columns(features)
    is_new = origin < 0
    of_given = table.find(given.keys)
    for feature in features:
        place = (dense if feature.storage == "dense" else ids)[:, columns[feature.name]]
        place[is_new] = encoder.missing(feature.name)
        if feature.reads == "key":
            place[1:] = encoder.encode(feature.name, keys)
        elif feature.name in given.names:
            place[of_given] = encoder.encode_read(feature.name, given.values(feature.name)["value"])
    return table, origin


def _is_forgotten(side: EntitySide, old: Entities, rows: MovedRows) -> NDArray[np.bool_]:
    """(num,) whose key has lost its row, and of whom nothing else is known."""
    before, forgotten = rows.encoder, rows.relisting.forgotten
    features = side_features(list(before.features.values()), side)
    keyed = [f for f in features if f.reads == "key" and f.vocabulary_name in forgotten]
    gone = np.zeros(old.num, dtype=bool)
    if not keyed:
        return gone
    gone[1:] = old.keys.is_in(forgotten[keyed[0].vocabulary_name or ""].implode()).to_numpy()
    columns, moved = _columns(features), rows.moved(old.table.ids)
    for feature in features:
        if feature.reads == "column":
            values = (old.table.dense if feature.storage == "dense" else moved)[:, columns[feature.name]]
            gone &= (values == before.missing(feature.name)).all(axis=1)
    return gone


def _columns(features: list[Feature]) -> dict[str, slice]:
    """Of each feature in the id or dense matrix of its side."""
    at, columns = {False: 0, True: 0}, {}
    for feature in features:
        is_dense = feature.storage == "dense"
        columns[feature.name] = slice(at[is_dense], at[is_dense] + feature.num_columns)
        at[is_dense] += feature.num_columns
    return columns


def as_served(users: Entities, encoder: Encoder, samples: ReadSamples) -> Entities:
    """Users with the raw features of their latest request that had any."""
    requests = np.flatnonzero(samples.has_values)
    index = users.find(samples.users.gather(requests))
    last = {int(user): request for user, request in zip(index, requests, strict=True) if user}  # by time
    if last:
        who, which = np.array([*last]), np.array([*last.values()])
        features = side_features(list(encoder.features.values()), "user")
        for feature in features:
            place = (users.table.dense if feature.storage == "dense" else users.table.ids)[
                :, _columns(features)[feature.name]
            ]
            place[who] = encoder.encode_read(feature.name, samples.user[feature.name].gather(which))
    return users


def dates_of(
    old: NDArray[np.float64], origin: NDArray[np.int64], items: Entities, feature: Feature, given: GivenTable
) -> NDArray[np.float64]:
    """What a feature of a request reads of every item, NaN where missing."""
    values = np.where(origin < 0, np.nan, old[np.maximum(origin, 0)])
    found = given.dates(feature)
    if found is not None:
        values[items.find(given.keys)] = found.fill_null(float("nan")).to_numpy()
    return values


def renumbered(
    history: History, old_users: NDArray[np.int64], old_items: NDArray[np.int64], num_old_items: int
) -> History:
    """Events by new user, without those of items that are gone; old indices as :func:`grown_entities` gives them."""
    new_items = np.zeros(num_old_items, dtype=np.int64)
    is_kept = old_items > 0
    new_items[old_items[is_kept]] = np.flatnonzero(is_kept)
    sources = np.maximum(old_users, 0)
    counts = np.where(old_users < 0, 0, np.diff(history.starts)[sources])
    starts = np.append(0, np.cumsum(counts))
    places = np.arange(starts[-1]) + np.repeat(history.starts[sources] - starts[:-1], counts)
    items, times = new_items[history.items[places]], history.times[places]
    here = items > 0
    owner = np.repeat(np.arange(len(old_users)), counts)[here]
    starts = np.append(0, np.cumsum(np.bincount(owner, minlength=len(old_users))))
    return History(starts, items[here].astype(np.int32), times[here])
