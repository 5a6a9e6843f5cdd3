"""What travels between a client and the service, as JSON or as MessagePack, and how it is described in OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from infnet.errors import DataError

__all__ = [
    "JSON",
    "MSGPACK",
    "BatchBody",
    "BatchEntry",
    "BatchReply",
    "Candidate",
    "ErrorReply",
    "EventBody",
    "EventsReply",
    "FeaturesBody",
    "FeaturesReply",
    "Format",
    "HealthReply",
    "ItemReply",
    "ModelReply",
    "Price",
    "RankBody",
    "RankReply",
    "Rejection",
    "decode",
    "encode",
    "schemas",
]

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
Format: TypeAlias = Literal["application/json", "application/msgpack"]

_INT64 = 2**63 - 1
KeyText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=512)]
KeyNumber: TypeAlias = Annotated[int, Meta(ge=-_INT64, le=_INT64)]
WireKey: TypeAlias = KeyText | KeyNumber
RequestId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Scalar: TypeAlias = str | float | bool | None
Value: TypeAlias = Scalar | KeyNumber | list[Scalar | KeyNumber]
"""A raw value of a feature."""
FeatureValues: TypeAlias = Annotated[dict[str, Value], Meta(max_length=1000)]

_B = TypeVar("_B")


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Candidate(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An item that may be shown."""

    item_id: WireKey
    features: FeatureValues = {}
    """Raw values of candidate features and fields of the policy, before those that the feature store has."""


class RankBody(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One user wants an order of some items. Candidates are given one by one, or column-wise."""

    user_id: WireKey
    request_id: RequestId | None = None
    """Names the request in its events; made up if missing."""
    context: FeatureValues = {}
    """Raw values of context features and of fields of the policy."""
    candidates: list[Candidate] = []
    item_ids: list[WireKey] | None = None
    """Instead of ``candidates``: their keys."""
    packed_item_ids: bytes | None = None
    """Instead of both: keys that are whole numbers, as little-endian int64 (in JSON, base64 of them)."""
    item_features: Annotated[dict[str, list[Value]], Meta(max_length=1000)] = {}
    """With either: per candidate feature one raw value per item."""
    time_ms: Annotated[int, Meta(ge=0, le=253_402_300_800_000)] | None = None
    """When it is made, in ms since 1970, for a service that replays; others go by their own clock."""
    limit: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """Answer with so many; all by default."""
    by: str | None = None
    """Task whose prediction is the score; the service's policy or task by default."""
    deadline_ms: Annotated[float, Meta(ge=1, le=10_000)] | None = None
    """The answer is wanted within; the service's by default, and never more."""
    timings: bool = False
    """Whether the answer tells how long each stage took."""
    explain: bool = False
    """Whether the answer tells how the policy came to each item's score and place."""

    def columns(self) -> tuple[list[Any], dict[str, list[Any]]]:
        """Keys of the candidates, and raw values per candidate feature; of a key that stands there again, the first.

        Raises:
            DataError: They are given in more than one way, or the columns differ in length.
        """
        ways = [self.item_ids is not None, self.packed_item_ids is not None, bool(self.candidates)]
        if sum(ways) > 1:
            raise DataError("candidates are given in several ways; give one of candidates, item_ids, packed_item_ids")
        if self.item_ids is not None or self.packed_item_ids is not None:
            keys = list(self.item_ids) if self.item_ids is not None else _unpacked(self.packed_item_ids or b"")
            values = {name: list(column) for name, column in self.item_features.items()}
            for name, column in values.items():
                if len(column) != len(keys):
                    raise DataError(f"item_features.{name} has {len(column)} values, wanted {len(keys)}, one per item")
        else:
            if self.item_features:
                raise DataError("item_features goes with item_ids; with candidates, give each its own features")
            keys = [candidate.item_id for candidate in self.candidates]
            names = {name for candidate in self.candidates for name in candidate.features}
            values = {name: [candidate.features.get(name) for candidate in self.candidates] for name in sorted(names)}
        texts = [*map(str, keys)]
        if len(set(texts)) == len(texts):
            return texts, values
        first = sorted({text: place for place, text in reversed([*enumerate(texts)])}.values())
        return [texts[i] for i in first], {name: [column[i] for i in first] for name, column in values.items()}


class Price(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an ad pays for its position, in the policy's currency."""

    per_impression: float
    """Charged when the impression is told."""
    per_click: float
    """Which comes to the same if the click's probability is right; for information."""
    ecpm: float | None = None
    """If explained: 1000 times the paced bid for the impression."""
    pace: float | None = None
    """If explained: of the campaign, from 0 to 1."""


class ItemReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """One place of an order."""

    item_id: str
    score: float
    tasks: dict[str, float]
    """What each task predicts; empty for items that were not scored by the model."""
    parts: dict[str, float] = {}
    """If explained: what each objective of the policy adds to the score, or multiplies it by."""
    notes: list[str] = []
    """If explained: why the item stands higher or lower than its score."""
    price: Price | None = None
    """Of an ad."""


class RankReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """An order, best first."""

    request_id: str
    model_version: str
    items: list[ItemReply]
    degraded: list[str]
    """What was left out to answer in time, in the order in which things are left out."""
    timings_ms: dict[str, float] = {}
    policy_version: str = ""
    """Of the policy that made the scores; empty without one."""
    experiments: dict[str, str] = {}
    """Variant by experiment, of those that the user is in."""
    ads_left_out: dict[str, str] = {}
    """If explained: by item that is an ad and not shown, why."""


class BatchBody(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several requests."""

    requests: Annotated[list[RankBody], Meta(min_length=1, max_length=1000)]


class ErrorReply(msgspec.Struct, frozen=True):
    """Why there is no answer."""

    error: str


class BatchEntry(msgspec.Struct, frozen=True):
    """What became of one request of several."""

    reply: RankReply | None
    error: str | None
    """Why there is no reply."""


class BatchReply(msgspec.Struct, frozen=True):
    """An entry for each request, in their order."""

    replies: list[BatchEntry]


class EventBody(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that happened to an item of a request."""

    request_id: RequestId
    item_id: WireKey
    type: Annotated[str, Meta(min_length=1, max_length=64)]
    """``impression``, or the event type of a task or a behaviour."""
    time_ms: Annotated[int, Meta(ge=0, le=253_402_300_800_000)] | None = None
    """When, in ms since 1970; now by default."""
    value: float | bool = 1.0
    """Of a regression task, such as seconds watched; of others, whether it happened."""
    event_id: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    """Two events of one id are one; made of request, item, type and time by default."""
    user_id: WireKey | None = None
    """Whose; the request's user by default."""


class Rejection(msgspec.Struct, frozen=True):
    """An event that was not taken."""

    index: int
    reason: str


class EventsReply(msgspec.Struct, frozen=True):
    """What became of events; those taken are on disk."""

    accepted: int
    duplicates: int
    rejected: list[Rejection]


class FeaturesBody(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Raw features of a user or an item."""

    features: FeatureValues


class FeaturesReply(msgspec.Struct, frozen=True):
    """How many features were set."""

    features: int


class ModelReply(msgspec.Struct, frozen=True):
    """What is served."""

    version: str
    model: str
    tasks: list[str]
    event_types: list[str]
    loaded_ms: int
    refused: str | None
    """A version that was published and could not be loaded; the server's log says why."""
    policy: str | None = None
    """Version of the policy."""
    policy_refused: bool = False
    """Whether the policy's file has changed and could not be used; the server's log says why."""
    experiments: list[str] = []
    """Those declared."""


class HealthReply(msgspec.Struct, frozen=True):
    """How the service is."""

    status: Literal["ok", "degraded", "down"]
    feature_store: Literal["ok", "behind", "failing"]
    """``behind``: it answers, and events wait in the log to enter it."""
    event_log: Literal["ok", "failing"]


def decode(raw: bytes, kind: type[_B], form: Format) -> _B:
    """A body.

    Raises:
        DataError: It is no such document; says where, what was found and what was wanted.
    """
    try:
        return _decoder(kind, form).decode(raw)
    except msgspec.ValidationError as error:
        raise DataError(f"the body does not fit: {error}") from error
    except RecursionError as error:
        raise DataError("the body is nested too deeply; see /docs for its shape") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"the body is no {form.rpartition('/')[2]}: {_plain(error)}") from error


def encode(reply: Any, form: Format) -> bytes:
    """A reply's bytes."""
    return msgspec.json.encode(reply) if form == JSON else msgspec.msgpack.encode(reply)


_decoders: dict[tuple[Any, str], Any] = {}


def _decoder(kind: type[_B], form: Format) -> Any:
    found = _decoders.get((kind, form))
    if found is None:
        found = msgspec.json.Decoder(kind) if form == JSON else msgspec.msgpack.Decoder(kind)
        _decoders[kind, form] = found
    return found


def _plain(error: Exception) -> str:
    return f"byte {error.start} is no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _unpacked(packed: bytes) -> list[int]:
    if len(packed) % 8:
        raise DataError(f"packed_item_ids has {len(packed)} bytes, wanted a multiple of 8 (little-endian int64)")
    keys: list[int] = np.frombuffer(packed, "<i8").tolist()
    return keys


def schemas() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """References by type name, and the components they refer to, for OpenAPI."""
    kinds = [
        *(RankBody, RankReply, BatchBody, BatchReply, EventBody, EventsReply),
        *(FeaturesBody, FeaturesReply, ModelReply, HealthReply, ErrorReply),
    ]
    references, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return {kind.__name__: reference for kind, reference in zip(kinds, references, strict=True)}, components
