import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from sample_partitions import write_part

from infnet.data.dataset import Dataset
from infnet.data.encoders import side_features
from infnet.errors import DataError
from infnet.evaluation.predict import predict
from infnet.training.state import TrainState
from infnet.updating.growth import grow
from infnet.updating.partition import TRAIN, write_partition
from infnet.updating.reading import ReadSamples
from infnet.updating.samples import collect_samples
from infnet.updating.update import _moved
from small_bundle import NEWCOMER

DAY_MS = 86_400_000


@pytest.fixture
def read(bundle, tmp_path):
    """Makes samples of (request, sample) pairs, read by the bundle's features."""

    def make(pairs, name="samples"):
        catalogue = bundle.catalogue()
        write_part(tmp_path / name, 1, pairs)
        samples = collect_samples(tmp_path / name, catalogue.spec, since_part=0, holdout=0.0)
        return ReadSamples.read(samples, catalogue.encoder, catalogue.item_values)

    return make


@pytest.fixture
def state(bundle):
    return bundle.catalogue(), bundle.learning()


def changed(pair, request=None, **sample):
    return (pair[0] | (request or {}), pair[1] | sample)


def meanings(catalogue, side):
    """Per key and feature, what the entity's encoded features stand for."""
    encoder, entities = catalogue.encoder, catalogue.users if side == "user" else catalogue.items
    names = {row: value for v in encoder.vocabularies for value, row in encoder.values(v.name).rows()}
    for vocabulary in encoder.vocabularies:
        names |= {vocabulary.first: "unknown", vocabulary.first + 1: "missing"}
    features = [f for f in side_features(list(encoder.features.values()), side) if f.storage != "dense"]
    found, at = {}, 0
    for feature in features:
        columns = entities.table.ids[1:, at : at + feature.num_columns]
        at += feature.num_columns
        for key, rows in zip(entities.keys, columns, strict=True):
            found[key, feature.name] = [names[int(row)] for row in rows if row >= 0]
    return found


def test_new_values_get_rows_behind_the_old_ones(state, read, log):
    catalogue, learning = state
    pairs = [*log[:8]]
    pairs[0] = changed(pairs[0], {"user_id": "stranger", "context": json.dumps({"tab": "t9"})})
    pairs[1] = changed(pairs[1], {"user_id": "stranger"}, item_id="9001", values=json.dumps({"reasons": "new,odd"}))
    pairs[2] = changed(pairs[2], values=json.dumps({"rank": 10**9}))
    growth = grow(catalogue, learning, read(pairs))
    assert growth.relisting.added == {"item": 1, "reasons": 1, "tab": 1, "user": 1}
    assert (growth.num_new_users, growth.num_new_items) == (1, 1)
    encoder = growth.catalogue.encoder
    ends = {v.name: v.first + v.size for v in encoder.vocabularies}
    assert encoder.encode("user", ["stranger"])[0, 0] == ends["user"] - 1
    assert encoder.encode("tab", ["t9"])[0, 0] == ends["tab"] - 1
    assert [v.first for v in encoder.vocabularies[1:]] == [v.first + v.size for v in encoder.vocabularies[:-1]]
    sizes = {v.name: v.size for v in catalogue.encoder.vocabularies}
    grown = {v.name: v.size - sizes[v.name] for v in encoder.vocabularies}
    assert grown == dict.fromkeys(sizes, 0) | growth.relisting.added
    for side in ("user", "item"):
        before, after = meanings(catalogue, side), meanings(growth.catalogue, side)
        assert {at: after[at] for at in before} == before
    new = {name: rows for (key, name), rows in meanings(growth.catalogue, "item").items() if key == "9001"}
    assert new.pop("item") == ["9001"]
    assert {*map(tuple, new.values())} == {("missing",)}
    keys = growth.catalogue.items.keys
    assert keys.to_list() == sorted(keys, key=lambda key: (len(key), key))


def test_growth_alone_changes_no_prediction(bundle, state, read, log, tmp_path):
    catalogue, learning = state
    samples = read(log)
    growth = grow(catalogue, learning, samples)
    assert growth.relisting.added == {"item": 1, "user": 1}
    assert NEWCOMER in growth.catalogue.encoder.values("user")["value"]
    found = []
    for name, known, tensors in (
        ("old", catalogue, learning.tensors),
        ("new", growth.catalogue, _moved(learning.tensors, growth)),
    ):
        (tmp_path / name).mkdir()
        changes = {"vocabularies": known.encoder.vocabularies, "num_rows": known.encoder.num_rows}
        layout = bundle.layout.model_copy(update=changes)
        dataset = write_partition(tmp_path / name, samples, known, layout)
        model = TrainState.begin(layout, learning.config, torch.device("cpu"))
        model.take(replace(learning, tensors=tensors).checkpoint(), tmp_path)
        found.append((predict(model.model, dataset, TRAIN).scores, dataset))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)  # sums of the same numbers in another order
    assert found[0][1].layout.num_rows + 2 == found[1][1].layout.num_rows


def test_moments_follow_their_values_and_begin_at_zero(state, read, log):
    catalogue, learning = state
    table = learning.tensors["optimizers.table.mean"]
    marked = torch.arange(1.0, len(table) + 1)[:, None].expand_as(table).clone()
    growth = grow(catalogue, learning, read([changed(log[0], {"user_id": "stranger"})]))
    moved = _moved(dict(learning.tensors) | {"optimizers.table.mean": marked}, growth)["optimizers.table.mean"]
    old, new = catalogue.encoder, growth.catalogue.encoder
    for vocabulary in old.vocabularies:
        before = dict(old.values(vocabulary.name).rows())
        after = dict(new.values(vocabulary.name).rows())
        assert all(moved[after[value], 0] == row + 1 for value, row in before.items())
    assert (moved[new.encode("user", ["stranger"])[0, 0]] == 0).all()
    assert (moved[0] == 1).all()


def test_a_rare_value_waits_over_updates_for_its_row(state, read, log):
    catalogue, learning = state
    items = pl.DataFrame({"item": ["9001", "9002"], "author": ["a99", "a99"], "born": ["2022-05-01", None]})
    first = grow(catalogue, learning, read([changed(log[0], item_id="9001")]), items=items)
    assert first.relisting.added == {"item": 1}
    assert first.relisting.waiting.select("vocabulary", "value", "count").rows() == [("author", "a99", 1)]
    assert meanings(first.catalogue, "item")["9001", "author"] == ["unknown"]
    later = replace(learning, waiting=first.relisting.waiting)
    second = grow(catalogue, later, read([changed(log[1], item_id="9002")], "more"), items=items)
    assert second.relisting.added == {"author": 1, "item": 1}
    assert second.relisting.waiting.is_empty()
    assert meanings(second.catalogue, "item")["9002", "author"] == ["a99"]


def test_raw_tables_tell_the_features_of_new_and_changed_entities(state, read, log):
    catalogue, learning = state
    items = pl.DataFrame({"item": [9001, 3], "tag": ["3,5", "7"], "price": [2.5, 4.5], "born": ["2022-04-20", None]})
    users = pl.DataFrame({"user": ["stranger", "u3"], "years": [24, 29]})
    growth = grow(catalogue, learning, read([log[0]]), users=users, items=items)
    grown, encoder = growth.catalogue, growth.catalogue.encoder
    assert (growth.num_new_users, growth.num_new_items) == (1, 1)
    index = {key: i + 1 for i, key in enumerate(grown.items.keys)}
    after, before = meanings(grown, "item"), meanings(catalogue, "item")
    assert (after["9001", "tag"], after["3", "tag"], after["9001", "item"]) == (["3", "5"], ["7"], ["unknown"])
    assert after["3", "author"] == before["3", "author"]
    assert grown.items.table.dense[index["3"], 0] == encoder.encode("price", [4.5])[0, 0]
    dates = grown.item_values["item_age"]
    assert dates[index["9001"]] == 1_650_384_000_000  # 2022-04-20 in Shanghai
    assert np.isnan(dates[index["3"]])
    assert meanings(grown, "user")["stranger", "years"] == [encoder_label(encoder, "years", 24)]
    with pytest.raises(DataError, match="the table of items has no column 'item', the key of the spec's own"):
        grow(catalogue, learning, read([log[0]], "again"), items=items.rename({"item": "video"}))


def encoder_label(encoder, name, value):
    row = int(encoder.encode(name, [value])[0, 0])
    return next(label for label, at in encoder.values(encoder.features[name].vocabulary_name).rows() if at == row)


def test_users_are_kept_as_their_latest_request_had_them(state, read, log):
    catalogue, learning = state
    mine = [pair for pair in log if pair[0]["user_id"] == "u3"][:3]
    told = [json.dumps({"years": years, "karma": 1.0}) for years in (21, 29)]
    pairs = [changed(mine[0], {"user": told[0]}), changed(mine[1], {"user": told[1]}), mine[2]]
    grown = grow(catalogue, learning, read(pairs)).catalogue
    assert meanings(grown, "user")["u3", "years"] == [encoder_label(grown.encoder, "years", 29)]
    assert meanings(grown, "user")["u4", "years"] == meanings(catalogue, "user")["u4", "years"]


def test_values_that_nothing_has_named_for_long_lose_their_rows(state, read, log):
    catalogue, learning = state
    late = log[0][1]["impression_ms"] + 30 * DAY_MS
    pair = changed(log[0], {"time_ms": late, "user_id": "u3"}, impression_ms=late, item_id="5")
    pair[0].update(click_items=["7"], click_times=[late - 5], like_items=[], like_times=[])
    samples = read([pair])
    assert grow(catalogue, learning, samples, evict_after_days=40).relisting.forgotten == {}
    growth = grow(catalogue, learning, samples, evict_after_days=10)
    kept = {v.name: growth.catalogue.encoder.values(v.name)["value"].to_list() for v in catalogue.encoder.vocabularies}
    assert kept["user"] == ["u3"]
    assert {*kept["item"]} == {"5", "7"}
    assert {*kept["author"]} == {"a1"}
    for name in ("years", "rank", "shop", "hour"):
        assert kept[name] == catalogue.encoder.values(name)["value"].to_list()
    # Users and items stay, since their features are known; of u1 they are not.
    assert growth.catalogue.users.keys.to_list() == [key for key in catalogue.users.keys if key != "u1"]
    assert growth.catalogue.items.keys.equals(catalogue.items.keys)
    assert meanings(growth.catalogue, "user")["u4", "user"] == ["unknown"]
    before, after = meanings(catalogue, "item"), meanings(growth.catalogue, "item")
    assert after["5", "author"] == before["5", "author"]
    assert after["30", "author"] == ["unknown"]
    with_key = replace(learning, seen=np.full_like(learning.seen, late))
    assert grow(catalogue, with_key, samples, evict_after_days=10).relisting.forgotten == {}


def test_who_is_known_by_a_forgotten_key_alone_is_forgotten_with_it(bundle, state, read, log):
    catalogue, learning = state
    strangers = [changed(log[0], {"user_id": f"s{i}"}, item_id=f"{9000 + i}") for i in (1, 2)]
    strangers[1][0]["request_id"] = strangers[1][1]["request_id"] = "another"
    first = grow(catalogue, learning, read(strangers))
    assert (first.num_new_users, first.num_new_items) == (2, 2)
    grown = replace(learning, seen=np.zeros(first.catalogue.encoder.num_rows, dtype=np.int64))
    late = log[0][1]["impression_ms"] + 30 * DAY_MS
    again = changed(strangers[0], {"time_ms": late}, impression_ms=late)
    second = grow(first.catalogue, grown, read([again], "later"), evict_after_days=10).catalogue
    assert "s1" in second.users.keys
    assert "s2" not in second.users.keys
    assert "9001" in second.items.keys
    assert "9002" not in second.items.keys
    assert len(second.items.keys) == len(catalogue.items.keys) + 1


def test_histories_follow_their_users_and_items(state, read, log):
    catalogue, learning = state
    pairs = [changed(log[0], {"user_id": "a"}, item_id="0")]  # both sort to the front
    grown = grow(catalogue, learning, read(pairs)).catalogue
    assert (grown.users.keys[0], grown.items.keys[0]) == ("a", "0")

    def events(known):
        found = {}
        for name, history in zip(("click", "like"), known.histories, strict=True):
            for user, key in enumerate(known.users.keys, start=1):
                span = slice(history.starts[user], history.starts[user + 1])
                items = [known.items.keys[int(i) - 1] for i in history.items[span]]
                found[name, key] = [*zip(items, history.times[span].tolist(), strict=True)]
        return found

    before, after = events(catalogue), events(grown)
    assert {key: value for key, value in after.items() if key[1] != "a"} == before
    assert after["click", "a"] == []


def test_a_partition_of_a_grown_catalogue_opens(bundle, state, read, log, tmp_path):
    catalogue, learning = state
    samples = read([changed(log[0], {"user_id": "stranger"}), *log[1:30]])
    grown = grow(catalogue, learning, samples).catalogue
    changes = {"vocabularies": grown.encoder.vocabularies, "num_rows": grown.encoder.num_rows}
    (tmp_path / "out").mkdir()
    write_partition(tmp_path / "out", samples, grown, bundle.layout.model_copy(update=changes))
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.num_rows(TRAIN) == 30
    assert int(dataset.users.ids.max()) < dataset.layout.num_rows
