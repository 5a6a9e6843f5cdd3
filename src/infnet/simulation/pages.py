"""Pages that users saw, and what they did with them: the world's answer to the service's."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infnet.data.sources.exposure import Impressions, Visits, row_times
from infnet.data.sources.latent import Floats, Ints
from infnet.data.sources.world import World
from infnet.serving.wire import EventBody

__all__ = ["Pages"]

_FLAGS = {
    "click": "is_click",
    "like": "is_like",
    "long_view": "long_view",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
}
"""Event type of what either happened or did not, and its column of feedback."""


@dataclass(frozen=True)
class Pages:
    """n impressions of V visits, and what followed."""

    visits: Visits
    request_ids: list[str]
    """(V,)."""
    row: Ints
    """(n,) visit of each impression, ascending."""
    item: Ints
    """(n,)."""
    time_ms: NDArray[np.int64]
    """(n,) since 1970."""
    feedback: dict[str, NDArray[np.generic]]
    """By the log's column (n,)."""
    expected: dict[str, Floats]
    """True probabilities and expectations (n,), see :meth:`infnet.data.sources.reaction.Reaction.probabilities`."""

    @classmethod
    def seen(
        cls, world: World, visits: Visits, request_ids: list[str], shown: list[list[int]], rng: np.random.Generator
    ) -> Pages:
        """What users do with pages.

        Args:
            world: Theirs.
            visits: V.
            request_ids: (V,) of the requests that the pages answer.
            shown: (V,) items of each page, from the first position on.
            rng: Draws what they do.
        """
        lengths = np.array([len(page) for page in shown], np.int64)
        row = np.repeat(np.arange(len(shown)), lengths)
        position = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
        item = np.fromiter((item for page in shown for item in page), np.int64, len(row))
        reaction = world.react(visits, row, item, position)
        feedback = reaction.sample(rng)
        impressions = Impressions(visits, row, item, position, np.zeros(len(row), np.bool_))
        times = world.first_ms() + row_times(impressions, feedback["play_time_ms"].astype(np.int64), rng)
        return cls(visits, request_ids, row, item, times, feedback, reaction.probabilities())

    def events(self, types: Set[str]) -> list[EventBody]:
        """What a client tells the service, by time: of these types and in raw values."""
        found: list[tuple[int, str, float, int]] = []
        at = self.time_ms.tolist()
        if "impression" in types:
            found += [(time, "impression", 1.0, place) for place, time in enumerate(at)]
        for kind, column in _FLAGS.items():
            if kind in types:
                found += [(at[place] + 1, kind, 1.0, place) for place in np.flatnonzero(self.feedback[column]).tolist()]
        for kind, amounts in (("watch_time", self.watched_s), ("revenue", self.feedback["revenue"])):
            if kind in types:
                given = np.flatnonzero(amounts).tolist()
                found += [(at[place] + 1, kind, float(amounts[place]), place) for place in given]
        rows, items = self.row.tolist(), self.item.tolist()
        return [
            EventBody(
                request_id=self.request_ids[rows[place]],
                item_id=items[place],
                type=kind,
                time_ms=time,
                value=value,
            )
            for time, kind, value, place in sorted(found)
        ]

    @property
    def watched_s(self) -> NDArray[np.float64]:
        """(n,) seconds."""
        return self.feedback["play_time_ms"].astype(np.float64) / 1000
