"""Point-in-time equality: the log replayed through a feature store gives the tensors of the prepared dataset."""

import itertools
import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from infnet.data.dataset import Dataset
from infnet.data.encoders import Encoder
from infnet.data.prepare import prepare
from infnet.data.sources.known import known_spec
from infnet.export.keys import KeyIndex
from infnet.export.replay import replayed
from infnet.schema import load_spec
from infnet.serving.encoding import RankRequest, RequestEncoder
from infnet.serving.feature_store import open_store
from infnet.serving.feature_store.base import HistoryEvent, Lookup, history_bounds
from infnet.serving.feature_store.load import load_store
from infnet.serving.feature_store.redis import RedisStore
from raw_logs import MAY_1, make_spec, prepare_frames
from small_bundle import CONTEXT, OWN, frames

ROOT = Path(__file__).parents[2]
SLICE = Path(os.environ.get("INFNET_DATA", ROOT.parent / "shared" / "data")) / "kuairand-pure-slice"
HISTORY = SLICE / "user_history_before_20220425.parquet"
HOUR_MS = 3_600_000

_number = itertools.count()


@pytest.fixture(params=["embedded", "redis"])
def open_for(request, tmp_path):
    """An empty store for a dataset."""
    stores = []

    def make(dataset):
        bounds = history_bounds(dataset.layout.behaviours, delays_s(dataset))
        if request.param == "embedded":
            stores.append(open_store(tmp_path / f"store{next(_number)}", bounds))
        else:
            url = request.getfixturevalue("redis_server").url
            stores.append(RedisStore(url, bounds, timeout_s=10, namespace=f"replay{next(_number)}"))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def delays_s(dataset):
    return {b.name: b.delay_s for b in load_spec(dataset.path / "spec.yaml").behaviours}


def as_bundle(dataset, tmp_path):
    """What an encoder reads of a bundle, of a dataset that no model was trained on; with the time since each event."""
    keys = {}
    for side in ("users", "items"):
        KeyIndex.write(tmp_path / f"{side}.npy", pl.read_parquet(dataset.path / side / "keys.parquet")["key"])
        keys[side] = KeyIndex(np.load(tmp_path / f"{side}.npy"))
    values = {path.stem: np.load(path) for path in (dataset.path / "items/values").glob("*.npy")}
    return SimpleNamespace(
        layout=dataset.layout.with_event_embeddings(position=False, gap=True),
        encoder=Encoder.load(dataset.path),
        user_features=(dataset.users.ids, dataset.users.dense),
        item_values=values.get,
        **keys,
    )


def rows_of_log(log, dataset, split, bundle, columns):
    """The log's rows of a split, as plain values in the split's order; ``row`` is the place in the log."""
    user, item, time = columns
    rows = dataset.rows(split)
    log = log.with_row_index("row").filter(pl.col(time).is_between(int(rows.time.min()), int(rows.time.max())))
    log = log.with_columns(user_index=pl.Series(bundle.users.find([str(key) for key in log[user]])))
    log = log.sort("user_index", time, "row")
    assert log["user_index"].to_list() == rows.user.tolist()
    assert log[time].to_list() == rows.time.tolist()
    assert bundle.items.find([str(key) for key in log[item]]).tolist() == rows.item.tolist()
    return log.to_dicts()


def replay(dataset, split, log, bundle, store, events_of, columns, context=(), own=()):
    """Serve every row of a split at its time, compare with what preparation made of it, then tell the store of it.

    Args:
        log: The split's rows.
        events_of: The behaviours that a row of the log is an event of.
        context, own: Columns that a request brings along, of itself and of its candidate.

    Returns:
        How many events the histories had in all.
    """
    rows, encoder = dataset.rows(split), RequestEncoder(bundle)
    user_of, item_of, time_of = columns
    delays_ms = {name: round(1000 * delay) for name, delay in delays_s(dataset).items()}
    limits = {b.name: b.length for b in dataset.layout.behaviours}
    load_store(store, dataset, before_ms=int(rows.time.min()))
    told, seen = set(), 0
    for chunk in chunks_of_users(rows):
        raw = [log[row] for row in chunk]
        lookups = [
            Lookup(str(r[user_of]), before={b: r[time_of] - ms for b, ms in delays_ms.items()}, limits=limits)
            for r in raw
        ]
        for row, r, lookup, fetched in zip(chunk, raw, lookups, store.fetch(lookups), strict=True):
            request = RankRequest(
                encoder.recall(lookup.user, fetched.user),
                [r[item_of]],
                {name: r[name] for name in context},
                {name: [r[name]] for name in own},
                r[time_of],
            )
            found, wanted = encoder.encode(request), replayed(dataset, rows, np.array([row]), gaps=True)
            for part in fields(wanted):
                assert_same(getattr(found, part.name), getattr(wanted, part.name), f"{split} row {row}, {part.name}")
            seen += sum(map(len, found.histories))
        events = []
        for r in raw:
            content = tuple(value for name, value in r.items() if name != "row")
            if content not in told:  # the same event once more
                told.add(content)
                user, item, at = str(r[user_of]), str(r[item_of]), r[time_of]
                events += [HistoryEvent(user, behaviour, item, at, r["row"]) for behaviour in events_of(r)]
        store.append(events)
    return seen


def chunks_of_users(rows):
    """Rows in the order of time, in pieces in which no user is twice."""
    chunk, users = [], set()
    for row in np.argsort(rows.time, kind="stable").tolist():
        if rows.user[row] in users:
            yield chunk
            chunk, users = [], set()
        chunk.append(row)
        users.add(rows.user[row])
    yield chunk


def assert_same(found, wanted, where):
    if isinstance(wanted, np.ndarray):
        assert found.dtype.kind == wanted.dtype.kind, where
        assert np.array_equal(found, wanted), (where, found, wanted)
    else:
        assert len(found) == len(wanted), where
        for mine, prepared in zip(found, wanted, strict=True):
            assert_same(mine, prepared, where)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_every_kind_of_feature_is_served_as_it_was_prepared(dataset, bundle, open_for, split):
    columns = ("user", "item", "time_ms")
    log = rows_of_log(frames()["log.parquet"], dataset, split, bundle, columns)

    def events_of(row):
        return [name for name in ("click", "like") if row[name]]

    assert replay(dataset, split, log, bundle, open_for(dataset), events_of, columns, CONTEXT, OWN) > 500


def tangled_log():
    """Events at the same times, rows that are there twice, rows that feed no history."""
    rng, num = np.random.default_rng(1), 1500
    log = pl.DataFrame(
        {
            "user": rng.integers(1, 25, num),
            "item": rng.integers(1, 30, num),
            "time_ms": MAY_1 + rng.integers(0, 72, num) * HOUR_MS,
            "click": rng.integers(0, 2, num),
            "liked": rng.choice([0, 0, 1], num),
            "shown_at_random": rng.choice([0, 0, 0, 0, 1], num),
        }
    )
    return pl.concat([log, log.sample(100, seed=0)]).sample(fraction=1.0, shuffle=True, seed=1)


@pytest.fixture(scope="module")
def tangled(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("tangled"), np.random.default_rng(2)
    seeds = {
        name: [rng.integers(1, 40, rng.integers(0, 9)).tolist() for _ in range(24)] for name in ("seen_seq", "like_seq")
    }
    seeds = pl.DataFrame({"user": range(1, 25), "last_time_ms": MAY_1 + rng.integers(-3, 4, 24) * HOUR_MS} | seeds)
    seeds.write_parquet(path / "history.parquet")
    spec = make_spec(
        behaviours=[
            {"name": "seen", "filter": "true", "length": 12, "seed": "seen_seq"},
            {"name": "click", "filter": "click == 1", "length": 5, "delay_s": 3 * 3600},
            {
                "name": "like",
                "filter": "liked == 1",
                "length": 50,
                "seed": "like_seq",
                "delay_s": 86400,
                "event": "heart",
            },
        ],
        split={"valid_from": "2022-05-02", "test_from": "2022-05-03", "extra": {"random": "shown_at_random == 1"}},
    )
    prepared, _ = prepare_frames(spec, path, {"log.parquet": tangled_log()}, history=path / "history.parquet")
    return Dataset.open(prepared.path)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_ties_repeats_delays_and_seeds_are_served_as_they_were_prepared(tangled, open_for, tmp_path, split):
    columns, bundle = ("user", "item", "time_ms"), as_bundle(tangled, tmp_path)
    log = tangled_log().with_row_index("row").filter(pl.col("shown_at_random") == 0).drop("row")
    log = rows_of_log(log, tangled, split, bundle, columns)

    def events_of(row):
        return ["seen", *(["click"] if row["click"] else []), *(["like"] if row["liked"] else [])]

    assert replay(tangled, split, log, bundle, open_for(tangled), events_of, columns) > 4000


@pytest.fixture
def slice_dataset(request, tmp_path):
    spec = known_spec("kuairand-pure").with_split(*(pl.Series(["2022-05-05", "2022-05-06"]).str.to_date()))
    if request.param is not None:
        spec = spec.with_delay(request.param)
    prepare(spec, SLICE, tmp_path / "prepared", history=HISTORY)
    return Dataset.open(tmp_path / "prepared")


@pytest.mark.slice
@pytest.mark.skipif(not HISTORY.exists(), reason=f"no slice at {SLICE}; set INFNET_DATA to the directory that has it")
@pytest.mark.parametrize(
    ("slice_dataset", "open_for"), [(None, "redis"), (0.0, "embedded")], indirect=True, ids=["a day late", "at once"]
)
def test_a_day_of_the_slice_is_served_as_it_was_prepared(slice_dataset, open_for, tmp_path):
    columns, bundle = ("user_id", "video_id", "time_ms"), as_bundle(slice_dataset, tmp_path)
    log = pl.read_csv(SLICE / "data" / "log_standard_4_22_to_5_08_pure.csv")
    log = rows_of_log(log, slice_dataset, "test", bundle, columns)
    assert len(log) == 13_718

    def events_of(row):
        flags = {"impression": row["is_rand"] == 0, "like": row["is_like"] == 1, "long_view": row["long_view"] == 1}
        return [name for name, is_one in flags.items() if is_one]

    store = open_for(slice_dataset)
    assert replay(slice_dataset, "test", log, bundle, store, events_of, columns, context=("tab",)) > 800_000
