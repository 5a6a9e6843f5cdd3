"""Lists of items that users were shown one by one, as evidence for what a policy's order of them is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.data.dataset import Dataset, SplitRows
from infnet.data.sessions import SessionGrouping, group_sessions
from infnet.errors import DataError, SpecError, did_you_mean
from infnet.evaluation.policy_evidence import Evidence
from infnet.evaluation.predictions import Predictions
from infnet.ranking.policy import Policy
from infnet.ranking.rerank.spec import AtMost, Spacing
from infnet.ranking.reweighting import CandidateList, Reweighted

__all__ = ["ListKind", "LoggedLists", "check_logged", "logged_evidence", "logged_lists"]

ListKind: TypeAlias = Literal["day", "session", "user"]
"""Whose rows make a list: a user's of one day (UTC), of one session (until a pause of half an hour), or all of them."""

_DAY_MS = 86_400_000
_OF_KIND = {"day": "in a day", "session": "in a session", "user": "in all"}


@dataclass(frozen=True)
class LoggedLists:
    """What users were shown one by one, in lists that a policy orders; G lists, n rows."""

    lists: Reweighted
    users: NDArray[np.intp]
    """(G,) the user of each list, numbered from 0."""
    labels: Mapping[str, NDArray[np.float64]]
    """(n,) by task; 0 where it was not observed."""

    @property
    def sizes(self) -> NDArray[np.intp]:
        """(G,) rows of each list."""
        return np.diff(self.lists.starts)


def logged_lists(
    policy: Policy,
    dataset: Dataset,
    split: str,
    found: Predictions,
    rewards: Sequence[str],
    *,
    kind: ListKind = "day",
    limit: int | None = None,
) -> LoggedLists:
    """Make lists of logged rows.

    Args:
        policy: For the tasks that were predicted; reads nothing but predictions.
        dataset: With the split.
        split: Its name.
        found: What a model predicted of the split's rows, in their order.
        rewards: Names of labels.
        kind: Whose rows make a list.
        limit: Positions of a list that matter, all by default.

    Raises:
        SpecError: A reward is no label of the dataset, or the policy reads what logged rows do not have.
        DataError: Predictions are no finite numbers, or there are no rows.
    """
    compared = check_logged(policy, dataset, rewards)
    if not np.isfinite(found.scores).all():
        raise DataError(f"split '{split}': predictions are no finite numbers; train again with a lower learning rate")
    rows = dataset.rows(split)
    starts = _starts(rows, kind)
    lists = Reweighted(policy, _lists(found, _values(dataset, rows, compared), starts), limit)
    labels = np.nan_to_num(found.labels.astype(np.float64), nan=0.0)
    return LoggedLists(
        lists,
        np.unique(rows.user[starts[:-1]], return_inverse=True)[1].astype(np.intp),
        {name: labels[:, found.tasks.index(name)] for name in rewards},
    )


def logged_evidence(
    policy: Policy,
    dataset: Dataset,
    split: str,
    found: Predictions,
    rewards: Sequence[str],
    *,
    top: int = 10,
    discounted: bool = False,
    kind: ListKind = "day",
) -> Evidence:
    """What the first positions earn when a policy orders what users were shown on a day, or in a session.

    A label that was not observed counts as nothing earned. Constraints and diversity compare categories of the item
    or the candidate as the model reads them: values that are missing or were unknown in training are alike to nothing.

    Args:
        policy: For the tasks that were predicted; reads nothing but predictions.
        dataset: With the split.
        split: Its name.
        found: What a model predicted of the split's rows, in their order.
        rewards: Names of labels.
        top: Positions that count.
        discounted: Position p counts 1 / log2(p + 1) instead of 1.
        kind: Whose rows make a list.

    Raises:
        SpecError: A reward is no label of the dataset, or the policy reads what logged rows do not have.
        DataError: Every list is too short for its order to matter, predictions are no finite numbers, or see
            :class:`Evidence`.
    """
    logged = logged_lists(policy, dataset, split, found, rewards, kind=kind, limit=top)
    sizes = logged.sizes
    longest = int(sizes.max())
    if longest <= (1 if discounted else top):
        raise DataError(
            f"split '{split}': no list has more than {longest} rows, so that every order of it earns the same in its "
            f"first {top}; give a smaller --top, or --discounted"
        )
    gains = 1.0 / np.log2(np.arange(2, top + 2)) if discounted else np.ones(top)
    gains = np.append(gains, 0.0)  # read at -1: not shown
    counted = f"first {top} positions, discounted," if discounted else f"first {top} positions"
    choice = int((sizes > (1 if discounted else top)).sum())
    shown = f"{len(sizes):,} lists, what a user was shown {_OF_KIND[kind]}"
    return Evidence(
        about=f"{counted} of {shown}; in {choice:,} of them order matters",
        lists=logged.lists,
        users=logged.users,
        rewards=logged.labels,
        weigh=lambda positions: gains[positions],
        is_sampled=False,
    )


def check_logged(policy: Policy, dataset: Dataset, rewards: Sequence[str]) -> list[str]:
    """See that a dataset's rows have what is asked of them, before they are scored.

    Returns:
        Fields of the policy that are compared by equality.

    Raises:
        SpecError: A reward is no label, or the policy reads a field that logged rows do not have.
    """
    for name in rewards:
        if name not in dataset.layout.task_names:
            labels = did_you_mean(name, dataset.layout.task_names)
            raise SpecError(f"'{name}' is no label of {dataset.path}{labels}")
    spec = policy.spec
    compared = [each.per for each in spec.constraints if isinstance(each, AtMost | Spacing)]
    compared += [] if spec.diversity is None else spec.diversity.by or ()
    layout = dataset.layout
    known = {f.name for side in ("item", "candidate") for f in layout.side(side) if f.storage != "dense"}
    read = {each.item for each in policy.inputs.values() if each.item}
    for field in policy.request_fields:
        raise _no_field(policy, "request", field)
    for field in policy.item_fields:
        if field in read or field not in compared:
            raise _no_field(policy, "item", field)
        if field not in known:
            raise SpecError(
                f"policy '{spec.name}' compares items by '{field}', which is no category of items in {dataset.path}"
                f"{did_you_mean(field, known)}; leave the constraint out, or judge by served pages: --events DIR"
            )
    return list(dict.fromkeys(compared))


def _starts(rows: SplitRows, kind: ListKind) -> NDArray[np.int64]:
    """(G + 1,) where lists begin among rows, which are sorted by user and time."""
    if kind == "session":
        return group_sessions(rows.user, rows.time, (), SessionGrouping(max_candidates=max(2, len(rows)))).starts
    day = rows.time // _DAY_MS if kind == "day" else np.zeros(len(rows), dtype=np.int64)
    is_new = (np.diff(rows.user) != 0) | (np.diff(day) != 0)
    return np.concatenate([[0], np.flatnonzero(is_new) + 1, [len(rows)]]).astype(np.int64)


def _lists(
    found: Predictions, items: Mapping[str, list[list[int]]], starts: NDArray[np.int64]
) -> Iterator[CandidateList]:
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        predictions = dict(zip(found.tasks, found.scores[start:end].T, strict=True))
        yield CandidateList(predictions, {name: values[start:end] for name, values in items.items()})


def _no_field(policy: Policy, what: str, field: str) -> SpecError:
    return SpecError(
        f"policy '{policy.spec.name}' reads the {what} field '{field}', and logged rows have predictions alone; judge "
        "by served pages, which keep such fields: --events DIR"
    )


def _values(dataset: Dataset, rows: SplitRows, fields: Sequence[str]) -> dict[str, list[list[int]]]:
    """By field the values of each row, without unknown and missing ones."""
    layout = dataset.layout
    reserved = {-1, *(row for each in layout.vocabularies for row in (each.first, each.first + 1))}
    values = {}
    for field in fields:
        if field in layout.id_columns("item"):
            ids = dataset.items.ids[rows.item, layout.id_columns("item")[field]]
        else:
            ids = rows.candidate[:, layout.id_columns("candidate")[field]]
        values[field] = [[value for value in row if value not in reserved] for row in ids.tolist()]
    return values
