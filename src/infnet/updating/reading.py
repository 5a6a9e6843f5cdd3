"""Raw values of samples, read by the features of a spec: text, numbers and lists, not yet rows of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.encoders import Encoder
from infnet.errors import ArtifactError
from infnet.features import as_text
from infnet.updating.samples import Samples

__all__ = ["ReadSamples", "read_raw"]


@dataclass(frozen=True)
class ReadSamples:
    """Samples as features see them; R requests, n rows."""

    samples: Samples
    users: pl.Series
    """(R,) key of each request's user."""
    has_values: NDArray[np.bool_]
    """(R,) whether raw features of the user were served; else it was those of the bundle."""
    user: Mapping[str, pl.Series]
    """Per user feature, those values (R,); of the key's features, the key."""
    context: Mapping[str, pl.Series]
    """Per context feature (R,)."""
    request: NDArray[np.int64]
    """(n,) place of each row's request."""
    items: pl.Series
    """(n,) key of each row's item."""
    candidate: Mapping[str, pl.Series]
    """Per candidate feature whose values the request brought along (n,)."""

    @classmethod
    def read(cls, samples: Samples, encoder: Encoder, of_items: Iterable[str]) -> ReadSamples:
        """Read the raw values of samples.

        Args:
            samples: To be read.
            encoder: Its vocabularies do not matter.
            of_items: Candidate features that read what is known of the item.

        Raises:
            DataError: A value cannot be read; names the feature.
            ArtifactError: A text is no JSON.
        """
        requests, rows = samples.requests, samples.rows
        request, times = rows["request"].to_numpy(), requests["time_ms"].to_numpy()
        described, context, candidate = (
            _objects(requests["user"]),
            _objects(requests["context"]),
            _objects(rows["values"]),
        )
        users = _keys(requests["user_id"])
        known = set(of_items)
        found: dict[str, dict[str, pl.Series]] = {"user": {}, "context": {}, "candidate": {}}
        for name, feature in encoder.features.items():
            if feature.side == "user" and feature.reads == "key":
                found["user"][name] = encoder.read(name, users)
            elif feature.side == "user":
                found["user"][name] = read_raw(encoder, name, _column(described, name), times)
            elif feature.side == "context":
                found["context"][name] = read_raw(encoder, name, _column(context, name), times)
            elif feature.side == "candidate" and name not in known:
                found["candidate"][name] = read_raw(encoder, name, _column(candidate, name), times[request])
        return cls(
            samples=samples,
            users=users,
            has_values=requests["user"].is_not_null().to_numpy(),
            user=found["user"],
            context=found["context"],
            request=request,
            items=_keys(rows["item"]),
            candidate=found["candidate"],
        )

    def only_valid(self) -> ReadSamples:
        """The rows held out, with all requests."""
        held = self.samples.rows["is_valid"]
        return replace(
            self,
            samples=replace(self.samples, rows=self.samples.rows.filter(held)),
            request=self.request[held.to_numpy()],
            items=self.items.filter(held),
            candidate={name: values.filter(held) for name, values in self.candidate.items()},
        )


def read_raw(encoder: Encoder, name: str, values: Sequence[Any], time_ms: NDArray[np.int64]) -> pl.Series:
    """What :meth:`Encoder.read` makes of each value alone, whatever types stand side by side (n,).

    Raises:
        DataError: A value cannot be read.
    """
    if encoder.features[name].reads == "time":
        return encoder.read(name, pl.Series([None] * len(values)), time_ms.tolist())
    groups: dict[Any, list[int]] = {}
    for place, value in enumerate(values):
        groups.setdefault(_kind(value), []).append(place)
    parts = [encoder.read(name, [values[i] for i in places], time_ms[places].tolist()) for places in groups.values()]
    if not parts:
        return encoder.read(name, [], [])
    order = np.argsort(np.concatenate([np.array(places) for places in groups.values()]))
    return pl.concat(parts, how="vertical")[order]


def _kind(value: Any) -> Any:
    return (list, frozenset(map(type, value))) if isinstance(value, list) else type(value)


def _objects(texts: pl.Series) -> list[dict[str, Any]]:
    """JSON objects, empty for null."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    try:
        return [{} if text is None else decode(text) for text in texts]
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"samples: '{texts.name}' is no JSON object ({error}); join the events again") from error


def _column(objects: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [each.get(name) for each in objects]


def _keys(keys: pl.Series) -> pl.Series:
    """In the one spelling; empty text for a missing one, which nobody has."""
    return keys.to_frame("key").select(as_text(pl.col("key"), pl.String()).fill_null("")).to_series()
