"""Policies and experiments in the service: who is answered with what, and what is told and logged of it."""

import copy
import dataclasses
import shutil
import time
from collections import Counter
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from infnet.errors import DataError, InfnetError, SpecError
from infnet.export.bundle import MANIFEST, FileRecord, sha256_of
from infnet.schema import load_spec
from infnet.serving.feature_store.base import Lookup
from infnet.serving.live import ModelHolder
from infnet.serving.policy_file import PolicyFile
from infnet.serving.publication import ModelDirectory
from infnet.serving.settings import ServeSettings
from infnet.serving.system import System
from infnet.serving.wire import RankBody
from service_parts import Parts, holder_of, records, replaced, wait_until

POLICY = """
inputs:
  price: {item: price_now, range: [0, 10]}
  is_new: {request: is_new, range: [0, 1]}
objectives:
  revenue: {formula: "price * p_like", weight: 2}
  pleasure: {formula: "p_click"}
segments:
  - {when: "is_new > 0", weights: {revenue: 0}}
"""
TICK_S = 0.02


@pytest.fixture
def policy_path(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def parts(bundle, tmp_path, policy_path):
    policy = PolicyFile(policy_path, holder_of(bundle), every_s=TICK_S)
    with Parts(bundle, tmp_path, policy=policy) as parts:
        parts.policy = policy
        yield parts
    policy.close()


def expected(reply, prices, weight=2.0):
    return {
        item.item_id: weight * prices.get(item.item_id, 0.0) * item.tasks["like"] + item.tasks["click"]
        for item in reply.items
    }


def test_a_page_is_in_the_order_of_the_policy(parts):
    reply = parts.answer(items=[1, 2, 3, 4], item_features={"price_now": [0, 9, None, 3.5]})
    worth = expected(reply, {"2": 9, "4": 3.5})
    assert [item.item_id for item in reply.items] == sorted(worth, key=worth.get, reverse=True)
    assert {item.item_id: item.score for item in reply.items} == pytest.approx(worth)
    assert reply.policy_version == parts.policy.live.version
    assert reply.items[0].parts == {}


def test_a_request_may_ask_how_scores_came_about(parts):
    reply = parts.answer(items=[1, 2], item_features={"price_now": [5, 1]}, explain=True)
    for item in reply.items:
        price = {"1": 5, "2": 1}[item.item_id]
        assert item.parts == pytest.approx({"revenue": 2 * price * item.tasks["like"], "pleasure": item.tasks["click"]})
        assert sum(item.parts.values()) == pytest.approx(item.score)


def test_fields_of_items_may_be_kept_in_the_store(parts):
    parts.store.put_items({"1": {"price_now": 8}, "2": {"price_now": 8}})
    reply = parts.answer(items=[1, 2, 3], item_features={"price_now": [None, 1, None]})
    assert {item.item_id: item.score for item in reply.items} == pytest.approx(expected(reply, {"1": 8, "2": 1}))


def test_fields_of_requests_choose_the_segment(parts):
    reply = parts.answer(items=[1, 2], item_features={"price_now": [9, 9]}, context={"is_new": True, "tab": "2"})
    assert {i.item_id: i.score for i in reply.items} == pytest.approx(expected(reply, {"1": 9, "2": 9}, weight=0))


def test_what_a_policy_reads_is_no_feature_of_the_model(parts):
    with pytest.raises(
        DataError, match="'prize_now' is neither a feature of the model nor a field that a policy reads; did"
    ):
        parts.answer(items=[1], item_features={"prize_now": [1]})
    with pytest.raises(DataError, match=r"field 'price_now' is 'dear', wanted a number"):
        parts.answer(items=[1], item_features={"price_now": ["dear"]})


def test_a_feature_that_the_policy_reads_too_is_read_by_both(parts, policy_path):
    policy_path.write_text(POLICY.replace("item: price_now", "item: bid"))
    parts.policy.watch()
    wait_until(lambda: parts.policy.live.item_fields == ("bid",))
    reply = parts.answer(items=[1, 2], item_features={"bid": [0, 7]})
    assert {item.item_id: item.score for item in reply.items} == pytest.approx(expected(reply, {"2": 7}))
    assert parts.served()[0]["values"]["bid"] == parts.served()[0]["fields"]["bid"]


def test_a_task_may_be_asked_for_instead_of_the_policy(parts):
    reply = parts.answer(items=[1, 2, 3], by="like", item_features={"price_now": [9, 1, 5]})
    assert [item.score for item in reply.items] == [item.tasks["like"] for item in reply.items]
    assert reply.policy_version == ""


def test_what_the_policy_read_is_logged(parts):
    parts.answer(items=[1, 2], item_features={"price_now": [9, None]}, context={"is_new": 1}, limit=1, request_id="r")
    (line,) = parts.served()
    assert line["policy"] == parts.policy.live.version
    assert line["fields"] == {"price_now": [{"1": 9, "2": None}[line["items"][0]]]}
    assert (line["request_fields"], line["context"], line["is_random"]) == ({"is_new": 1}, {}, False)


def test_a_share_of_requests_is_answered_in_a_random_order(parts, policy_path):
    policy_path.write_text(POLICY + "exploration: {share: 0.25}\n")
    parts.policy.watch()
    wait_until(lambda: parts.policy.live.spec.exploration.share > 0)
    first = Counter()
    for number in range(400):
        parts.answer(items=[1, 2, 3, 4], request_id=f"r{number}", item_features={"price_now": [1, 2, 3, 4]})
    lines = parts.served()
    chosen = [line for line in lines if line["is_random"]]
    assert 60 < len(chosen) < 140
    first.update(line["items"][0] for line in chosen)
    assert min(first[item] for item in "1234") > len(chosen) / 10
    assert len({line["items"][0] for line in lines if not line["is_random"]}) == 1
    again = parts.answer(items=[1, 2, 3, 4], request_id=chosen[0]["request_id"])
    assert [item.item_id for item in again.items] == chosen[0]["items"]


def test_a_changed_file_is_taken_and_a_broken_one_refused(parts, policy_path):
    before, told = parts.policy.live.version, []
    parts.policy.on_change = told.append
    parts.policy.watch()
    policy_path.write_text(POLICY.replace("p_like", "p_lik"))
    wait_until(lambda: parts.policy.refused is not None)
    assert "'p_lik' is neither a prediction nor declared" in parts.policy.refused
    assert "did you mean 'p_like'" in parts.policy.refused
    assert parts.answer().policy_version == before
    policy_path.write_text(POLICY.replace("weight: 2", "weight: 3"))
    wait_until(lambda: parts.policy.live.version != before)
    assert parts.policy.refused is None
    assert told == [None, parts.policy.live]
    policy_path.unlink()
    wait_until(lambda: parts.policy.refused is not None)
    assert parts.answer().policy_version == parts.policy.live.version


def test_a_model_without_a_task_that_the_policy_reads_is_refused(bundle, policy_path):
    holder = replaced(holder_of(bundle))
    PolicyFile(policy_path, holder)
    check = holder.checks[-1]
    check(holder.live)
    layout = bundle.layout.model_copy(update={"tasks": bundle.layout.tasks[:1]})
    ranker = copy.copy(holder.live.ranker)
    ranker.bundle = SimpleNamespace(layout=layout)
    with pytest.raises(SpecError, match=r"does not go with the policy .*policy.yaml: .*'p_like' is neither"):
        check(dataclasses.replace(holder.live, ranker=ranker))


def test_a_model_that_a_check_does_not_take_is_refused(bundle, other_bundle, tmp_path):
    directory = ModelDirectory(tmp_path / "models")
    before = directory.publish(bundle.path)
    holder = ModelHolder(directory.path, every_s=TICK_S)

    def check(model):
        raise SpecError(f"not {model.version}")

    holder.checks.append(check)
    holder.watch()
    version = directory.publish(other_bundle.path)
    wait_until(lambda: holder.refused is not None)
    assert (holder.refused, holder.live.version) == (version, before)
    holder.close()


EXPERIMENTS = """
experiments:
  - name: ranker
    variants: [{name: control}, {name: cheap, policy: cheap.yaml}, {name: bf16, bundle: bf16}]
    forced: {u1: control, u2: cheap, u3: bf16}
  - name: colour
    layer: page
    variants: [{name: red}, {name: blue}]
"""


@pytest.fixture
def settings(bundle, other_bundle, tmp_path, policy_path):
    (tmp_path / "cheap.yaml").write_text("objectives: {cheap: {formula: '0 - price'}}\ninputs: {price: {item: cost}}")
    (tmp_path / "bf16").symlink_to(other_bundle.path)
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS)
    return ServeSettings(
        model=bundle.path,
        state=tmp_path / "state",
        events=tmp_path / "events",
        policy=policy_path,
        experiments=tmp_path / "experiments.yaml",
        deadline_ms=10_000,
    )


def answered(system, user, **fields):
    body = msgspec.convert({"user_id": user, "item_ids": [1, 2, 3], **fields}, RankBody)
    (reply,) = system.service.answer([system.service.admit(body, time.perf_counter())])
    return reply


def test_variants_have_their_own_policies_and_models(settings, bundle, other_bundle):
    system = System.open(settings)
    fields = {"item_features": {"price_now": [1, 2, 3], "cost": [7, 5, 6]}}
    control, cheap, other = (answered(system, user, **fields) for user in ("u1", "u2", "u3"))
    assert [r.experiments["ranker"] for r in (control, cheap, other)] == ["control", "cheap", "bf16"]
    assert [r.experiments["colour"] in ("red", "blue") for r in (control, cheap, other)] == [True] * 3
    assert [item.item_id for item in cheap.items] == ["2", "3", "1"]
    assert (control.policy_version, control.model_version) == (other.policy_version, bundle.manifest.version)
    assert (cheap.policy_version != control.policy_version, cheap.model_version) == (True, control.model_version)
    assert other.model_version == other_bundle.manifest.version
    assert [line["experiments"] for line in records(settings.events, "served")] == [
        dict(r.experiments) for r in (control, cheap, other)
    ]
    model = system.model()
    assert (model.policy, model.policy_refused, model.experiments) == (
        control.policy_version,
        False,
        ["ranker", "colour"],
    )
    system.close()


def test_requests_of_several_models_may_be_computed_together(settings):
    system = System.open(settings)
    bodies = [msgspec.convert({"user_id": f"u{k % 3 + 1}", "item_ids": [1, 2, 3 + k]}, RankBody) for k in range(9)]
    tickets = [system.service.admit(body, time.perf_counter()) for body in bodies]
    replies = system.service.answer(tickets)
    for ticket, reply in zip(tickets, replies, strict=True):
        alone = answered(system, ticket.user, item_ids=ticket.items)
        assert (reply.request_id, reply.model_version) == (ticket.request_id, alone.model_version)
        assert [(i.item_id, pytest.approx(i.score)) for i in reply.items] == [(i.item_id, i.score) for i in alone.items]
    system.close()


def test_an_answer_by_popularity_counts_in_its_experiment(settings):
    system = System.open(settings)
    ticket = system.service.admit(msgspec.convert({"user_id": "u2", "item_ids": [1]}, RankBody), 0.0)
    (reply,) = system.service.answer([ticket])
    assert (reply.degraded, reply.experiments["ranker"]) == (["popularity_order"], "cheap")
    assert records(settings.events, "served")[0]["experiments"] == dict(reply.experiments)
    system.close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("layer: page\n", "layer: page\n    control: rde\n"), "line 8: .*'rde' is no variant; did you mean 'red'"),
        (
            ("{name: blue}", "{name: blue, policy: cheap.yaml}"),
            "both give variants a policy or a bundle, and a user may",
        ),
        (("cheap.yaml", "none.yaml"), r"none.yaml: cannot be read \(No such file or directory\)"),
        (("bundle: bf16", "bundle: bf61"), "bf61"),
    ],
)
def test_experiments_that_cannot_be_served_are_told_before_anything_is_made(settings, change, complaint):
    settings.experiments.write_text(EXPERIMENTS.replace(*change))
    with pytest.raises(InfnetError, match=complaint):
        System.open(settings)
    assert not settings.events.exists()
    assert not settings.state.exists()


def test_a_task_that_no_model_has_is_told_before_anything_is_made(settings):
    with pytest.raises(SpecError, match="no task is called 'lik'; did you mean 'like'"):
        System.open(settings.model_copy(update={"by": "lik"}))
    assert not settings.state.exists()


def test_a_variant_cannot_read_a_history_that_nobody_keeps(settings, other_bundle, tmp_path):
    (tmp_path / "bf16").unlink()
    shutil.copytree(other_bundle.path, tmp_path / "bf16")
    file = tmp_path / "bf16/spec.yaml"
    spec = load_spec(file)
    more = spec.behaviours[0].model_copy(update={"name": "share"})
    file.write_text(spec.model_copy(update={"behaviours": (*spec.behaviours, more)}).model_dump_json())
    record = FileRecord(size=file.stat().st_size, sha256=sha256_of(file))
    manifest = other_bundle.manifest
    manifest = manifest.model_copy(update={"files": manifest.files | {"spec.yaml": record}})
    (tmp_path / "bf16" / MANIFEST).write_text(manifest.model_dump_json())
    with pytest.raises(
        SpecError, match=r"bf16: reads the behaviour 'share', of which the service's own model keeps no"
    ):
        System.open(settings)
    assert not settings.state.exists()


def test_a_policy_that_the_model_cannot_serve_is_told_before_anything_is_made(settings):
    settings.policy.write_text(POLICY.replace("p_like", "p_order"))
    with pytest.raises(SpecError, match=r"policy.yaml, line 6: objectives.revenue.formula: 'p_order' is neither"):
        System.open(settings)
    assert not settings.state.exists()


def test_items_may_be_given_fields_of_policies(settings):
    system = System.open(settings)
    system.put_item("1", {"price_now": 4, "rank": 3})
    assert system.store.fetch([Lookup("u1", ["1"])])[0].items == [{"price_now": 4, "rank": 3}]
    with pytest.raises(DataError, match="'prize' is no feature that is set per item while serving; these are: rank"):
        system.put_item("1", {"prize": 4})
    system.close()


def rule(text):
    return POLICY + f"constraints: [{text}]\n"


@pytest.fixture
def with_policy(bundle, tmp_path):
    made = []

    def make(text, **options):
        path = tmp_path / "rules.yaml"
        path.write_text(text)
        made.append(Parts(bundle, tmp_path, policy=PolicyFile(path, holder_of(bundle)), **options))
        return made[-1]

    yield make
    for parts in made:
        parts.close()


def test_pages_keep_the_policys_rules_and_say_why(with_policy):
    parts = with_policy(rule("{at_most: 1, per: author, within: 3}"))
    authors = {"1": "a", "2": "a", "3": "b", "4": "c"}
    prices = {"1": 9, "2": 8, "3": 1, "4": 0}
    reply = parts.answer(
        items=[1, 2, 3, 4],
        item_features={"price_now": [*prices.values()], "author": [*authors.values()]},
        explain=True,
    )
    by_score = sorted(reply.items, key=lambda item: -item.score)
    shown = [authors[item.item_id] for item in reply.items]
    assert all(len({*shown[i : i + 3]}) == 3 for i in range(2))
    assert [item.item_id for item in reply.items] != [item.item_id for item in by_score]
    assert any("held back by at_most 1 per author within 3" in item.notes for item in reply.items)
    assert parts.served()[0]["fields"]["author"] == shown


def test_items_below_a_floor_are_not_shown(with_policy):
    reply = with_policy(rule("{floor: price, at_least: 2}")).answer(
        items=[1, 2, 3], item_features={"price_now": [1, 2, 3]}
    )
    assert {item.item_id for item in reply.items} == {"2", "3"}


def test_items_are_compared_by_what_the_model_makes_of_them(with_policy, bundle):
    parts = with_policy(POLICY + "diversity: {method: mmr, strength: 0.9}\n")
    vectors = parts.holder.live.item_vectors(bundle.items.find(["1", "2", "none"]))
    assert vectors.shape[0] == 3
    assert (vectors[2] == 0).all()
    assert np.linalg.norm(vectors[:2], axis=1).min() > 0
    plain = parts.answer(items=range(1, 31), by="click")
    diverse = parts.answer(items=range(1, 31), explain=True)
    assert {item.item_id for item in diverse.items} == {item.item_id for item in plain.items}
    assert any("mmr 0.9" in note for item in diverse.items for note in item.notes)


def test_rules_are_the_first_that_goes_for_want_of_time(with_policy):
    parts = with_policy(rule("{floor: price, at_least: 2}"))
    parts.service.costs.rerank_s = 60.0
    reply = parts.answer(items=[1, 2, 3], item_features={"price_now": [1, 2, 3]})
    assert reply.degraded == ["skipped_reranking"]
    assert len(reply.items) == 3
    assert parts.served()[0]["degraded"] == ["skipped_reranking"]
    for _ in range(400):
        reply = parts.answer(items=[1, 2, 3], item_features={"price_now": [1, 2, 3]})
    assert reply.degraded == []


def test_a_random_order_is_told(with_policy):
    parts = with_policy(rule("{floor: price, at_least: 9}") + "exploration: {share: 1}\n")
    reply = parts.answer(items=[1, 2], explain=True)
    assert [item.notes for item in reply.items] == [["the order was left to chance"]] * 2
