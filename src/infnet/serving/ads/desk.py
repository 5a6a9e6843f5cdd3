"""What a request's auction goes by: paces, spending, and what the user has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from infnet.ranking.ads.market import Standing
from infnet.ranking.ads.pacing import Pacer
from infnet.ranking.ads.sales import AdSales
from infnet.ranking.ads.spec import Pacing
from infnet.serving.ads.spending import Spending
from infnet.serving.clock import Clock
from infnet.serving.feature_store.accounts import Accounts
from infnet.serving.features import Known

__all__ = ["AdDesk"]

_AHEAD_S = 60.0


class AdDesk:
    """One for all policies; safe to use from several threads.

    Policies that declare the same pacing share their campaigns' paces, so that a changed policy and the variants of an
    experiment go on with them. Spending is shared by all whose days begin at the same hour.

    Args:
        accounts: Of the store.
        policies: Gives the live ``ads`` sections.
        clock: Says which day it is; the machine's by default.

    Attributes:
        spending: To be started.
    """

    def __init__(
        self, accounts: Accounts, policies: Callable[[], Iterable[AdSales]], clock: Clock | None = None
    ) -> None:
        self._policies, self._clock = policies, clock or Clock()
        self._pacers: dict[Pacing, Pacer] = {}
        self.spending = Spending(accounts, self._days)

    def pacer(self, ads: AdSales) -> Pacer:
        """Of a policy's campaigns."""
        spec = ads.spec.pacing
        return self._pacers.get(spec) or self._pacers.setdefault(spec, Pacer(spec))

    def day_ms(self, ads: AdSales, time_ms: int) -> int:
        """When the day of budgets began that a time lies in."""
        return self.pacer(ads).day_start_ms(time_ms / 1000)

    def standing(self, ads: AdSales, known: Known, time_ms: int, seed: int) -> Standing:
        """How a user and campaigns stand at a time."""
        spent = None if ads.spec.budget is None else self.spending.of(self.day_ms(ads, time_ms))
        return Standing(time_ms / 1000, spent, known.seen, seed)

    def _days(self) -> set[int]:
        """Those that have begun or are about to, of policies with budgets."""
        now = self._clock.now_ms() / 1000
        pacers = [self.pacer(ads) for ads in self._policies() if ads.spec.budget is not None]
        return {pacer.day_start_ms(at) for pacer in pacers for at in (now, now + _AHEAD_S)}
