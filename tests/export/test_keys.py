from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infnet.errors import DataError
from infnet.export import keys as module
from infnet.export.keys import KeyIndex
from infnet.export.tables import open_array

texts = st.one_of(
    st.integers(0, 10**6).map(str),
    st.integers(0, 10**20).map(str),
    st.text("0123456789", min_size=1, max_size=4),
    st.text("ab01.-\x00é日", min_size=1, max_size=4),
    st.text(min_size=1, max_size=40),
    st.integers(1, 5000).map("x".__mul__),
)
numbers = st.integers(0, 10**18 - 1).map(str)


@pytest.fixture(scope="module")
def index_of(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.npy"

    def make(keys):
        KeyIndex.write(path, pl.Series(keys, dtype=pl.String))
        return KeyIndex(open_array(path))

    return make


def in_order(keys):
    """As preparation orders them."""
    return sorted(keys, key=lambda text: (len(text.encode()), text.encode()))


@given(
    known=st.sets(st.one_of(numbers), max_size=30) | st.sets(texts, max_size=30),
    others=st.sets(texts | numbers, max_size=10),
)
@example({"9", "10"}, {"010", "1٣"})
@example({"a", "a\x00", "\x00"}, {"a\x00\x00", "\x00a"})
@example({"²", "1"}, {"١"})
def test_every_key_is_found_at_its_place_and_no_other_is(index_of, known, others):
    known = {text for text in known if not module._WHOLE.match(text)}  # of which preparation knows one spelling
    ordered, strangers = in_order(known), sorted(text for text in others - known if not module._WHOLE.match(text))
    index = index_of(ordered)
    asked = [*strangers, *ordered, *strangers, *reversed(ordered)]
    places = [*range(1, len(ordered) + 1)]
    wanted = [*[0] * len(strangers), *places, *[0] * len(strangers), *reversed(places)]
    for _ in range(2):  # the second time from memory
        assert index.find(asked).tolist() == wanted
    assert len(index) == len(ordered)


@given(st.sets(numbers | st.text("abé日", min_size=1, max_size=9), min_size=1, max_size=20))
def test_the_key_of_an_index_is_the_one_that_is_found_there(index_of, known):
    index = index_of(in_order(known))
    assert index.find([index.key(place) for place in range(1, len(known) + 1)]).tolist() == [*range(1, len(known) + 1)]


@given(known=st.sets(texts, min_size=1, max_size=20) | st.sets(numbers, min_size=1, max_size=20), data=st.data())
def test_the_keys_of_indices_are_those_that_were_written_there(index_of, known, data):
    ordered = in_order(known)
    places = data.draw(st.lists(st.integers(1, len(ordered)), max_size=30))
    assert index_of(ordered).keys(np.array(places, dtype=np.int32)) == [ordered[place - 1] for place in places]


@pytest.mark.parametrize("known", [["7", "123"], ["7", "123", "seven"]])
def test_a_number_is_one_key_however_it_is_spelt(index_of, known):
    same = [123, "123", 123.0, "123.0", "123.00", np.int64(123), np.int32(123), np.float32(123)]
    index = index_of(known)
    assert index.find(same).tolist() == [2] * len(same)
    assert index.find(["0123", "123.5", 123.5, "+123", " 123", "1_23", -123, float("nan"), ""]).tolist() == [0] * 9


@pytest.mark.parametrize("bad", [None, b"7", ("7",), ["7"], {"7": 1}, Decimal(7)])
def test_what_is_no_key_is_named_with_its_type(index_of, bad):
    with pytest.raises(DataError) as error:
        index_of(["7"]).find(["7", bad])
    assert f"key {bad!r} is of type {type(bad).__name__}, wanted text or an integer" in str(error.value)


def test_what_is_remembered_is_bounded_and_right_beyond_the_bound(index_of, monkeypatch):
    monkeypatch.setattr(module, "_MOST_REMEMBERED", 50)
    index, rng = index_of([str(i) for i in range(1, 1000)]), np.random.default_rng(0)
    for _ in range(100):
        asked = rng.integers(-5, 1100, 20)
        assert index.find(asked.tolist()).tolist() == np.where((asked > 0) & (asked < 1000), asked, 0).tolist()
        assert len(index._remembered) <= 50


def test_threads_that_forget_each_others_keys_find_them_all(index_of, monkeypatch):
    monkeypatch.setattr(module, "_MOST_REMEMBERED", 30)
    index = index_of([str(i) for i in range(1, 500)])

    def find_some(seed):
        asked = np.random.default_rng(seed).integers(1, 500, (200, 10))
        return all(index.find(row.tolist()).tolist() == row.tolist() for row in asked)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(find_some, range(16)))


def test_digits_of_other_scripts_are_text(index_of):
    assert index_of(["1٣"]).find(["1٣", "13"]).tolist() == [1, 0]


@pytest.mark.parametrize("before", [-0.0, True])
def test_what_was_asked_before_changes_nothing(index_of, before):
    index = index_of(["0", "1"])
    assert index.find([before]).tolist() == [0]
    assert index.find([0, 1]).tolist() == [1, 2]


@pytest.mark.parametrize("stranger", ["7.0\n", "\ud800"])
def test_text_that_is_in_no_table_is_unknown(index_of, stranger):
    assert index_of(["7", "a"]).find([stranger]).tolist() == [0]


def test_the_key_of_an_index_is_whole(index_of):
    assert index_of(["a", "a\x00"]).key(2) == "a\x00"
