"""Pages whose order was left to chance, from the log of a service, and what other policies would have made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.errors import DataError, did_you_mean
from infnet.experiments.metrics import Measure
from infnet.ranking.offpolicy import Decisions
from infnet.ranking.policy import Policy
from infnet.serving.events import Served
from infnet.serving.log_reader import read_events
from infnet.serving.segments import read_complete, segments

__all__ = ["LoggedPages"]


@dataclass(frozen=True)
class LoggedPages:
    """Pages that were delivered in a random order, and what each item earned at its position.

    Given the items of a page, each of them stood at each position with the same chance. So a page tells what another
    order of the same items would have earned, as far as an item's reward depends on its own position alone.
    """

    directory: Path
    reward: Measure
    pages: Sequence[Served]
    rewards: Sequence[NDArray[np.float64]]
    """(n,) of each page, by position."""

    @classmethod
    def read(cls, directory: Path, reward: Measure) -> LoggedPages:
        """Read a log.

        Args:
            directory: Of the event log.
            reward: What an item earns: ``click`` for 1 if there was an event of that type, ``watch_time.value`` for the
                sum of their values.

        Raises:
            DataError: There is no log, no page was left to chance, or nothing was ever earned.
        """
        if not (directory / "served").is_dir():
            raise DataError(f"{directory / 'served'}: is no directory; give the directory of an event log")
        pages = list({page.request_id: page for page in _random_pages(directory)}.values())
        if not pages:
            raise DataError(
                f"{directory}: no page was answered in a random order; serve with a policy that has "
                "exploration: {share: 0.01} for a while"
            )
        events = read_events(directory).events
        earned = _earned(events, reward)
        if not earned:
            known = sorted(events["type"].unique())
            raise DataError(f"{directory}: no event is of type '{reward.event}'{did_you_mean(reward.event, known)}")
        rewards = [
            np.array([earned.get((page.request_id, item), 0.0) for item in page.items], dtype=np.float64)
            for page in pages
        ]
        return cls(directory, reward, pages, rewards)

    @property
    def has_model(self) -> bool:
        """Whether the served model predicted the reward."""
        return all(self.reward.event in page.predictions for page in self.pages)

    def orders(self, policy: Policy) -> list[NDArray[np.intp]]:
        """By page the places that a policy gives its items; shorter where it does not show all.

        Raises:
            DataError: The log lacks a field, or a page the prediction of a task, that the policy reads.
        """
        known = {field for page in self.pages for field in page.fields}
        for field in policy.item_fields:
            if field not in known:
                raise DataError(
                    f"{self.directory}: no page has the field '{field}', which policy '{policy.spec.name}' reads; "
                    "serve for a while with a policy that reads it"
                )
        return [_order(policy, page) for page in self.pages]

    def decisions(self, orders: Sequence[NDArray[np.intp]]) -> Decisions:
        """One per page and position: whether a policy with these orders would have put the same item there."""
        sizes = [len(reward) for reward in self.rewards]
        wanted, factor = [], self._factors()
        expected, expected_wanted = [], []
        for page, order, size in zip(self.pages, orders, sizes, strict=True):
            same = np.zeros(size)
            same[: len(order)] = order == np.arange(len(order))
            wanted.append(same)
            predicted = np.array(page.predictions[self.reward.event]) if factor is not None else np.zeros(size)
            scale = np.zeros(size) if factor is None else factor[:size]
            expected.append(predicted * scale)
            other = np.zeros(size)
            other[: len(order)] = predicted[order] * scale[: len(order)]
            expected_wanted.append(other)
        return Decisions.of(
            np.repeat(np.arange(len(sizes)), sizes),
            np.repeat([page.user_id for page in self.pages], sizes),
            np.concatenate(self.rewards),
            np.repeat(1.0 / np.maximum(sizes, 1), sizes),
            np.concatenate(wanted),
            np.concatenate(expected),
            np.concatenate(expected_wanted),
        )

    def _factors(self) -> NDArray[np.float64] | None:
        """By position what is earned there over what is predicted: people look at the first ones most."""
        if not self.has_model:
            return None
        longest = max(len(reward) for reward in self.rewards)
        earned, predicted = np.zeros(longest), np.full(longest, 1e-9)
        for page, reward in zip(self.pages, self.rewards, strict=True):
            earned[: len(reward)] += reward
            predicted[: len(reward)] += page.predictions[self.reward.event]
        factors: NDArray[np.float64] = earned / predicted
        return factors


def _random_pages(directory: Path) -> list[Served]:
    found = []
    for segment in segments(directory / "served"):
        for line in read_complete(segment.path).splitlines():
            if b'"is_random":true' not in line:
                continue
            try:
                page = msgspec.json.decode(line, type=Served)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if page.items:
                found.append(page)
    return found


def _earned(events: pl.DataFrame, reward: Measure) -> Mapping[tuple[str, str], float]:
    mine = events.filter((pl.col("type") == reward.event) & (pl.col("value") > 0)).unique("event_id", keep="first")
    amount = pl.col("value").sum() if reward.sum == "value" else pl.lit(1.0)
    sums = mine.group_by("request_id", "item_id").agg(amount=amount.first() if reward.sum == "count" else amount)
    return {(request, item): value for request, item, value in sums.iter_rows()}


def _order(policy: Policy, page: Served) -> NDArray[np.intp]:
    for each in policy.inputs.values():
        if each.task is not None and each.task not in page.predictions:
            raise DataError(
                f"request '{page.request_id}' was answered by a model that does not predict '{each.task}'; "
                "compare policies of the tasks that it has"
            )
    predictions = {task: np.array(values, dtype=np.float64) for task, values in page.predictions.items()}
    scored = policy.score(predictions, page.fields, page.request_fields)
    if policy.reranker.wants_vectors:
        raise DataError("the log has no vectors of items, which 'diversity' compares; declare the fields it is 'by'")
    return policy.reranker.order(scored.scores, scored.columns, page.fields, len(page.items)).places
