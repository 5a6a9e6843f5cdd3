import math
from dataclasses import replace

import infnet_oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from infnet.errors import SpecError
from infnet.evaluation.attention_maps import attention_maps
from infnet.models import INFNetConfig, build_model
from random_batches import as_double, make_batch, make_layout

SOURCES = {"cat": "fields", "seq": "events"}


def make_model(layout, seed=0, **options):
    """Far from its initial values, so that weights are far from even."""
    torch.manual_seed(seed)
    model = build_model("infnet", layout, {"width": 4, "embedding_width": None, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    return model.eval()


def make_requests(layout, num_requests, seed=0):
    return as_double(make_batch(layout, num_requests, 1, seed=seed))


def request(batch, r):
    """One request of a batch by itself."""
    one, whole = slice(r, r + 1), ("rows", "item", "event_ids")
    own = {
        name: replace(value, ids=value.ids[one], dense=value.dense[one]) if hasattr(value, "ids") else value[one]
        for name, value in vars(batch).items()
        if name not in whole
    }
    return replace(batch, **own)


def weights_of_oracle(model, batch, monkeypatch):
    """(block, source) -> kind -> weights (q, n) averaged over heads, for one request."""
    found = {}
    arrows = {
        id(arrow): (number, *name.split("_from_"))
        for number, block in enumerate(model.blocks, start=1)
        for name, arrow in block.arrows.items()
    }
    attend = infnet_oracle.attend

    def recorded(arrow, queries, tokens):
        number, kind, source = arrows[id(arrow)]
        logits = (queries @ arrow.query) @ (tokens @ arrow.key).mT / math.sqrt(arrow.query.shape[-1])
        found.setdefault((number, SOURCES.get(source)), {})[kind] = logits.softmax(dim=-1).mean(dim=0).detach().numpy()
        return attend(arrow, queries, tokens)

    with monkeypatch.context() as patched:
        patched.setattr(infnet_oracle, "attend", recorded)
        infnet_oracle.written_out(model, batch)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_heads": 2, "num_seq_proxies": 2, "gate_with": "updated", "num_blocks": 3},
        INFNetConfig.paper().model_dump() | {"width": 4},
        {"proxies": "all"},
        {"task_fusion": "late", "num_shared_tasks": 0},
        {"history": "pooled"},
        {"event_position": True, "event_gap": True},
    ],
    ids=["default", "updated", "paper", "all", "late", "pooled", "position"],
)
def test_maps_are_the_attention_of_the_equations(options, monkeypatch):
    layout = make_layout(tags=True, dense=True)
    model = make_model(layout, **options)
    batch = request(as_double(make_batch(layout, 4, 1, seed=3)), 2)
    if options.get("event_gap"):
        batch = replace(batch, history_gap=torch.randint(0, 32, (1, layout.seq_len), dtype=torch.int32))
    wanted = weights_of_oracle(model, batch, monkeypatch)
    maps = attention_maps(model, batch)
    named = ("cat", "seq", "shared", "task") if options.get("proxies") != "all" else ("shared", "task")
    assert {(m.block, m.source) for m in maps} == {
        key for key, kinds in wanted.items() if key[1] and any(kind in named for kind in kinds)
    }
    for found in maps:
        kinds = wanted[found.block, found.source]
        order = model.blocks[found.block - 1].reads["cat" if found.source == "fields" else "seq"]
        assert_allclose(found.weights, np.concatenate([kinds[kind] for kind in order if kind in named]), atol=1e-9)
        assert found.weights.shape == (len(found.queries), len(found.keys))
        assert_allclose(found.relative, found.weights * len(found.keys))


def test_names_say_who_reads_what():
    layout = make_layout(tags=True)
    batch = make_requests(layout, 3)
    full = replace(batch, history_present=torch.ones_like(batch.history_present))
    maps = {(m.block, m.source): m for m in attention_maps(make_model(layout, num_seq_proxies=2), full)}
    assert maps[1, "fields"].keys == (
        *("user0", "user1", "context0", "user_tags", "item0", "item1", "item2", "item_tags", "candidate0"),
    )
    assert maps[1, "events"].keys == tuple(f"b0 -{i}" for i in range(1, 6)) + tuple(f"b1 -{i}" for i in range(1, 4))
    assert maps[1, "events"].behaviours == ("b0",) * 5 + ("b1",) * 3
    assert set(maps[1, "fields"].queries) >= {"t0", "t1", "t2", "shared 1", "shared 2"}
    assert set(maps[1, "events"].queries) >= {"t0", "shared 1", "cat proxy 1", "cat proxy 2"}
    updated = attention_maps(make_model(layout, gate_with="updated"), full)
    assert {"b0 proxy", "b1 proxy"} < set(updated[0].queries)


@settings(max_examples=10)
@given(num_requests=st.integers(2, 5), seed=st.integers(0, 50))
def test_several_requests_are_averaged_place_by_place(num_requests, seed):
    layout = make_layout()
    model, batch = make_model(layout, seed), make_requests(layout, num_requests, seed)
    together = attention_maps(model, batch)
    each = [attention_maps(model, request(batch, r)) for r in range(num_requests)]
    for number, found in enumerate(together):
        single = [maps[number] for maps in each if maps[number].keys]
        assert set(found.keys) == {key for one in single for key in one.keys}
        for column, key in enumerate(found.keys):
            having = [one for one in single if key in one.keys]
            weights, relative = (
                [getattr(one, name)[:, one.keys.index(key)] for one in having] for name in ("weights", "relative")
            )
            assert_allclose(found.weights[:, column], np.sum(weights, axis=0) / len(single), atol=1e-12)
            assert_allclose(found.relative[:, column], np.mean(relative, axis=0), atol=1e-12)
        if found.keys:
            assert_allclose(found.weights.sum(axis=1), 1)


def test_without_history_the_events_map_is_empty():
    layout = make_layout()
    model, batch = make_model(layout), make_requests(layout, 3)
    maps = attention_maps(model, request(batch, 0))
    events = [found for found in maps if found.source == "events"]
    assert events
    for found in events:
        assert found.keys == found.behaviours == ()
        assert found.weights.shape == (len(found.queries), 0)
        assert found.as_json()["weights"] == [[]] * len(found.queries)
    assert all(np.isfinite(found.weights).all() for found in maps)


def test_the_model_is_left_as_it_was():
    layout = make_layout()
    model, batch = make_model(layout), make_requests(layout, 3)
    before = model(batch)
    model.train()
    attention_maps(model, batch)
    assert model.training
    assert torch.equal(model.eval()(batch), before)
    assert not any(block._forward_pre_hooks for block in model.blocks)


def test_plain_averages_have_no_maps():
    layout = make_layout()
    assert attention_maps(make_model(layout, attention="mean"), make_requests(layout, 2)) == []


def test_several_candidates_are_refused():
    layout = make_layout()
    with pytest.raises(SpecError, match="found 2 requests of 3 candidates, wanted one candidate each"):
        attention_maps(make_model(layout), as_double(make_batch(layout, 2, 3)))
