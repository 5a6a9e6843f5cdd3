"""Updates on a log from which there is something to learn, whose true probabilities are known."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml
from altered_bundles import altered_copy
from sample_partitions import write_part
from sklearn.metrics import log_loss, roc_auc_score

from infnet.export.bundle import Bundle
from infnet.serving.encoding import RankRequest
from infnet.serving.ranker import Ranker
from infnet.training.checkpoint import load_checkpoint, save_checkpoint
from infnet.updating.guard import GuardSettings
from infnet.updating.update import UpdateSettings, update_bundle

SETTINGS = UpdateSettings(holdout=0.2, guard=GuardSettings(when_unsure="accept"))
NEW_ITEMS = ("9001", "9002", "9003", "9004")
"""Appear on the second day; every other one of them is liked by nearly everybody, the rest by nearly nobody."""
NUM_ROWS, DAY_MS = 2000, 86_400_000


@dataclass(frozen=True)
class Day:
    """Requests of one item each, with their samples and the true probability of a click."""

    pairs: list
    probs: np.ndarray

    @property
    def clicks(self):
        return np.array([sample["label_click"] for _, sample in self.pairs])

    def predicted(self, bundle):
        """What a bundle predicts for every request, as it would when it is asked."""
        requests = [
            RankRequest(request["user_id"], [sample["item_id"]], time_ms=request["time_ms"])
            for request, sample in self.pairs
        ]
        return np.array([probs[0, 0] for probs in Ranker(bundle).score_many(requests)])


def day(log, number, num, seed):
    """What users clicked: of every item as many as its own odds say, which change from day to day."""
    rng, taste = np.random.default_rng(seed), np.random.default_rng(number)
    items = [str(i) for i in range(1, 41)] + [*NEW_ITEMS] * (number > 1)
    odds = dict(zip(items, taste.choice([-2.5, 2.5], len(items)), strict=True))
    odds |= {item: 3.0 * (-1) ** place for place, item in enumerate(NEW_ITEMS)}
    begin = log[-1][0]["time_ms"] + number * DAY_MS
    pairs, probs = [], []
    for place in range(num):
        request, sample = log[rng.integers(len(log))]
        item, at = str(rng.choice(items)), begin + 1000 * place
        probs.append(1 / (1 + np.exp(-odds[item])))
        ids = {"request_id": f"d{number}s{seed}n{place}", "time_ms": at}
        told = {"item_id": item, "impression_ms": at + 500, "values": "{}", "label_like": None, "label_watch": None}
        clicked = float(rng.random() < probs[-1])
        pairs.append((request | ids | {"context": "{}"}, sample | ids | told | {"label_click": clicked}))
    return Day(pairs, np.array(probs))


def parameters(bundle):
    return load_checkpoint(bundle.path / "checkpoint.safetensors").tensors


@pytest.fixture(scope="module")
def unseen(log):
    """Rows of the second day that no update is given."""
    return day(log, 2, 400, seed=7)


@pytest.fixture(scope="module")
def day_samples(log, tmp_path_factory):
    """Of the second day; not to be changed."""
    return write_part(tmp_path_factory.mktemp("days"), 2, day(log, 2, NUM_ROWS, seed=2).pairs)


@pytest.fixture(scope="module")
def first(plain, log, tmp_path_factory):
    """Has learnt the first day."""
    out = tmp_path_factory.mktemp("first")
    update_bundle(plain.path, write_part(out / "samples", 1, day(log, 1, NUM_ROWS, seed=1).pairs), out / "b", SETTINGS)
    return Bundle.open(out / "b")


@pytest.fixture(scope="module")
def second(first, day_samples, tmp_path_factory):
    """Has learnt the second day as well, and what the update told of it."""
    out = tmp_path_factory.mktemp("second") / "b"
    report = update_bundle(first.path, day_samples, out, SETTINGS)
    return Bundle.open(out), report


def test_an_update_predicts_rows_that_nobody_has_seen_better_than_its_parent(first, second, unseen):
    found = {name: unseen.predicted(bundle) for name, bundle in (("parent", first), ("child", second[0]))}
    losses = {name: log_loss(unseen.clicks, probs) for name, probs in found.items()}
    best = log_loss(unseen.clicks, unseen.probs)
    assert losses["parent"] > best + 0.3
    assert losses["child"] < best + 0.2 * (losses["parent"] - best)  # most of the way to the truth
    areas = {name: roc_auc_score(unseen.clicks, probs) for name, probs in found.items()}
    assert areas["child"] > areas["parent"] + 0.2


def test_the_held_out_rows_of_an_update_say_so_as_well(second):
    click = second[1].verdict.tasks[0]
    assert click.task == "click"
    assert click.rows > 200
    assert click.loss.difference < -3 * click.loss.error < 0
    assert click.auc.difference > 3 * click.auc.error > 0


def test_items_that_are_new_are_told_apart(first, second, unseen):
    child, report = second
    assert report.added["item"] == report.new_items == len(NEW_ITEMS)
    at = unseen.pairs[-1][0]["time_ms"]
    assert len({*Ranker(first).score("u3", NEW_ITEMS, time_ms=at)[:, 0].round(6)}) == 1
    for found in (Ranker(child).score("u3", NEW_ITEMS, time_ms=at)[:, 0], child.prior[child.items.find(NEW_ITEMS)]):
        assert found[::2].min() > found[1::2].max() + 0.1


def test_an_update_goes_on_with_the_moments_of_the_one_before(first, second, day_samples, tmp_path):
    again = update_bundle(first.path, day_samples, tmp_path / "again", SETTINGS)
    assert again.version == second[1].version
    tensors = parameters(first)
    moments = [name for name in tensors if name.startswith("optimizers.") and tensors[name].ndim > 0]
    assert any(tensors[name].any() for name in moments)
    emptied = {name: torch.zeros_like(tensors[name]) for name in moments}
    save_checkpoint(tmp_path / "emptied", tensors | emptied, {})
    cold = altered_copy(first, tmp_path / "cold", {"checkpoint.safetensors": (tmp_path / "emptied").read_bytes()})
    update_bundle(cold, day_samples, tmp_path / "other", SETTINGS)
    warm, started_again = (parameters(bundle) for bundle in (second[0], Bundle.open(tmp_path / "other")))
    for name in ("model.embedding.weight", *(name for name in warm if name.startswith("model.") and "head" in name)):
        assert not torch.equal(warm[name], started_again[name])


def test_a_seed_of_its_own_gives_an_update_of_its_own(first, second, day_samples, tmp_path):
    document = yaml.safe_load((first.path / "train.yaml").read_bytes())
    document["train"]["seed"] = document["train"].get("seed", 0) + 1
    other = altered_copy(first, tmp_path / "seeded", {"train.yaml": yaml.safe_dump(document).encode()})
    update_bundle(other, day_samples, tmp_path / "out", SETTINGS)
    one, two = (parameters(bundle)["model.embedding.weight"] for bundle in (second[0], Bundle.open(tmp_path / "out")))
    assert not torch.equal(one, two)
