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
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate

from infnet.errors import DataError
from infnet.ranking.ads.spec import Pacing

__all__ = ["Pacer"]

_DAY_S = 86400.0
_SLACK = 0.01
"""Of the budget; the plan of a day's first minutes is so small that any impression would be far beyond it."""
_REMEMBERED = 100_000
"""Campaigns; of more, those asked for longest ago begin anew."""


@dataclass
class _Campaign:
    log_pace: float
    day: int
    step: int = 0
    error: float = 0.0
    error_before: float = 0.0


class Pacer:
    """Paces of campaigns; safe to use from several threads. Times are in seconds since 1970.

    What campaigns have spent is told to it whenever it is asked: it holds their paces alone.

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
        self._campaigns: OrderedDict[str, _Campaign] = OrderedDict()
        self._lock = threading.Lock()

    def pace(self, campaign: str, budget: float, spent: float, time_s: float) -> float:
        """A campaign's pace, within [lowest, 1]; 0 once its budget is spent.

        Args:
            campaign: Its id.
            budget: Of a day.
            spent: Of it since the day began.
            time_s: Now.

        Raises:
            DataError: The budget is not positive and finite.
        """
        if not (budget > 0 and math.isfinite(budget)):
            raise DataError(f"budget of campaign '{campaign}' is {budget}, wanted more than 0")
        with self._lock:
            state = self._today(campaign, time_s)
            if spent >= budget:
                return 0.0
            step = int(self._second(time_s) / self.spec.every_s)
            if step > state.step:
                self._correct(state, spent / budget, time_s)
                state.step = step
            return math.exp(state.log_pace)

    def day_start_ms(self, time_s: float) -> int:
        """When the day of budgets began that a time lies in, in ms since 1970."""
        return round(1000 * (self._day(time_s) * _DAY_S + 3600.0 * self.spec.day_starts_at_hour))

    def planned_share(self, time_s: float) -> float:
        """Of a day's budget, what is to be spent until a time of the day."""
        hour = self._second(time_s) / 3600.0
        whole = min(int(hour), 23)
        before, after = self._planned[whole], self._planned[whole + 1]
        return before + (hour - whole) * (after - before)

    def _today(self, campaign: str, time_s: float) -> _Campaign:
        """A campaign's state; on a new day at the pace that it ended the last one with."""
        day, state = self._day(time_s), self._campaigns.get(campaign)
        if state is None:
            state = self._campaigns[campaign] = _Campaign(math.log(self.spec.first), day)
            if len(self._campaigns) > _REMEMBERED:
                self._campaigns.popitem(last=False)
        elif day > state.day:
            state.day, state.step = day, 0
            state.error = state.error_before = 0.0
        self._campaigns.move_to_end(campaign)
        return state

    def _correct(self, state: _Campaign, spent_share: float, time_s: float) -> None:
        planned = self.planned_share(time_s)
        error = (planned - spent_share) / (planned + _SLACK)
        error = min(max(error, -1.0), 1.0)
        change = self.spec.proportional * (error - state.error) + self.spec.integral * error
        change += self.spec.derivative * (error - 2 * state.error + state.error_before)
        state.log_pace = min(max(state.log_pace + change, math.log(self.spec.lowest)), 0.0)
        state.error, state.error_before = error, state.error

    def _day(self, time_s: float) -> int:
        return math.floor((time_s - 3600.0 * self.spec.day_starts_at_hour) / _DAY_S)

    def _second(self, time_s: float) -> float:
        return (time_s - 3600.0 * self.spec.day_starts_at_hour) % _DAY_S
