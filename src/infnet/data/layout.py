"""What a prepared dataset looks like: its fields, embedding rows, behaviours and tasks, and the files they are in.

Written by preparation, read by everything later; a model is built from a :class:`Layout` alone.

One embedding table serves all fields. A :class:`Vocabulary` owns a contiguous range of its rows, and every id that a
prepared file holds is already a row of that table. Row 0 of the table is unused by any vocabulary; within a vocabulary
the first row stands for values never seen in training (or too rare), the second for missing values.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from infnet.features import Side, Storage

__all__ = ["FORMAT_VERSION", "BehaviourLayout", "FieldLayout", "Layout", "Manifest", "TaskLayout", "Vocabulary"]

FORMAT_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FieldLayout(_Record):
    """One feature as a model sees it: one token."""

    name: str
    side: Side
    storage: Storage
    width: int = 1
    """Columns in its side's id matrix (``ids``: values at most) or dense matrix; 1 for ``id``."""
    vocabulary: str | None = None
    """None for ``dense``."""


class Vocabulary(_Record):
    """A range of embedding rows: ``first`` is the unknown row, ``first + 1`` the missing row, values follow."""

    name: str
    first: int
    size: int


class BehaviourLayout(_Record):
    """One history: at most ``length`` events, each a token made of the named item fields (all ``id`` or ``ids``)."""

    name: str
    length: int
    fields: tuple[str, ...]
    gap: bool = False
    position: bool = False


class TaskLayout(_Record):
    """One label column."""

    name: str
    kind: Literal["binary", "regression"]
    loss: Literal["bce", "mse", "huber", "log_mse"]
    weight: float = 1.0
    mean: float = 0.0
    """Of the label over the training rows (of the positives' indicator for binary: the base rate)."""
    std: float = 1.0
    """Standard deviation over the training rows; 1 for binary."""


class Layout(_Record):
    """Everything a model needs to know of a dataset."""

    fields: tuple[FieldLayout, ...]
    """In token order: user, context, item, candidate; inside a side ``id`` and ``ids`` fields first, then ``dense``.
    A side's id matrix holds its ``id`` and ``ids`` fields side by side in this order, ``ids`` taking ``width``
    columns padded with -1; its dense matrix holds the ``dense`` fields side by side."""
    vocabularies: tuple[Vocabulary, ...]
    behaviours: tuple[BehaviourLayout, ...]
    tasks: tuple[TaskLayout, ...]
    num_rows: int
    """Rows of the embedding table."""

    def side(self, side: Side) -> tuple[FieldLayout, ...]:
        """The fields of one side, in token order."""
        return tuple(f for f in self.fields if f.side == side)

    def id_columns(self, side: Side) -> dict[str, slice]:
        """Columns of the side's id matrix, per categorical field."""
        columns, at = {}, 0
        for field in self.side(side):
            if field.storage != "dense":
                columns[field.name] = slice(at, at + field.width)
                at += field.width
        return columns

    def dense_columns(self, side: Side) -> dict[str, slice]:
        """Columns of the side's dense matrix, per dense field."""
        columns, at = {}, 0
        for field in self.side(side):
            if field.storage == "dense":
                columns[field.name] = slice(at, at + field.width)
                at += field.width
        return columns

    def id_width(self, side: Side) -> int:
        """Columns of the side's id matrix."""
        return sum(f.width for f in self.side(side) if f.storage != "dense")

    def dense_width(self, side: Side) -> int:
        """Columns of the side's dense matrix."""
        return sum(f.width for f in self.side(side) if f.storage == "dense")

    @property
    def event_fields(self) -> tuple[str, ...]:
        """Item fields that any behaviour's tokens use, in layout order."""
        used = {name for behaviour in self.behaviours for name in behaviour.fields}
        return tuple(f.name for f in self.side("item") if f.name in used)

    def with_event_embeddings(self, *, position: bool, gap: bool) -> Layout:
        """The same with events that carry their place, or the time since them, where they did not."""
        if not (position or gap):
            return self
        wanted = [{"position": position or b.position, "gap": gap or b.gap} for b in self.behaviours]
        behaviours = tuple(b.model_copy(update=w) for b, w in zip(self.behaviours, wanted, strict=True))
        return self.model_copy(update={"behaviours": behaviours})

    @property
    def has_gaps(self) -> bool:
        """Whether any event carries the time since it."""
        return any(b.gap for b in self.behaviours)

    @property
    def seq_len(self) -> int:
        """L: all behaviours' lengths together."""
        return sum(b.length for b in self.behaviours)

    @property
    def num_fields(self) -> int:
        """M: one token per field."""
        return len(self.fields)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names in label column order."""
        return tuple(t.name for t in self.tasks)


class Manifest(_Record):
    """``manifest.json`` of a prepared dataset.

    Beside it lie (``.npy`` files, C order, little endian; n_users and n_items count row 0, the unknown entity, whose
    fields are all unknown):

    - ``spec.yaml``: the spec it was made from; ``report.json``; ``quarantine.parquet`` if rows were set aside
    - ``users/keys.parquet``: column ``key`` (text), n_users - 1 rows; row i of the file is user index i + 1
    - ``users/ids.npy`` (n_users, id_width) int32, ``users/dense.npy`` (n_users, dense_width) float32; the same under
      ``items/``
    - ``items/values/FEATURE.npy`` (n_items,) float64: what a candidate's feature reads of its item, such as its date
    - ``vocabularies/NAME.parquet``: columns ``value`` (text) and ``row`` (int32 row of the embedding table)
    - ``encoders.json``: per feature name the fitted state of its encoder (bucket edges, mean and std, ..)
    - ``history/BEHAVIOUR.starts.npy`` (n_users + 1,) int64: user u's events are ``starts[u]:starts[u + 1]``, oldest
      first; ``history/BEHAVIOUR.items.npy`` (n_events,) int32 item index; ``history/BEHAVIOUR.times.npy`` int64, ms
    - per split S in ``splits``: ``S/user.npy`` (n,) int32, ``S/item.npy`` (n,) int32, ``S/time.npy`` (n,) int64 ms,
      ``S/labels.npy`` (n, T) float32 with NaN for missing, ``S/ends.npy`` (n, F) int64: the row's history of
      behaviour a is ``items[max(starts[u], end - length):end]``; ``S/context.npy`` (n, id_width("context")) int32,
      ``S/context_dense.npy`` float32, ``S/candidate.npy`` (n, id_width("candidate")) int32, ``S/candidate_dense.npy``

    Rows of a split are sorted by user index, then time, then order in the log. Files of width zero are not written.
    """

    format_version: int
    package_version: str
    name: str
    layout: Layout
    num_users: int
    num_items: int
    splits: dict[str, int]
    """Rows per split; train, valid, test and the extra ones."""
    fingerprint: str
    """SHA-256 over the names and contents of all other data files: what a run says it was trained on."""
