"""What preparation did: ``report.json`` of a prepared dataset, also as tables."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Group
from rich.table import Table

__all__ = ["LogReport", "PrepareReport", "SeedReport", "SplitReport"]


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class LogReport(_Report):
    """Rows of the log."""

    rows_read: int
    dropped: dict[str, int] = Field(default_factory=dict)
    """Rows left out, by reason."""
    repeated: int = 0
    """Rows that repeat another in every column; kept as rows, counted once in histories."""

    @property
    def rows_kept(self) -> int:
        """Rows of all splits together."""
        return self.rows_read - sum(self.dropped.values())


class SeedReport(_Report):
    """Events from before the log, of the history file."""

    used: int = 0
    unknown_user: int = 0
    """Ignored: the user is neither in the user table nor in the log."""
    unknown_item: int = 0
    """Ignored: the item is neither in the item table nor in the log."""


class SplitReport(_Report):
    """One split."""

    rows: int
    users: int
    labelled: dict[str, int]
    """Rows with a label, per task."""
    positives: dict[str, int]
    """Rows with label 1, per binary task."""
    unknown_share: dict[str, float]
    """Share of rows with a value never seen in training, per field that has embedding rows."""
    history_mean: dict[str, float]
    """Events that a row sees (at most the behaviour's length), per behaviour."""
    history_empty: dict[str, float]
    """Share of rows that see none."""


class PrepareReport(_Report):
    """Everything."""

    name: str
    log: LogReport
    seeds: SeedReport
    splits: dict[str, SplitReport]
    empty_splits: list[str]
    """Extra splits that no row belongs to; they are left out."""
    users: int
    items: int
    vocabularies: dict[str, int]
    """Rows of the embedding table, the reserved two included."""
    events: dict[str, int]
    """Events per behaviour."""
    seconds: dict[str, float]
    """Per stage."""
    peak_rss_mb: float
    """Highest memory of the process so far."""

    def as_tables(self) -> Group:
        """For a terminal."""
        return Group(self._rows_table(), self._splits_table(), self._stages_table())

    def _rows_table(self) -> Table:
        table = Table("", "count", title=f"{self.name}: {self.log.rows_kept:,} rows", title_justify="left")
        table.columns[1].justify = "right"
        counts = {
            "rows read": self.log.rows_read,
            **{f"dropped: {reason}": count for reason, count in self.log.dropped.items()},
            "repeated rows": self.log.repeated,
            "users": self.users,
            "items": self.items,
            "embedding rows": 1 + sum(self.vocabularies.values()),
            **{f"events: {name}": count for name, count in self.events.items()},
            "seed events": self.seeds.used,
            "seed events ignored": self.seeds.unknown_user + self.seeds.unknown_item,
        }
        for name, count in counts.items():
            table.add_row(name, f"{count:,}")
        return table

    def _splits_table(self) -> Table:
        table = Table("split", *self.splits, title="splits", title_justify="left")
        splits = list(self.splits.values())
        table.add_row("rows", *(f"{s.rows:,}" for s in splits))
        table.add_row("users", *(f"{s.users:,}" for s in splits))
        for task in splits[0].positives:
            shares = (s.positives[task] / s.labelled[task] if s.labelled[task] else 0.0 for s in splits)
            table.add_row(f"{task} rate", *(f"{share:.2%}" for share in shares))
        for behaviour in self.events:
            table.add_row(f"{behaviour} history, mean", *(f"{s.history_mean[behaviour]:.1f}" for s in splits))
            table.add_row(f"{behaviour} history, empty", *(f"{s.history_empty[behaviour]:.1%}" for s in splits))
        worst = sorted(splits[0].unknown_share, key=lambda name: -max(s.unknown_share[name] for s in splits))[:5]
        for name in worst:
            table.add_row(f"{name} unknown", *(f"{s.unknown_share[name]:.1%}" for s in splits))
        return table

    def _stages_table(self) -> Table:
        table = Table("stage", "seconds", title=f"peak memory {self.peak_rss_mb:,.0f} MB", title_justify="left")
        for stage, seconds in self.seconds.items():
            table.add_row(stage, f"{seconds:.1f}")
        return table
