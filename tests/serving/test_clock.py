import time

import pytest

from infnet.errors import DataError
from infnet.serving.clock import Clock


def test_a_service_of_its_own_clock_is_told_nothing():
    clock, before = Clock(), time.time_ns() // 1_000_000
    assert before <= clock.now_ms() <= clock.told(1) <= clock.of_request(None) <= time.time_ns() // 1_000_000
    with pytest.raises(DataError, match="goes by its own clock; leave it out"):
        clock.of_request(1)


def test_one_that_replays_is_at_the_latest_time_that_it_was_told():
    clock = Clock(replays=True)
    assert abs(clock.now_ms() - time.time_ns() // 1_000_000) < 10_000
    assert clock.of_request(5000) == clock.now_ms() == 5000
    assert clock.told(7000) == 7000
    assert clock.of_request(6000) == 6000  # a request that came late was made when it says
    assert clock.now_ms() == clock.told(None) == clock.of_request(None) == 7000
