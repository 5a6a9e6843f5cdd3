"""Served pages in random orders as evidence for what a policy with other weights would have earned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infnet.evaluation.policy_evidence import Evidence
from infnet.experiments.logged_pages import LoggedPages
from infnet.experiments.metrics import parse_metric
from infnet.ranking.policy import Policy
from infnet.ranking.reweighting import CandidateList, Reweighted

__all__ = ["page_evidence"]


def page_evidence(policy: Policy, events: Path, rewards: Sequence[str]) -> Evidence:
    """Rewards by self-normalised inverse propensity: an item counts where a policy would place it as it stood.

    Args:
        policy: Reads only what was logged.
        events: Directory of the event log.
        rewards: Event types, or ``TYPE.value`` for the sum of their values.

    Raises:
        SpecError: A reward is written wrongly.
        DataError: The log has no pages in random orders, or lacks what the policy reads or a reward's events; see also
            :class:`Evidence`.
    """
    read = [LoggedPages.read(events, parse_metric(reward).numerator) for reward in rewards]
    pages = read[0].pages
    read[0].orders(policy)  # says what the log lacks
    lists = Reweighted(
        policy,
        (
            CandidateList(
                {task: np.array(values, dtype=np.float64) for task, values in page.predictions.items()},
                page.fields,
                page.request_fields,
            )
            for page in pages
        ),
    )
    sizes = np.diff(lists.starts)
    stood = np.arange(len(lists.numbers)) - lists.starts[lists.numbers]
    chances = 1.0 / sizes[lists.numbers]
    return Evidence(
        about=f"{len(pages):,} served pages in random orders, by self-normalised inverse propensity",
        lists=lists,
        users=np.unique([page.user_id for page in pages], return_inverse=True)[1].astype(np.intp),
        rewards={name: np.concatenate(one.rewards) for name, one in zip(rewards, read, strict=True)},
        weigh=lambda positions: (positions == stood) / chances,
        is_sampled=True,
    )
