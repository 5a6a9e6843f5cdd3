"""What a policy says about its pages: constraints, each in one of five forms, and diversity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["AdLoad", "AdLoadLimit", "AtLeast", "AtMost", "Constraint", "Diversity", "Floor", "Placement", "Spacing"]

_Text: TypeAlias = Annotated[str, Field(min_length=1)]
_Positive: TypeAlias = Annotated[int, Field(ge=1)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class AtMost(_Declared):
    """``{at_most: 2, per: author_id, within: 10}``: few items of one author near each other."""

    at_most: _Positive
    """Items that share a value."""
    per: _Text
    """The field; a list, such as tags, counts for each of its values, and None for nothing."""
    within: _Positive | None = None
    """So many consecutive positions, any of them; the whole page by default."""

    @model_validator(mode="after")
    def _holds_something_back(self) -> AtMost:
        if self.within is not None and self.at_most >= self.within:
            raise ValueError(
                f"at_most {self.at_most} within {self.within} holds nothing back; give a larger within or fewer at_most"
            )
        return self

    def __str__(self) -> str:
        return f"at_most {self.at_most} per {self.per}" + (f" within {self.within}" if self.within else "")


class Spacing(_Declared):
    """``{spacing: 2, per: topic}``: so many other items between two that share a value."""

    spacing: _Positive
    per: _Text
    """The field, read as in :class:`AtMost`."""

    def __str__(self) -> str:
        return f"spacing {self.spacing} per {self.per}"


class AdLoadLimit(_Declared):
    """How many ads a page holds."""

    at_most: Annotated[int, Field(ge=0)]
    per: _Positive
    """So many consecutive positions, any of them."""
    first: _Positive = 1
    """The first position (from 1) that may hold an ad."""
    field: _Text | None = None
    """Of an item, true if it is an ad; that of the policy's ``ads`` by default, else ``is_ad``."""

    @model_validator(mode="after")
    def _limits(self) -> AdLoadLimit:
        if self.at_most > self.per:
            raise ValueError(
                f"at_most {self.at_most} of {self.per} positions limits nothing; wanted no more than these"
            )
        return self


class AdLoad(_Declared):
    """``{ad_load: {at_most: 1, per: 5, first: 3}}``."""

    ad_load: AdLoadLimit

    def __str__(self) -> str:
        limit = self.ad_load
        return f"ad_load {limit.at_most} per {limit.per}" + (f" from {limit.first} on" if limit.first > 1 else "")


class Floor(_Declared):
    """``{floor: p_long_view, at_least: 0.05}``: items with less are not shown at all."""

    floor: _Text
    """An input of the policy."""
    at_least: float

    def __str__(self) -> str:
        return f"floor {self.at_least:g} of {self.floor}"


class AtLeast(_Declared):
    """``{at_least: 1, within: 10, where: "impressions < 100"}``: room for what is fresh, new or otherwise wanted."""

    at_least: _Positive
    within: _Positive
    """Of each block of so many positions: 1 to 10, 11 to 20, and so on."""
    where: _Text
    """A formula over the policy's inputs; items count for which it is not 0."""

    @model_validator(mode="after")
    def _has_room(self) -> AtLeast:
        if self.at_least > self.within:
            raise ValueError(
                f"at_least {self.at_least} of {self.within} positions cannot be; wanted no more than these"
            )
        return self

    def __str__(self) -> str:
        return f"at_least {self.at_least} within {self.within} where {self.where}"


_FORMS: Mapping[str, type[_Declared]] = {
    "at_most": AtMost,
    "at_least": AtLeast,
    "spacing": Spacing,
    "ad_load": AdLoad,
    "floor": Floor,
}


def _constraint(raw: Any) -> Any:
    """The form whose name is among the keys; checked here, so that messages do not go through all five."""
    if isinstance(raw, BaseModel):
        return raw
    keys = list(raw) if isinstance(raw, dict) else []
    forms = [name for name in _FORMS if name in keys and not (name == "at_least" and "floor" in keys)]
    if len(forms) == 1:
        return _FORMS[forms[0]].model_validate(raw)
    if forms:
        raise _declaration(f"{' and '.join(forms)} are several constraints; give each an entry of its own")
    found = ", ".join(str(key) for key in keys) if keys else repr(raw)
    raise _declaration(f"wanted one of {', '.join(_FORMS)}; found {found}")


def _declaration(message: str) -> PydanticCustomError:
    """An error whose message does not end with the whole entry."""
    return PydanticCustomError("declaration", "{message}", {"message": message})


Placement: TypeAlias = AtMost | AtLeast | Spacing | AdLoad
"""What says where an item may stand; a floor says whether it may."""
Constraint: TypeAlias = Annotated[Placement | Floor, BeforeValidator(_constraint)]


class Diversity(_Declared):
    """``{method: mmr, strength: 0.3, by: [category, tags]}``: items unlike those before them."""

    method: Literal["mmr", "dpp"]
    """See :mod:`infnet.ranking.rerank.diversity`."""
    strength: Annotated[float, Field(ge=0, le=1)]
    """0: by score alone. 1: by difference alone."""
    by: Annotated[tuple[_Text, ...], Field(min_length=1)] | None = None
    """Fields whose agreement makes two items similar; the cosine of the items' vectors by default."""
    window: _Positive | None = None
    """So many positions back items are looked at; all by default."""

    def __str__(self) -> str:
        return f"{self.method} {self.strength:g}"
