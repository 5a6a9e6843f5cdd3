import json
from dataclasses import fields

import numpy as np
import polars as pl
import pytest
from sample_partitions import log_samples, write_part
from torch.testing import assert_close

from infnet.data.batches import BatchBuilder
from infnet.data.dataset import Dataset
from infnet.errors import DataError, SpecError
from infnet.export.replay import replayed
from infnet.updating.partition import TRAIN, write_partition
from infnet.updating.reading import ReadSamples
from infnet.updating.samples import collect_samples
from small_bundle import CONTEXT, frames


@pytest.fixture
def partition(bundle, tmp_path):
    """Makes a dataset of samples, encoded as the bundle does."""

    def make(log, **options):
        write_part(tmp_path / "samples", 1, log)
        catalogue = bundle.catalogue()
        options = {"since_part": 0, "holdout": 0.0} | options
        samples = collect_samples(tmp_path / "samples", catalogue.spec, **options)
        read = ReadSamples.read(samples, catalogue.encoder, catalogue.item_values)
        (tmp_path / "out").mkdir()
        write_partition(tmp_path / "out", read, catalogue, bundle.layout)
        return Dataset.open(tmp_path / "out")

    return make


def assert_same(batch, wanted, but=("user_index",)):
    for field in fields(batch):
        if field.name not in but:
            mine, theirs = getattr(batch, field.name), getattr(wanted, field.name)
            pairs = [(mine, theirs)]
            if hasattr(mine, "ids"):
                pairs = [(mine.ids, theirs.ids), (mine.dense, theirs.dense)]
            for a, b in pairs:
                assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=field.name)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_served_request_gives_the_batch_of_the_prepared_row(partition, dataset, bundle, split):
    made = partition(log_samples(dataset, split))
    rows = dataset.rows(split)
    by_time = np.argsort(rows.time, kind="stable")
    wanted = BatchBuilder(dataset, rows, gaps=True).build(by_time[:, None])
    (batch,) = made.batches(TRAIN, 10_000, gaps=True)
    assert len(by_time) > 100
    assert_same(batch, wanted)
    for row in range(0, len(rows), 7):
        mine = replayed(made, made.rows(TRAIN), np.array([row]), gaps=True)
        theirs = replayed(dataset, rows, by_time[[row]], gaps=True)
        assert all(np.array_equal(a, b) for a, b in zip(mine.histories, theirs.histories, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(mine.gaps, theirs.gaps, strict=True))
        assert np.array_equal(mine.user.ids, theirs.user.ids)
        assert np.array_equal(mine.candidate.ids, theirs.candidate.ids)


def test_features_that_were_served_replace_those_of_the_bundle(partition, log, bundle):
    raw = {"years": 27, "karma": 4.5}
    changed = [(request | {"user": json.dumps(raw)}, sample) for request, sample in log[:5]]
    made = partition(changed + log[5:10])
    users, encoder = frames()["users.parquet"], bundle.encoder
    assert encoder.encode("years", [27])[0] != encoder.encode("years", users["years"])[3]
    columns = made.layout.id_columns("user")
    assert (made.users.ids[1:6, columns["years"]] == encoder.encode("years", [27])).all()
    assert made.users.dense[1:6, 0].tolist() == encoder.encode("karma", [4.5])[:, 0].tolist() * 5
    keys = [request["user_id"] for request, _ in changed]
    assert (made.users.ids[1:6, columns["user"]] == encoder.encode("user", keys)).all()
    known = bundle.user_features[0][bundle.users.find([request["user_id"] for request, _ in log[5:10]])]
    assert (made.users.ids[6:] == known).all()


def test_values_of_different_types_are_read_as_each_would_be_alone(partition, log, bundle):
    raws = ["t2", 1, "1", 1.0, True, None, "t3", 2.5]
    changed = [
        (request | {"context": json.dumps({"tab": raw, "temperature": 3})}, sample)
        for raw, (request, sample) in zip(raws, log, strict=False)
    ]
    made = partition(changed)
    wanted = [int(bundle.encoder.encode("tab", [raw])[0, 0]) for raw in raws]
    assert made.rows(TRAIN).context[:, made.layout.id_columns("context")["tab"]][:, 0].tolist() == wanted
    assert set(CONTEXT) == {"tab", "temperature"}


def test_a_value_that_cannot_be_read_is_named(partition, log):
    request, sample = log[0]
    with pytest.raises((DataError, SpecError), match="temperature"):
        partition([(request | {"context": json.dumps({"temperature": "warm"})}, sample)])


def test_history_items_that_nobody_knows_are_left_out_before_it_is_cut(partition, log):
    request, sample = log[0]
    items, times = ["1", "nobody", "2", "3", "4", "5"], [9, 8, 7, 6, 5, 4]
    made = partition(
        [(request | {"click_items": items, "click_times": times, "like_items": [], "like_times": []}, sample)]
    )
    assert made.histories[0].times.tolist() == [5, 6, 7, 9]  # the layout says four
    assert made.histories[1].starts.tolist() == [0, 0, 0]
    keys = pl.read_parquet(made.path / "items/keys.parquet")["key"]
    assert [keys[int(i) - 1] for i in made.histories[0].items] == ["4", "3", "2", "1"]


def test_labels_are_the_samples_and_unknown_ones_are_missing(partition, log):
    changed = [(request, sample | {"label_like": None}) for request, sample in log[:20]]
    labels = partition(changed).rows(TRAIN).labels
    assert np.isnan(labels[:, 1]).all()
    assert labels[:, 0].tolist() == [sample["label_click"] for _, sample in changed]
    np.testing.assert_allclose(labels[:, 2], [sample["label_watch"] for _, sample in changed], rtol=1e-6)
