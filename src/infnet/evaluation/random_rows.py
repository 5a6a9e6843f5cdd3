"""Items that users were shown at random, one by one, as decisions that were left to chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infnet.errors import DataError
from infnet.evaluation.logged_lists import LoggedLists
from infnet.ranking.offpolicy import Decisions
from infnet.ranking.policy import Policy

__all__ = ["random_decisions", "shown_rows"]


def shown_rows(policy: Policy, logged: LoggedLists, top: int) -> NDArray[np.bool_]:
    """(n,) rows that a policy, as declared, has among the first ``top`` of their list."""
    positions = logged.lists.positions(np.array([each.weight for each in policy.spec.objectives.values()]))
    shown: NDArray[np.bool_] = (positions >= 0) & (positions < top)
    return shown


def random_decisions(
    logged: LoggedLists, shown: NDArray[np.bool_], top: int, reward: str, predicted: ArrayLike
) -> Decisions:
    """One per exposure: which of the items that chance had drawn for the user.

    Of a list's n items each was as likely to be shown as any other, 1 / n; the policy shows one of those that it places
    first, all alike. So its reward is that of an exposure whose item is its choice from n random ones. Lists of no more
    than ``top`` rows leave no choice, and do not count.

    Args:
        logged: Lists of rows whose items were drawn at random; labels have the reward.
        shown: (n,) what the policy places first, see :func:`shown_rows`.
        top: Of which so many count.
        reward: Name of the label.
        predicted: (n,) a model's reward of each row.

    Raises:
        DataError: No list leaves a choice.
    """
    number, sizes = logged.lists.numbers, logged.sizes
    kept = np.bincount(number, shown, len(sizes))
    expected = np.asarray(predicted, dtype=np.float64)
    share = np.divide(1.0, kept, out=np.zeros(len(sizes)), where=kept > 0)
    expected_wanted = np.bincount(number, shown * expected, len(sizes)) * share
    counts = (sizes > top)[number]
    if not counts.any():
        raise DataError(
            f"no list has more than {int(sizes.max())} rows, so that there is nothing to choose for its first {top}; "
            "give a smaller --top, or --lists user"
        )
    return Decisions.of(
        np.flatnonzero(counts),
        logged.users[number][counts],
        logged.labels[reward][counts],
        (1.0 / sizes)[number][counts],
        (shown * share[number])[counts],
        expected[counts],
        expected_wanted[number][counts],
    )
