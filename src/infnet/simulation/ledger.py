"""What a simulation knows and no service does: by user and day, what was to be expected of the pages shown."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.sources.latent import Floats, Ints
from infnet.simulation.pages import Pages

__all__ = ["EXPECTED", "Ledger"]

EXPECTED = {
    "clicks": "p_click",
    "likes": "p_like",
    "long_views": "p_long_view",
    "hates": "p_hate",
    "watch_s": "expected_watch_time",
    "revenue": "expected_revenue",
}
"""Columns of the ledger that sum true probabilities and expectations over impressions."""


@dataclass
class Ledger:
    """Sums by user of one day after the other.

    Args:
        users: (n,) those who take part, ascending.
        variants: Of an experiment, by number; ``variant_of`` counts in them, and is -1 of whoever was not seen yet.
    """

    users: Ints
    variants: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.variant_of: NDArray[np.int64] = np.full(len(self.users), -1)
        self._sums = self._zeros()
        self._days: list[pl.DataFrame] = []

    def add(self, pages: Pages) -> None:
        """Take in pages of the current day."""
        who = np.searchsorted(self.users, pages.visits.user)
        of = who[pages.row]
        self._sums["requests"] += np.bincount(who, minlength=len(self.users))
        self._sums["impressions"] += np.bincount(of, minlength=len(self.users))
        for name, column in EXPECTED.items():
            self._sums[name] += np.bincount(of, pages.expected[column].astype(np.float64), len(self.users))

    def assigned(self, user: int, variant: str) -> None:
        """A user was answered as a variant of the experiment."""
        if variant not in self.variants:
            self.variants.append(variant)
        self.variant_of[np.searchsorted(self.users, user)] = self.variants.index(variant)

    def joy(self, here: NDArray[np.bool_]) -> Floats:
        """Mean true probability of a long view of what each user ``here`` (n,) was shown today."""
        shown = np.maximum(self._sums["impressions"][here], 1)
        return (self._sums["long_views"][here] / shown).astype(np.float32)

    def end_day(self, day: int, here: NDArray[np.bool_], p_return: Floats) -> None:
        """Close a day.

        Args:
            day: Of the world.
            here: (n,) who came.
            p_return: (n,) each one's true probability of coming on the next day.
        """
        columns = {name: values[here] for name, values in self._sums.items()}
        self._days.append(
            pl.DataFrame(
                {
                    "user_id": self.users[here],
                    "day": np.full(int(here.sum()), day, np.int32),
                    "variant": [self.variants[v] if v >= 0 else None for v in self.variant_of[here].tolist()],
                    "p_return": p_return[here],
                    **columns,
                },
                schema_overrides={"variant": pl.String},
            )
        )
        self._sums = self._zeros()

    def table(self) -> pl.DataFrame:
        """A row per user and day on which the user came: ``user_id, day, variant, p_return, requests, impressions``
        and the columns of :data:`EXPECTED`."""
        return pl.concat(self._days)

    def _zeros(self) -> dict[str, NDArray[np.float64]]:
        return {name: np.zeros(len(self.users)) for name in ("requests", "impressions", *EXPECTED)}
