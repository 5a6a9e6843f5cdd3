"""Lists of items that users were shown one by one, as evidence for what a policy's order of them is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

__all__ = ["ListKind", "check_logged", "logged_evidence"]

ListKind: TypeAlias = Literal["day", "session"]

_DAY_MS = 86_400_000


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
        kind: ``day``: a user's rows of one day (UTC). ``session``: until a pause of half an hour.

    Raises:
        SpecError: A reward is no label of the dataset, or the policy reads what logged rows do not have.
        DataError: Every list is too short for its order to matter, predictions are no finite numbers, or see
            :class:`Evidence`.
    """
    compared = check_logged(policy, dataset, rewards)
    if not np.isfinite(found.scores).all():
        raise DataError(f"split '{split}': predictions are no finite numbers; train again with a lower learning rate")
    rows = dataset.rows(split)
    starts = _starts(rows, kind)
    longest = int(np.diff(starts).max(initial=0))
    if longest <= (1 if discounted else top):
        raise DataError(
            f"split '{split}': no list has more than {longest} rows, so that every order of it earns the same in its "
            f"first {top}; give a smaller --top, or --discounted"
        )
    items = _values(dataset, rows, compared)
    lists = Reweighted(policy, _lists(found, items, starts), top)
    gains = 1.0 / np.log2(np.arange(2, top + 2)) if discounted else np.ones(top)
    gains = np.append(gains, 0.0)  # read at -1: not shown
    labels = np.nan_to_num(found.labels.astype(np.float64), nan=0.0)
    of_kind = "day" if kind == "day" else "session"
    counted = f"first {top} positions, discounted," if discounted else f"first {top} positions"
    choice = int((np.diff(starts) > (1 if discounted else top)).sum())
    about = (
        f"{counted} of {len(lists):,} lists, what a user was shown in a {of_kind}; in {choice:,} of them order matters"
    )
    return Evidence(
        about=about,
        lists=lists,
        users=np.unique(rows.user[starts[:-1]], return_inverse=True)[1].astype(np.intp),
        rewards={name: labels[:, found.tasks.index(name)] for name in rewards},
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
            raise SpecError(f"--objectives: '{name}' is no label of {dataset.path}{labels}")
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
    day = rows.time // _DAY_MS
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
