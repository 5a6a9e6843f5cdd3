import asyncio
import time

import pytest

from infnet.serving.loop_lag import LoopLag


def lags(*pauses):
    """The lag after each of these pauses, of which the loop was held up in those that are negative."""

    async def measured():
        lag, found = LoopLag(), []
        watching = asyncio.create_task(lag.watch())
        for pause in pauses:
            if pause < 0:
                time.sleep(-pause)
                await asyncio.sleep(0.001)
            else:
                await asyncio.sleep(pause)
            found.append(lag.seconds)
        watching.cancel()
        return found

    return asyncio.run(measured())


def test_a_loop_that_is_held_up_lags_by_so_much_and_soon_no_longer():
    idle, held_up, later = lags(0.05, -0.2, 0.2)
    assert held_up == pytest.approx(0.2, abs=0.02)
    assert idle < held_up / 4
    assert later < held_up / 4


def test_before_anybody_looks_there_is_no_lag():
    assert LoopLag().seconds == 0.0
