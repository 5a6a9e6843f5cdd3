"""From sales to charges: what was sold is told to the store, and paid for when its impression comes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import msgspec
import structlog

from infnet.errors import StoreError
from infnet.serving.events import IMPRESSION, Event, Sale, Served
from infnet.serving.exposure import ExposureMemory
from infnet.serving.feature_store.accounts import KEPT_MS, SOLD_MS, Charge, exposure_id
from infnet.serving.feature_store.base import FeatureStore, HistoryEvent
from infnet.serving.features import seen_as
from infnet.serving.metrics import ServiceMetrics

__all__ = ["Billing"]

_log = structlog.get_logger(__name__)
_PAUSE_S = 0.1
_WAITING = 100_000
"""Requests whose sales may wait for the store."""
_AT_A_TIME = 1000


class Billing:
    """Charges an ad's impression once, however often it is told, and notes that its user saw it.

    A sale is known to the process that made it at once, and by way of the store, for an hour, to all others: a thread
    writes it there while the answer is on its way.

    Args:
        store: Gets sales, charges and what users saw.
        memory: Of what this process served.
        metrics: Counts impressions and revenue.
        has_ads: Says whether any policy sells ads; as long as none has, nobody asks the store for sales.
    """

    def __init__(
        self, store: FeatureStore, memory: ExposureMemory, metrics: ServiceMetrics, has_ads: Callable[[], bool]
    ) -> None:
        self._store, self._memory, self._metrics = store, memory, metrics
        self._has_ads, self._had_ads = has_ads, False
        self._waiting: OrderedDict[str, Mapping[str, Sale]] = OrderedDict()
        self._condition = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="ad-sales", daemon=True)

    def start(self) -> None:
        """Begin to tell the store."""
        self._thread.start()

    def close(self) -> None:
        """Tell it what waits, and end."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def sold(self, request_id: str, sales: Mapping[str, Sale]) -> None:
        """Take note of what a request sold."""
        if not sales:
            return
        with self._condition:
            self._waiting[request_id] = sales
            if len(self._waiting) > _WAITING:
                self._waiting.popitem(last=False)
            self._condition.notify()

    def recall(self, requests: Sequence[Served], now_ms: int) -> None:
        """Take note of what an earlier life sold, which may not have come to tell the store."""
        for served in requests:
            if served.time_ms > now_ms - SOLD_MS:
                self.sold(served.request_id, served.sales)

    def with_own(self, events: Sequence[Event]) -> list[Event]:
        """Events with the sales of those that are impressions of ads which this process sold."""
        return [_with_sale(event, self._memory.sales_of(event.request_id)) for event in events]

    def with_others(self, events: Sequence[Event]) -> list[Event]:
        """Events with the sales of other processes.

        Raises:
            StoreError: There may be some, and the store does not say.
        """
        self._had_ads = self._had_ads or self._has_ads()
        if not self._had_ads:
            return [*events]
        asked = {e.request_id for e in events if _is_unsold(e) and self._memory.sales_of(e.request_id) is None}
        strangers = sorted(asked)
        sales = dict(zip(strangers, self._store.accounts.sales_of(strangers), strict=True)) if strangers else {}
        return [_with_sale(event, sales.get(event.request_id)) for event in events]

    def apply(self, events: Sequence[Event]) -> None:
        """Charge impressions, and note who saw what. It may be done again, whether it failed or not.

        Raises:
            StoreError: The store fails.
        """
        charges, seen = list[Charge](), list[HistoryEvent]()
        for event in events:
            sale = event.sale
            if sale is msgspec.UNSET or sale.day_ms + KEPT_MS <= event.received_ms:
                continue
            exposure = exposure_id(event.request_id, event.item_id)
            charges.append(Charge(exposure, sale.campaign, sale.day_ms, sale.price))
            if event.user_id is not None:
                order = int.from_bytes(exposure[:8]) >> 1
                seen += (
                    HistoryEvent(event.user_id, seen_as(field), key, sale.time_ms, order)
                    for field, keys in sale.keys.items()
                    for key in keys
                )
        for first in range(0, len(charges), _AT_A_TIME):
            some = charges[first : first + _AT_A_TIME]
            new = [each for each, is_new in zip(some, self._store.accounts.charge(some), strict=True) if is_new]
            self._metrics.ad_impressions.inc(len(new))
            self._metrics.ad_revenue.inc(sum(each.amount for each in new))
        if seen:
            self._store.append(seen)

    def flush(self) -> None:
        """Tell the store what waits.

        Raises:
            StoreError: It fails; what waited still does.
        """
        with self._condition:
            some = dict(islice(self._waiting.items(), _AT_A_TIME))
        if not some:
            return
        self._store.accounts.put_sales(some)
        with self._condition:
            for request_id, sales in some.items():
                if self._waiting.get(request_id) is sales:
                    del self._waiting[request_id]

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._is_closing)
                if self._is_closing and not self._waiting:
                    return
            try:
                self.flush()
            except StoreError:
                with self._condition:
                    if self._is_closing:
                        return
                    self._condition.wait_for(lambda: self._is_closing, _PAUSE_S)
            except Exception:
                _log.exception("ad_sales_failed")
                with self._condition:
                    self._waiting.clear()


def _is_unsold(event: Event) -> bool:
    """Whether an event may be an ad's impression whose sale is not known."""
    return event.type == IMPRESSION and event.value > 0 and event.sale is msgspec.UNSET


def _with_sale(event: Event, sales: Mapping[str, Sale] | None) -> Event:
    sale = sales.get(event.item_id) if sales and _is_unsold(event) else None
    return event if sale is None else msgspec.structs.replace(event, sale=sale)
