"""The catalogue of the next bundle: new users and items, new rows for new values, and what was served of users."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.export.catalogue import Catalogue
from infnet.export.learning import LearningState
from infnet.updating.entities import GivenTable, MovedRows, as_served, dates_of, grown_entities, renumbered
from infnet.updating.reading import ReadSamples
from infnet.updating.vocabularies import Relisting, relist

__all__ = ["Growth", "grow"]


@dataclass(frozen=True)
class Growth:
    """A catalogue, and where everything in it was before."""

    catalogue: Catalogue
    relisting: Relisting
    start: NDArray[np.int64]
    """(num_rows,) old embedding row that each row's parameters start from: its own, or, of a new value, the unknown
    one's, as which it has been served until now: growth by itself changes no prediction."""
    items: NDArray[np.int64]
    """(num_items,) old index of every item; -1 for new ones."""
    num_new_users: int
    num_new_items: int


def grow(
    catalogue: Catalogue,
    learning: LearningState,
    samples: ReadSamples,
    *,
    users: pl.DataFrame | None = None,
    items: pl.DataFrame | None = None,
    evict_after_days: float | None = None,
) -> Growth:
    """Take in what samples name, and forget what nobody has named for long.

    Users and items of samples to learn from that are new get an index; of them, only the key is known, unless their
    features are given. Features of users that were served replace those known before.

    Args:
        catalogue, learning: Of the bundle so far.
        samples: To learn from.
        users, items: Raw tables in the columns of the spec's own (not all of them, not all keys).
        evict_after_days: Values that no sample has named for so long lose their rows, and an entity of which nothing
            but the key was known goes with it.

    Raises:
        DataError: A table has no key column, or a value cannot be read.
    """
    spec = catalogue.spec
    of_users = GivenTable("user", users, spec.user.key if spec.user else spec.log.user, catalogue.encoder)
    of_items = GivenTable("item", items, spec.item.key if spec.item else spec.log.item, catalogue.encoder)
    given = {name: of_items.values(name) for name in of_items.names}
    relisting = relist(catalogue, learning, samples, given, evict_after_days)
    rows = MovedRows(catalogue.encoder, relisting)
    is_learnt = ~samples.samples.rows["is_valid"].to_numpy()
    named_users = samples.users.gather(np.unique(samples.request[is_learnt]))
    named_items = samples.items.filter(pl.Series(is_learnt))
    new_users, old_users = grown_entities("user", catalogue.users, named_users, of_users, rows)
    new_items, old_items = grown_entities("item", catalogue.items, named_items, of_items, rows)
    values = {
        name: dates_of(known, old_items, new_items, catalogue.encoder.features[name], of_items)
        for name, known in catalogue.item_values.items()
    }
    grown = replace(
        catalogue,
        encoder=relisting.encoder,
        users=as_served(new_users, relisting.encoder, samples),
        items=new_items,
        item_values=values,
        histories=tuple(renumbered(h, old_users, old_items, catalogue.items.num) for h in catalogue.histories),
    )
    return Growth(
        catalogue=grown,
        relisting=relisting,
        start=rows.start,
        items=old_items,
        num_new_users=int((old_users < 0).sum()),
        num_new_items=int((old_items < 0).sum()),
    )
