"""The kinds of features a dataset spec can declare.

A kind is one class: its options as fields, and how its raw values become embedding rows or numbers
(:meth:`Feature.read`, :meth:`Feature.fit`, :meth:`Feature.encode`). It is registered by naming it with
:func:`feature_kind`, and nothing else in the package knows the kinds by name.
"""

from infnet.features.base import (
    MISSING,
    NUM_RESERVED,
    UNKNOWN,
    Clock,
    Feature,
    Fit,
    Fitted,
    Reads,
    Side,
    Storage,
    feature_kind,
    feature_kinds,
    parse_feature,
)
from infnet.features.categorical import CategoryFeature, IdFeature, TagsFeature, as_text
from infnet.features.clock import AgeFeature, HourFeature, as_time_ms, text_as_time_ms
from infnet.features.numeric import NumberFeature, ValueFeature, VectorFeature

__all__ = [
    "MISSING",
    "NUM_RESERVED",
    "UNKNOWN",
    "AgeFeature",
    "CategoryFeature",
    "Clock",
    "Feature",
    "Fit",
    "Fitted",
    "HourFeature",
    "IdFeature",
    "NumberFeature",
    "Reads",
    "Side",
    "Storage",
    "TagsFeature",
    "ValueFeature",
    "VectorFeature",
    "as_text",
    "as_time_ms",
    "feature_kind",
    "feature_kinds",
    "parse_feature",
    "text_as_time_ms",
]
