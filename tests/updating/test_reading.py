import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_partitions import write_part

from infnet.data.encoders import Encoder
from infnet.errors import ArtifactError, DataError, InfnetError
from infnet.updating.reading import ReadSamples, read_raw
from infnet.updating.samples import collect_samples

AT = 1_651_800_000_000
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["t2", "new,near", "", " near ", "3", "3.50", "7.0"]),
    st.text(max_size=3),
)
VALUES = st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), max_size=6)


@pytest.fixture(scope="module")
def encoder(dataset):
    return Encoder.load(dataset.path)


@pytest.fixture
def read(catalogue, tmp_path):
    """Reads (request, sample) pairs."""

    def make(pairs, **options):
        write_part(tmp_path / "samples", 1, pairs)
        samples = collect_samples(tmp_path / "samples", catalogue.spec, since_part=0, **({"holdout": 0.0} | options))
        return ReadSamples.read(samples, catalogue.encoder, catalogue.item_values)

    return make


@pytest.mark.parametrize("name", ["years", "karma", "tab", "temperature", "rank", "reasons", "bid", "hour"])
@given(values=VALUES)
def test_a_value_is_read_as_it_would_be_alone_whatever_stands_beside_it(encoder, name, values):
    times = AT + 3_600_000 * np.arange(len(values))

    def alone():
        read = [encoder.read(name, [value], [int(time)]) for value, time in zip(values, times, strict=True)]
        return [value for series in read for value in series.to_list()]

    try:
        wanted = alone()
    except InfnetError:
        with pytest.raises(InfnetError):
            read_raw(encoder, name, values, times)
        return
    found = read_raw(encoder, name, values, times)
    np.testing.assert_equal(found.to_list(), wanted)
    assert encoder.encode_read(name, found).shape[0] == len(values)


@pytest.mark.parametrize("value", ["hot", [1, 2]])
def test_a_value_that_cannot_be_read_is_named(encoder, value):
    with pytest.raises(DataError, match="feature 'temperature'"):
        read_raw(encoder, "temperature", [3.5, value], np.array([AT, AT]))


def test_what_a_request_did_not_bring_is_missing(read, log):
    request, sample = log[0]
    found = read([(request | {"context": "{}", "user": "{}"}, sample | {"values": None})])
    assert found.context["tab"].to_list() == found.context["temperature"].to_list() == [None]
    assert [found.candidate[name].to_list() for name in ("rank", "reasons", "bid")] == [[None]] * 3
    assert found.user["user"].to_list() == [request["user_id"]]
    assert [found.user[name].to_list() for name in ("years", "karma")] == [[None]] * 2
    assert found.has_values.tolist() == [True]


def test_only_served_features_of_a_user_count_as_served(read, log):
    pairs = [(request | {"user": told}, sample) for told, (request, sample) in zip((None, "{}"), log[:2], strict=True)]
    assert read(pairs).has_values.tolist() == [False, True]


def test_keys_have_one_spelling(read, log):
    request, sample = log[0]
    found = read([(request | {"user_id": "77.0"}, sample | {"item_id": "8.0"})])
    assert (found.users.to_list(), found.items.to_list()) == (["77"], ["8"])


def test_the_hour_is_that_of_the_request(read, log, encoder):
    found = read(log[:20])
    times = [request["time_ms"] for request, _ in log[:20]]
    assert found.context["hour"].to_list() == encoder.read("hour", [None] * 20, times).to_list()
    assert len({*found.context["hour"]}) > 1


@pytest.mark.parametrize("column", ["context", "user"])
@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_what_is_no_json_object_is_told(read, log, column, text):
    request, sample = log[0]
    with pytest.raises(ArtifactError, match=f"samples: '{column}' is no JSON object .*; join the events again"):
        read([(request | {column: text}, sample)])


def test_the_held_out_rows_keep_what_belongs_to_them(read, log):
    found = read(log[:150], holdout=0.3)
    valid, is_valid = found.only_valid(), found.samples.rows["is_valid"].to_numpy()
    assert 10 < len(valid.items) == is_valid.sum() < 100
    assert valid.items.to_list() == found.items.filter(pl.Series(is_valid)).to_list()
    assert valid.users.equals(found.users)
    by_request = {request["request_id"]: (request, sample) for request, sample in log}
    ids = valid.samples.requests["request_id"].gather(valid.request)
    for place, name in enumerate(ids):
        request, sample = by_request[name]
        assert valid.users[int(valid.request[place])] == request["user_id"]
        assert valid.items[place] == sample["item_id"]
        assert valid.candidate["rank"][place] == json.loads(sample["values"])["rank"]
