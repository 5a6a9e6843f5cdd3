"""Names of the columns that the log has on its way into a dataset.

They hold a blank, so that none is the name of a column that an expression can mean.
"""

from __future__ import annotations

__all__ = ["event_column", "label_column", "raw_column", "value_column"]


def event_column(behaviour: str) -> str:
    """Boolean column of :attr:`infnet.data.log.Log.rows`: the row is an event of the behaviour."""
    return f"event {behaviour}"


def label_column(task: str) -> str:
    """Float64 column of :attr:`infnet.data.log.Log.rows`, null where unobserved."""
    return f"label {task}"


def value_column(feature: str) -> str:
    """Column of :attr:`infnet.data.log.Log.rows`: what a context or candidate feature read."""
    return f"value {feature}"


def raw_column(column: str) -> str:
    """A column of the log as it stands in the file, while expressions see typed ones under the real names."""
    return f"raw {column}"
