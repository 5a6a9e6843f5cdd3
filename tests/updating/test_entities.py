import itertools
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_partitions import write_part

from infnet.data.dataset import History
from infnet.data.encoders import Encoder
from infnet.errors import DataError
from infnet.features import MISSING, UNKNOWN
from infnet.updating.entities import GivenTable, MovedRows, renumbered
from infnet.updating.growth import grow
from infnet.updating.reading import ReadSamples
from infnet.updating.samples import collect_samples
from infnet.updating.vocabularies import Relisting


@pytest.fixture(scope="module")
def encoder(dataset):
    return Encoder.load(dataset.path)


@pytest.fixture
def read(catalogue, tmp_path):
    """Makes samples of (request, sample) pairs; of the requests named, the rows are held out."""
    numbers = itertools.count()

    def make(pairs, held=()):
        directory = write_part(tmp_path / f"samples{next(numbers)}", 1, pairs)
        samples = collect_samples(directory, catalogue.spec, since_part=0, holdout=0.0)
        places = samples.requests.select(request=pl.int_range(pl.len()), id="request_id")
        is_held = samples.rows.join(places, on="request", maintain_order="left")["id"].is_in([*held])
        samples = replace(samples, rows=samples.rows.with_columns(is_valid=is_held))
        return ReadSamples.read(samples, catalogue.encoder, catalogue.item_values)

    return make


def changed(pair, request=None, **sample):
    return (pair[0] | (request or {}), pair[1] | sample)


def meaning_by_row(encoder):
    """What every embedding row stands for."""
    found = {0: (None, "nobody")}
    for vocabulary in encoder.vocabularies:
        found |= {vocabulary.first + offset: (vocabulary.name, offset) for offset in (UNKNOWN, MISSING)}
        found |= {row: (vocabulary.name, value) for value, row in encoder.values(vocabulary.name).rows()}
    return found


@given(data=st.data())
def test_rows_keep_their_meaning_when_values_come_and_go(encoder, data):
    listed = {}
    for name in data.draw(st.sets(st.sampled_from(["user", "tab", "item", "author", "tag", "reasons"]))):
        known = encoder.values(name)["value"].to_list()
        values = data.draw(st.lists(st.sampled_from([*known, *(f"new {i}" for i in range(5))]), unique=True))
        listed[name] = pl.Series(values, dtype=pl.String)
    relisted, origin = encoder.relisted(listed)
    rows = MovedRows(encoder, Relisting(relisted, origin, {}, {}, pl.DataFrame()))
    before, after = meaning_by_row(encoder), meaning_by_row(relisted)
    row_of = {meaning: row for row, meaning in after.items()}
    assert len(row_of) == relisted.num_rows
    wanted = [row_of.get(before[row], row_of.get((before[row][0], UNKNOWN))) for row in range(encoder.num_rows)]
    assert rows.moved(np.arange(encoder.num_rows, dtype=np.int32)).tolist() == wanted
    assert rows.moved(np.array([[-1, 0], [0, -1]], dtype=np.int32)).tolist() == [[-1, 0], [0, -1]]
    old_row_of = {meaning: row for row, meaning in before.items()}
    starts = [old_row_of.get(after[row], old_row_of.get((after[row][0], UNKNOWN))) for row in range(relisted.num_rows)]
    assert rows.start.tolist() == starts


def test_of_a_table_the_last_row_of_a_key_counts_however_it_is_spelt(encoder):
    table = pl.DataFrame({"item": ["8", "7.0", "7"], "price": [1.0, 2.0, 3.0], "unheard_of": [1, 2, 3]})
    given_table = GivenTable("item", table, "item", encoder)
    assert given_table.names == ["price"]
    assert given_table.keys.to_list() == ["8", "7"]
    assert given_table.values("price").rows() == [("8", 1.0), ("7", 3.0)]
    for keys in ([8, 7], [8.0, 7.0]):
        same = GivenTable("item", table.tail(2).with_columns(item=pl.Series(keys)), "item", encoder)
        assert same.keys.to_list() == ["8", "7"]
    nothing = GivenTable("user", None, "user", encoder)
    assert (nothing.names, nothing.keys.to_list()) == ([], [])


@pytest.mark.parametrize("key", [None, "", float("nan")])
def test_a_row_without_its_key_is_refused(encoder, key):
    table = pl.DataFrame({"item": [key], "price": [1.0]})
    with pytest.raises(DataError, match="the table of items has a row without item; every row needs its key"):
        GivenTable("item", table, "item", encoder)


def test_a_value_of_a_table_that_cannot_be_read_is_named(catalogue, learning, read, log):
    items = pl.DataFrame({"item": ["7", "8"], "price": ["3.5", "cheap"]})
    with pytest.raises(DataError, match="value 1 of feature 'price' is 'cheap', wanted a number"):
        grow(catalogue, learning, read(log[:1]), items=items)
    users = pl.DataFrame({"user": ["u3"], "years": ["old"]})
    with pytest.raises(DataError, match="value 0 of feature 'years' is 'old', wanted a number"):
        grow(catalogue, learning, read(log[:1]), users=users)


def test_a_date_of_a_table_that_cannot_be_read_is_named(catalogue, learning, read, log):
    items = pl.DataFrame({"item": ["7"], "born": ["soon"]})
    with pytest.raises(DataError, match="'item_age' is 'soon', wanted a date"):
        grow(catalogue, learning, read(log[:1]), items=items)


def test_who_is_held_out_alone_gets_no_index(catalogue, learning, read, log):
    stranger = changed(log[0], {"user_id": "stranger", "user": json.dumps({"years": 21})}, item_id="9001")
    samples = read([stranger, log[1]], held=[stranger[0]["request_id"]])
    growth = grow(catalogue, learning, samples)
    grown = growth.catalogue
    assert (growth.num_new_users, growth.num_new_items, growth.relisting.added) == (0, 0, {})
    assert grown.users.keys.equals(catalogue.users.keys)
    assert grown.items.keys.equals(catalogue.items.keys)
    assert np.array_equal(grown.users.table.ids[0], catalogue.users.table.ids[0])  # the unknown one stays so
    assert np.array_equal(grown.users.table.dense[0], catalogue.users.table.dense[0])


@pytest.mark.parametrize("key", ["", None])
def test_a_user_without_a_key_is_nobody(catalogue, learning, read, log, key):
    growth = grow(catalogue, learning, read([changed(log[0], {"user_id": key, "user": "{}"})]))
    assert growth.num_new_users == 0
    assert np.array_equal(growth.catalogue.users.table.ids[0], catalogue.users.table.ids[0])


def test_served_features_are_those_of_the_latest_request_that_had_any(catalogue, learning, read, log, dataset):
    mine = [pair for pair in log if pair[0]["user_id"] == "u3"][:4]
    told = [{"years": 21, "karma": 3.0}, {"years": 29}, None, None]
    pairs = [changed(pair, {"user": raw and json.dumps(raw)}) for pair, raw in zip(mine, told, strict=True)]
    users = pl.DataFrame({"user": ["u3", "u4"], "years": [24, 24], "karma": [9.0, 9.0]})
    grown = grow(catalogue, learning, read(pairs[::-1]), users=users).catalogue
    encoder, columns = grown.encoder, dataset.layout.id_columns("user")
    for key, raw, karma in (("u3", 29, None), ("u4", 24, 9.0)):
        (index,) = grown.users.find(pl.Series([key]))
        assert grown.users.table.ids[index, columns["years"]] == encoder.encode("years", [raw])[0]
        assert grown.users.table.ids[index, columns["user"]] == encoder.encode("user", [key])[0]
        assert grown.users.table.dense[index, 0] == encoder.encode("karma", [karma])[0, 0]


EVENTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 9)), max_size=20)


@given(events=EVENTS, users=st.permutations([-1, -1, 1, 2, 3, 4]), items=st.permutations([-1, -1, 1, 2, 3, 4, 5, 6]))
def test_events_move_with_their_users_and_without_the_items_that_are_gone(events, users, items):
    num_users, num_items = 3, 5  # of the next catalogue, the unknown ones included
    old_users, old_items = np.array([0, *users[: num_users - 1]]), np.array([0, *items[: num_items - 1]])
    events = sorted(events, key=lambda event: event[0])
    owners, old_item, times = (np.array([event[i] for event in events], dtype=np.int64) for i in range(3))
    starts = np.append(0, np.cumsum(np.bincount(owners, minlength=5)))
    moved = renumbered(History(starts, old_item.astype(np.int32), times), old_users, old_items, 7)
    found = [
        [*zip(moved.items[a:b].tolist(), moved.times[a:b].tolist(), strict=True)]
        for a, b in zip(moved.starts[:-1], moved.starts[1:], strict=True)
    ]
    new_of_old = {int(old): new for new, old in enumerate(old_items) if old > 0}
    assert found == [
        [(new_of_old[item], time) for user, item, time in events if user == old and item in new_of_old]
        for old in old_users
    ]
