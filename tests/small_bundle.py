"""A small run on a dataset with every kind of feature, and bundles of it, each made once per process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from infnet.data.batches import BatchBuilder
from infnet.data.dataset import Dataset, SplitRows
from infnet.export import exporter
from infnet.export.bundle import Bundle
from infnet.export.engine import Values
from infnet.export.exporter import export_run
from infnet.models.base import predictions
from infnet.serving.encoding import RankRequest, UserState
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from infnet.training.state import TrainState
from raw_logs import DAY_MS, MAY_1, make_spec, prepare_frames

NUM_USERS, NUM_ITEMS, NUM_ROWS = 12, 40, 600
NEWCOMER = "u12"
"""Was seen after training alone, so that some of its rows have no history."""

SPEC: dict[str, Any] = {
    "timezone": "Asia/Shanghai",
    "user": {"key": "user", "parts": [["users*"]]},
    "item": {"key": "item", "parts": [["items*"]]},
    "features": [
        {"kind": "id", "name": "user", "side": "user"},
        {"kind": "number", "name": "years", "side": "user", "buckets": 4},
        {"kind": "value", "name": "karma", "side": "user"},
        {"kind": "hour", "name": "hour", "side": "context"},
        {"kind": "category", "name": "tab", "side": "context"},
        {"kind": "value", "name": "temperature", "side": "context"},
        {"kind": "id", "name": "item", "side": "item"},
        {"kind": "category", "name": "author", "side": "item", "min_count": 2},
        {"kind": "category", "name": "shop", "side": "item", "hash_buckets": 8},
        {"kind": "tags", "name": "tag", "side": "item", "max_values": 2},
        {"kind": "value", "name": "price", "side": "item", "log": True},
        {"kind": "vector", "name": "cover", "side": "item", "width": 2},
        {"kind": "number", "name": "rank", "side": "candidate", "method": "log", "buckets": 4},
        {"kind": "age", "name": "item_age", "side": "candidate", "column": "born"},
        {"kind": "tags", "name": "reasons", "side": "candidate", "max_values": 2},
        {"kind": "value", "name": "bid", "side": "candidate"},
    ],
    "behaviours": [
        {
            "name": "click",
            "filter": "click == 1",
            "length": 4,
            "fields": ["item", "author", "tag"],
            "gap": True,
            "position": True,
        },
        {"name": "like", "filter": "like == 1", "length": 2},
    ],
    "tasks": [
        {"name": "click", "label": "click"},
        {"name": "like", "label": "like"},
        {"name": "watch", "label": "watch_ms / 1000.0", "kind": "regression"},
    ],
}
CONTEXT, OWN = ("tab", "temperature"), ("rank", "reasons", "bid")
"""Features whose raw values a request brings along: of itself, and of each candidate."""

SETTINGS: dict[str, dict[str, Any]] = {
    "infnet": {"width": 8, "embedding_width": 6, "proxy_width": 10, "num_seq_proxies": 2},
    "din": {"width": 4, "hidden": (8,), "head_hidden": (4,)},
}
_SMALL = {"embedding_std": 1.0}

_made: dict[tuple[str, ...], Any] = {}


def frames() -> dict[str, pl.DataFrame]:
    """The raw tables; a user has one log row at a time."""
    rng = np.random.default_rng(0)
    users = rng.integers(1, NUM_USERS, NUM_ROWS)
    times = MAY_1 + np.sort(rng.choice(3 * 86_400, NUM_ROWS, replace=False)) * 1000
    users[(times > MAY_1 + DAY_MS) & (rng.random(NUM_ROWS) < 0.05)] = NUM_USERS
    log = pl.DataFrame(
        {
            "user": [f"u{user}" for user in users],
            "item": rng.integers(1, NUM_ITEMS + 1, NUM_ROWS),
            "time_ms": times,
            "click": rng.integers(0, 2, NUM_ROWS),
            "like": (rng.random(NUM_ROWS) < 0.2).astype(int),
            "watch_ms": rng.integers(0, 9000, NUM_ROWS),
            "tab": [(None, "1", "t2", "t3")[tab] for tab in rng.integers(0, 4, NUM_ROWS)],
            "temperature": rng.integers(-5, 30, NUM_ROWS) / 2,
            "rank": rng.integers(1, 50, NUM_ROWS),
            "reasons": [("new", "new,near", "near,hot,new", None)[i] for i in rng.integers(0, 4, NUM_ROWS)],
            "bid": [None if bid == 0 else bid / 10 for bid in rng.integers(0, 90, NUM_ROWS)],
        }
    )
    places = range(1, NUM_ITEMS + 1)
    items = pl.DataFrame(
        {
            "item": places,
            "author": [f"a{i // 4}" for i in places],
            "shop": [f"s{i % 5}" for i in places],
            "tag": [(None, "3", "3,5", "7,3")[i % 4] for i in places],
            "price": [None if i % 7 == 0 else i + 0.5 for i in places],
            "cover": [f"{i},{i % 9}" for i in places],
            "born": [None if i % 11 == 0 else f"2022-0{4 + i % 2}-{1 + i % 28:02d}" for i in places],
        }
    )
    people = pl.DataFrame({"user": [f"u{i}" for i in range(1, NUM_USERS + 1)], "years": [None, *range(20, 31)]})
    people = people.with_columns(karma=pl.col("years") ** 0.5)
    return {"log.parquet": log, "users.parquet": people, "items.parquet": items}


def small_run(factory: pytest.TempPathFactory, model: str = "infnet") -> Run:
    """A finished run whose parameters are random, yet large enough to matter."""
    if ("data",) not in _made:
        _made["data",] = prepare_frames(make_spec(**SPEC), factory.mktemp("data"), frames())[0].path
    if ("run", model) not in _made:
        dataset = Dataset.open(_made["data",])
        config = TrainConfig(model=model, settings=_SMALL | SETTINGS[model])
        run = Run.create(factory.mktemp("runs") / model, dataset, config)
        torch.manual_seed(0)
        state = TrainState.begin(dataset.layout, config, torch.device("cpu"))
        run.save_best(state.model, {})
        state.save(run.last_path)
        run.write_report({"metrics": {"click.auc": 0.5}})
        _made["run", model] = run
    return _made["run", model]


def small_bundle(factory: pytest.TempPathFactory, model: str = "infnet") -> Bundle:
    """Of the run, in float32; not to be changed."""
    if ("bundle", model) not in _made:
        run = small_run(factory, model)
        with traced_once(factory, model):
            _made["bundle", model] = export_run(run, factory.mktemp("bundles") / model)
    return _made["bundle", model]


@contextmanager
def traced_once(factory: pytest.TempPathFactory, model: str) -> Iterator[None]:
    """Meanwhile the graphs of an architecture are traced by one of the processes that run tests, for all of them."""
    shared, trace = factory.getbasetemp(), exporter.trace_graph
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def traced(network: Any, inputs: Any) -> bytes:
        path = shared / f"{model}-{'padded' if network.padded else 'whole'}.onnx"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                path.write_bytes(trace(network, inputs))
            return path.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "trace_graph", traced)
        yield


@contextmanager
def graphs_of(bundle: Bundle) -> Iterator[None]:
    """Meanwhile exports take their graphs, whose tracing takes longest, from a bundle of the same architecture."""
    with pytest.MonkeyPatch.context() as patch:
        names = {False: "whole", True: "padded"}
        patch.setattr(exporter, "trace_graph", lambda network, _: bundle.traced(names[network.padded]))
        yield


def state_at(dataset: Dataset, split: str, row: int) -> UserState:
    """The user of a row of a prepared dataset as of its time."""
    rows = dataset.rows(split)
    user, parts = int(rows.user[row]), []
    for history, end in zip(dataset.histories, rows.ends[row], strict=True):
        parts.append((history.items[history.starts[user] : end][::-1], history.times[history.starts[user] : end][::-1]))
    items, times = zip(*parts, strict=True)
    return UserState(Values(dataset.users.ids[user], dataset.users.dense[user]), items, times)


def requests_of_log(dataset: Dataset, split: str) -> list[RankRequest]:
    """A request of one candidate for every row of a split, with the raw values of the log."""
    users = ["", *pl.read_parquet(dataset.path / "users/keys.parquet")["key"]]
    rows, log = dataset.rows(split), {(r["user"], r["time_ms"]): r for r in frames()["log.parquet"].to_dicts()}
    requests = []
    for row in range(len(rows)):
        raw = log[users[rows.user[row]], rows.time[row]]
        requests.append(
            RankRequest(
                state_at(dataset, split, row),
                [raw["item"]],
                {name: raw[name] for name in CONTEXT},
                {name: [raw[name]] for name in OWN},
                raw["time_ms"],
            )
        )
    return requests


def predicted(run: Run, dataset: Dataset, rows: SplitRows) -> NDArray[np.float64]:
    """What the training model predicts for every row (n, T), each a request of its own."""
    model = run.load_model()
    batch = BatchBuilder(dataset, rows, gaps=model.layout.has_gaps).build(np.arange(len(rows))[:, None])
    with torch.inference_mode():
        return predictions(model(batch), model.layout.tasks)[:, 0].numpy()
