import itertools
import threading
import time

import pytest

from infnet.training.prefetch import Prefetcher


def threads():
    return [t for t in threading.enumerate() if t.name == "infnet-prefetch"]


@pytest.mark.parametrize("size", [0, 1, 3])
def test_items_come_in_order_and_then_end(size):
    with Prefetcher(iter(range(20)), size) as items:
        assert list(items) == list(range(20))
        assert list(items) == []
    assert not threads()


@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_error_is_raised_at_its_place_and_the_thread_ends(size):
    def broken():
        yield 1
        yield 2
        raise KeyError("third")

    with Prefetcher(broken(), size) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(KeyError, match="third"):
            next(items)
    assert not threads()


def test_no_more_than_size_items_are_made_ahead():
    made = []

    def count():
        for i in itertools.count():
            made.append(i)
            yield i

    with Prefetcher(count(), 2) as items:
        next(items)
        time.sleep(0.3)
        assert len(made) <= 1 + 2 + 1  # taken, ready, and one waiting for room


def test_leaving_early_ends_the_thread():
    with Prefetcher(itertools.count(), 2) as items:
        next(items)
        assert threads()
    assert not threads()


def test_an_error_in_the_body_ends_the_thread():
    with pytest.raises(ValueError, match="body"), Prefetcher(itertools.count(), 2):
        raise ValueError("body")
    assert not threads()
