"""The fitted encoder of a dataset: raw values to embedding rows and numbers, the same in preparation and serving."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.layout import FieldLayout, Vocabulary
from infnet.errors import ArtifactError, DataError, InfnetError, SpecError, did_you_mean
from infnet.features import MISSING, NUM_RESERVED, UNKNOWN, Clock, Feature, Fit, Fitted, Side, parse_feature

__all__ = ["Encoder", "side_features"]

_SIDES: tuple[Side, ...] = ("user", "context", "item", "candidate")


def side_features(features: Sequence[Feature], side: Side) -> list[Feature]:
    """One side's features in token order: ids first, then dense."""
    return sorted((f for f in features if f.side == side), key=lambda f: f.storage == "dense")


class Encoder:
    """Every feature of a dataset with what it learnt in training.

    Attributes:
        features: By name, in token order.
        vocabularies: The parts of the embedding table.
        timezone: For features that read the clock.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        fitted: Mapping[str, Fitted],
        vocabularies: Sequence[Vocabulary],
        labels: Mapping[str, pl.DataFrame],
        timezone: str,
    ) -> None:
        self.features = {f.name: f for side in _SIDES for f in side_features(features, side)}
        self.vocabularies = tuple(vocabularies)
        self.timezone = timezone
        self._fitted = dict(fitted)
        self._labels = labels

    @classmethod
    def build(cls, features: Sequence[Feature], fits: Mapping[str, Fit], timezone: str) -> Encoder:
        """Lay the vocabularies out in one embedding table, from what each feature learnt.

        Raises:
            SpecError: Features of one vocabulary disagree on how it is made.
        """
        fitted: dict[str, Fitted] = {}
        vocabularies: list[Vocabulary] = []
        labels: dict[str, pl.DataFrame] = {}
        first = 1  # row 0 belongs to nobody
        for members in _by_vocabulary(features):
            name = members[0].vocabulary_name
            if name is None:
                fitted[members[0].name] = Fitted(fits[members[0].name].state)
                continue
            listing = _listing(members, [fits[f.name] for f in members])
            table = listing.select(
                "value", (pl.int_range(pl.len(), dtype=pl.Int32) + (first + NUM_RESERVED)).alias("row")
            )
            for feature in members:
                fitted[feature.name] = Fitted(fits[feature.name].state, first)
            labels[name] = table
            vocabularies.append(Vocabulary(name=name, first=first, size=table.height + NUM_RESERVED))
            first += vocabularies[-1].size
        return cls(features, fitted, vocabularies, labels, timezone)

    def relisted(self, listed: Mapping[str, pl.Series]) -> tuple[Encoder, NDArray[np.int64]]:
        """The same encoder with other values in some vocabularies, whose rows all move to stay side by side.

        Args:
            listed: By vocabulary, the values that have a row of their own from now on, in order.

        Returns:
            The encoder, and per row of its embedding table (num_rows,) the row of this one that stands for the same,
            -1 for a value that has none.
        """
        vocabularies: list[Vocabulary] = []
        labels: dict[str, pl.DataFrame] = {}
        origins = [np.zeros(1, dtype=np.int64)]
        first = 1
        for old in self.vocabularies:
            origin = np.arange(old.first, old.first + old.size)
            if old.name in listed:
                values = listed[old.name].alias("value").to_frame()
                known = values.join(self._labels[old.name], on="value", how="left", maintain_order="left")["row"]
                origin = np.concatenate([origin[:NUM_RESERVED], known.fill_null(-1).cast(pl.Int64).to_numpy()])
            else:
                values = self._labels[old.name].select("value")
            rows = pl.int_range(pl.len(), dtype=pl.Int32) + (first + NUM_RESERVED)
            labels[old.name] = values.with_columns(rows.alias("row"))
            vocabularies.append(Vocabulary(name=old.name, first=first, size=len(origin)))
            origins.append(origin)
            first += len(origin)
        starts = {v.name: v.first for v in vocabularies}
        fitted = {
            name: replace(self._fitted[name], first=starts.get(feature.vocabulary_name or "", 0))
            for name, feature in self.features.items()
        }
        features = list(self.features.values())
        return Encoder(features, fitted, vocabularies, labels, self.timezone), np.concatenate(origins)

    def values(self, vocabulary: str) -> pl.DataFrame:
        """Columns ``value`` (text) and ``row`` (int32): what each row after the reserved ones stands for."""
        return self._labels[vocabulary]

    def text(self, name: str, rows: Sequence[int]) -> list[str]:
        """What rows of a feature's vocabulary stand for; ``unknown`` and ``missing`` for the reserved ones."""
        vocabulary = self._feature(name).vocabulary_name
        if vocabulary is None:
            raise SpecError(f"feature '{name}' has no vocabulary")
        first = self._fitted[name].first
        values = dict(self._labels[vocabulary].filter(pl.col("row").is_in(rows)).select("row", "value").iter_rows())
        values |= {first + UNKNOWN: "unknown", first + MISSING: "missing"}
        return [values[row] for row in rows]

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table."""
        return 1 + sum(v.size for v in self.vocabularies)

    def fields(self) -> tuple[FieldLayout, ...]:
        """The features as models see them."""
        return tuple(
            FieldLayout(name=f.name, side=f.side, storage=f.storage, width=f.num_columns, vocabulary=f.vocabulary_name)
            for f in self.features.values()
        )

    def read(self, name: str, values: pl.Series | Sequence[Any], time_ms: Sequence[int] | None = None) -> pl.Series:
        """Raw values -> typed ones, as fitting and :meth:`encode_read` take them.

        Raises:
            DataError: A value is not what the feature's kind reads; names its place, found and wanted.
        """
        feature = self._feature(name)
        try:
            raw = values if isinstance(values, pl.Series) else pl.Series(values, strict=False)
        except (TypeError, pl.exceptions.PolarsError) as error:
            raise DataError(f"feature '{name}': the values are of different types ({error})") from error
        times = pl.Series([0] * len(raw) if time_ms is None else time_ms, dtype=pl.Int64)
        if time_ms is None and feature.reads in ("time", "item"):
            raise DataError(f"feature '{name}' of kind {feature.kind} needs the time of the request")
        clock = Clock(pl.col("time"), self.timezone)
        frame = pl.DataFrame({"raw": raw, "time": times})
        try:
            read = feature.read(pl.col("raw"), raw.dtype, clock)
            typed = frame.select(value=read, bad=feature.unreadable(pl.col("raw"), raw.dtype, clock))
        except SpecError as error:
            raise DataError(f"feature '{name}' of kind {feature.kind} cannot read its values: {error}") from error
        bad = typed["bad"].arg_true()
        if len(bad):
            raise DataError(f"value {bad[0]} of feature '{name}' {feature.complaint(raw[bad[0]])}")
        return typed["value"]

    def encode(
        self, name: str, values: pl.Series | Sequence[Any], time_ms: Sequence[int] | None = None
    ) -> NDArray[np.int32] | NDArray[np.float32]:
        """Raw values (n) -> (n, width): int32 embedding rows (padding -1), or float32 numbers if the field is dense.

        Args:
            values: As the raw tables hold them: 123 and "123" agree. For a feature of the clock alone, anything.
            time_ms: Time of each request; for features that read it.

        Raises:
            DataError: A value is not what the feature's kind reads; names its place, found and wanted.
        """
        return self.encode_read(name, self.read(name, values, time_ms))

    def encode_read(self, name: str, values: pl.Series) -> NDArray[np.int32] | NDArray[np.float32]:
        """As :meth:`encode`, for values that :meth:`read` (or the feature's own) gave."""
        return self._feature(name).encode(values, self.fitted(name))

    def fitted(self, name: str) -> Fitted:
        """What a feature learnt, with its vocabulary."""
        vocabulary = self._feature(name).vocabulary_name
        return replace(self._fitted[name], listed=self._labels[vocabulary]) if vocabulary else self._fitted[name]

    def unknown(self, name: str) -> NDArray[np.int32] | NDArray[np.float32]:
        """The (width,) row of an entity that nobody knows."""
        return self._reserved(name, UNKNOWN)

    def missing(self, name: str) -> NDArray[np.int32] | NDArray[np.float32]:
        """The (width,) row of an entity that has no value."""
        return self._reserved(name, MISSING)

    def _reserved(self, name: str, offset: int) -> NDArray[np.int32] | NDArray[np.float32]:
        feature = self._feature(name)
        if feature.storage == "dense":
            return np.zeros(feature.num_columns, dtype=np.float32)
        row = np.full(feature.num_columns, -1, dtype=np.int32)
        row[0] = self._fitted[name].first + offset
        return row

    def _feature(self, name: str) -> Feature:
        if name not in self.features:
            raise DataError(f"no feature is called '{name}'{did_you_mean(name, self.features)}")
        return self.features[name]

    def save(self, directory: Path) -> None:
        """Write ``encoders.json`` and ``vocabularies/NAME.parquet``, all that :meth:`load` needs."""
        sizes = {v.name: v.size for v in self.vocabularies}
        described = {
            name: {
                "declared": feature.model_dump(mode="json"),
                "state": self._fitted[name].state,
                "first": self._fitted[name].first,
                "size": sizes.get(feature.vocabulary_name or "", 0),
                "timezone": self.timezone,
            }
            for name, feature in self.features.items()
        }
        (directory / "encoders.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
        (directory / "vocabularies").mkdir(exist_ok=True)
        for name, table in self._labels.items():
            table.write_parquet(directory / "vocabularies" / f"{name}.parquet", statistics=False)

    @classmethod
    def load(cls, directory: Path) -> Encoder:
        """The encoder that :meth:`save` wrote.

        Raises:
            ArtifactError: A file is missing or damaged.
        """
        path = directory / "encoders.json"
        try:
            described = json.loads(path.read_bytes())
            features = [parse_feature(entry["declared"]) for entry in described.values()]
            vocabularies, labels = _load_vocabularies(directory, features, described)
            fitted = {}
            for feature in features:
                entry = described[feature.name]
                fitted[feature.name] = Fitted(entry["state"], entry["first"])
            timezone = next((entry["timezone"] for entry in described.values()), "UTC")
        except (OSError, ValueError, KeyError, TypeError, InfnetError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"{path}: is no readable encoder ({error}); prepare the dataset again") from error
        return cls(features, fitted, vocabularies, labels, timezone)


def _load_vocabularies(
    directory: Path, features: Sequence[Feature], described: Mapping[str, Any]
) -> tuple[list[Vocabulary], Mapping[str, pl.DataFrame]]:
    found: dict[str, Vocabulary] = {}
    for feature in features:
        if (name := feature.vocabulary_name) is not None:
            entry = described[feature.name]
            found[name] = Vocabulary(name=name, first=entry["first"], size=entry["size"])
    labels = _Labels({name: directory / "vocabularies" / f"{name}.parquet" for name in found})
    for name, vocabulary in found.items():
        height = pl.scan_parquet(labels.paths[name]).select(pl.len()).collect().item()
        if height != vocabulary.size - NUM_RESERVED:
            raise ArtifactError(f"vocabulary '{name}' holds {height} values, wanted {vocabulary.size - 2}")
    return sorted(found.values(), key=lambda v: v.first), labels


class _Labels(Mapping[str, pl.DataFrame]):
    """Vocabularies by name, each read when it is first asked for: that of all items may be large and never needed."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = dict(paths)
        self._read: dict[str, pl.DataFrame] = {}

    def __getitem__(self, name: str) -> pl.DataFrame:
        if name not in self._read:
            self._read[name] = pl.read_parquet(self.paths[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def _by_vocabulary(features: Sequence[Feature]) -> list[list[Feature]]:
    """Features in token order, those of one vocabulary together at its first."""
    groups: dict[str, list[Feature]] = {}
    for side in _SIDES:
        for feature in side_features(features, side):
            # A dense feature has none to share; its own name with a blank cannot clash.
            groups.setdefault(feature.vocabulary_name or f" {feature.name}", []).append(feature)
    return list(groups.values())


def _listing(members: Sequence[Feature], fits: Sequence[Fit]) -> pl.DataFrame:
    """Column ``value``: what each row of a vocabulary stands for, most frequent first."""
    name, counts = members[0].vocabulary_name, [fit.counts for fit in fits if fit.counts is not None]
    ways = {(fit.min_count, tuple(fit.labels)) for fit in fits}
    if len(counts) not in (0, len(members)) or len(ways) > 1:
        names = ", ".join(f"'{f.name}'" for f in members)
        raise SpecError(f"features {names} share the vocabulary '{name}' but differ in hash_buckets, min_count or kind")
    if not counts:
        return pl.DataFrame({"value": list(fits[0].labels)}, schema={"value": pl.String})
    total = pl.concat(counts).group_by("value").agg(pl.col("count").sum())
    kept = total.filter(pl.col("count") >= fits[0].min_count)
    return kept.sort(["count", "value"], descending=[True, False]).select("value")
