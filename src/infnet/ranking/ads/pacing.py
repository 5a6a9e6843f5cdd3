"""Budget pacing: campaigns spend their day's budget along a plan instead of in its first hours.

The plan follows the expected traffic, evenly or by hourly shares (Agarwal, Ghosh, Wei and You, "Budget Pacing for
Targeted Online Advertisements at LinkedIn", KDD 2014). Every so many seconds a PID controller, as in Zhang et al.,
"Feedback Control of Real-Time Display Advertising", WSDM 2016, corrects the campaign's pace:

    error = (planned - spent) / (planned + 1% of the budget), within [-1, 1]
    log pace += proportional * (error - error before) + integral * error + derivative * (second difference)

and the pace is kept within [lowest, 1], so that nothing winds up while it cannot have its way. Either bids are
multiplied by the pace, or it is the probability of taking part in an auction at all, which is what LinkedIn does.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from infnet.errors import DataError
from infnet.ranking.ads.spec import Pacing

__all__ = ["Pacer"]

_DAY_S = 86400.0
_SLACK = 0.01
"""Of the budget; the plan of a day's first minutes is so small that any impression would be far beyond it."""


@dataclass
class _Campaign:
    budget: float
    log_pace: float
    day: int = 0
    spent: float = 0.0
    step: int = 0
    error: float = 0.0
    error_before: float = 0.0


class Pacer:
    """Paces of campaigns; safe to use from several threads. Times are in seconds since 1970.

    Args:
        spec: The plan and the gains.
    """

    def __init__(self, spec: Pacing | None = None) -> None:
        self.spec = spec or Pacing()
        hours = self.spec.hourly_traffic or (1.0,) * 24
        total = sum(hours)
        if total <= 0:
            raise DataError("hourly_traffic is 0 all day; give the traffic of at least one hour")
        self._planned = [0.0, *(done / total for done in accumulate(hours))]
        self._campaigns: dict[str, _Campaign] = {}
        self._lock = threading.Lock()

    def set_budget(self, campaign: str, amount: float) -> None:
        """What a campaign may spend each day, from today on; what it has spent today stays spent.

        Raises:
            DataError: It is not positive and finite.
        """
        if not (amount > 0 and math.isfinite(amount)):
            raise DataError(f"budget of campaign '{campaign}' is {amount}, wanted more than 0")
        with self._lock:
            known = self._campaigns.get(campaign)
            if known is None:
                self._campaigns[campaign] = _Campaign(float(amount), math.log(self.spec.first))
            else:
                known.budget = float(amount)

    def multiplier(self, campaign: str, time_s: float) -> float:
        """A campaign's pace, within [lowest, 1]; 0 once today's budget is spent, and 1 without a budget."""
        with self._lock:
            state = self._today(campaign, time_s)
            if state is None:
                return 1.0
            if state.spent >= state.budget:
                return 0.0
            step = int(self._second(time_s) / self.spec.every_s)
            if step > state.step:
                self._correct(state, time_s)
                state.step = step
            return math.exp(state.log_pace)

    def factor(self, campaign: str, time_s: float, drawn: float) -> float:
        """What a campaign's bid is multiplied by in one auction.

        Args:
            campaign: Its id.
            time_s: Of the auction.
            drawn: A random number in [0, 1); decides about taking part where the method is ``throttle``.
        """
        pace = self.multiplier(campaign, time_s)
        return pace if self.spec.method == "bid" else float(drawn < pace)

    def spent(self, campaign: str, amount: float, time_s: float) -> None:
        """A campaign is charged; nothing is noted of one without a budget, or for a day that is over."""
        with self._lock:
            state = self._today(campaign, time_s)
            if state is not None and self._day(time_s) == state.day:
                state.spent += amount

    def snapshot(self) -> dict[str, dict[str, float]]:
        """All state, by campaign, as JSON can hold it."""
        with self._lock:
            return {campaign: asdict(state) for campaign, state in self._campaigns.items()}

    @classmethod
    def restore(cls, snapshot: Mapping[str, Mapping[str, Any]], spec: Pacing | None = None) -> Pacer:
        """A pacer that goes on where another one was.

        Raises:
            DataError: It is no snapshot.
        """
        pacer = cls(spec)
        try:
            pacer._campaigns = {campaign: _Campaign(**state) for campaign, state in snapshot.items()}
        except (TypeError, AttributeError) as error:
            raise DataError(f"is no snapshot of a pacer ({error}); start without one") from error
        return pacer

    def _today(self, campaign: str, time_s: float) -> _Campaign | None:
        """A campaign's state; on a new day with nothing spent, at the pace it ended the last one with."""
        state = self._campaigns.get(campaign)
        if state is not None and (day := self._day(time_s)) > state.day:
            state.day, state.step = day, 0
            state.spent = state.error = state.error_before = 0.0
        return state

    def _correct(self, state: _Campaign, time_s: float) -> None:
        planned = self.planned_share(time_s)
        error = (planned - state.spent / state.budget) / (planned + _SLACK)
        error = min(max(error, -1.0), 1.0)
        change = self.spec.proportional * (error - state.error) + self.spec.integral * error
        change += self.spec.derivative * (error - 2 * state.error + state.error_before)
        state.log_pace = min(max(state.log_pace + change, math.log(self.spec.lowest)), 0.0)
        state.error, state.error_before = error, state.error

    def planned_share(self, time_s: float) -> float:
        """Of a day's budget, what is to be spent until a time of the day."""
        hour = self._second(time_s) / 3600.0
        whole = min(int(hour), 23)
        before, after = self._planned[whole], self._planned[whole + 1]
        return before + (hour - whole) * (after - before)

    def _day(self, time_s: float) -> int:
        return math.floor((time_s - 3600.0 * self.spec.day_starts_at_hour) / _DAY_S)

    def _second(self, time_s: float) -> float:
        return (time_s - 3600.0 * self.spec.day_starts_at_hour) % _DAY_S
