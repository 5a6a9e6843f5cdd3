import json
import shutil
import time

import numpy as np
import pytest

from infnet.errors import ArtifactError
from infnet.export import bundle as opening
from infnet.export.bundle import Bundle
from infnet.serving.live import LiveModel, ModelHolder
from infnet.serving.publication import ModelDirectory
from infnet.serving.ranker import Ranker
from service_parts import altered, holder_of, replaced, running, wait_until

TICK_S = 0.01


@pytest.fixture(scope="module")
def versions(bundle, tmp_path_factory):
    """Three bundles of different versions, whose prior scores are 1, 2 and 3."""
    directory, prior = tmp_path_factory.mktemp("versions"), bundle.prior
    return [altered(bundle, directory / f"{i}", items__prior_dot_npy=np.full_like(prior, i)) for i in (1, 2, 3)]


@pytest.fixture
def published(versions, tmp_path):
    directory = ModelDirectory(tmp_path / "live")
    directory.publish(versions[0])
    return directory


class Watched:
    """A holder that watches, and what it told."""

    def __init__(self, directory):
        self.told = []
        self.holder = ModelHolder(directory.path, every_s=TICK_S)
        self.holder.on_swap = lambda model: self.told.append(None if model is None else model.version)
        self.holder.watch()

    def becomes(self, version):
        wait_until(lambda: self.holder.live.version == version)
        wait_until(lambda: self.told and self.told[-1] == version)


@pytest.fixture
def watched(published):
    watched = Watched(published)
    yield watched
    watched.holder.close()


def version_of(path):
    return Bundle.open(path).manifest.version


def publish_damaged(directory, bundle, spoil):
    """Publish a version that is damaged after it was checked."""
    before, version = directory.publication(), version_of(bundle)
    shutil.copytree(bundle, directory.bundle_path(version))
    spoil(directory.bundle_path(version))
    changes = {"version": version, "previous": (*before.previous, before.version), "published_ms": 1}
    point(directory, before.model_copy(update=changes))
    return version


def point(directory, publication):
    new = directory.path / "current.tmp"
    new.write_text(publication.model_dump_json())
    new.replace(directory.path / "current.json")


def cut(path):
    (path / "whole.onnx").write_bytes(b"cut")


def test_a_model_knows_what_events_mean_to_it(bundle):
    live = LiveModel.load(bundle.path)
    assert live.version == bundle.manifest.version
    assert live.event_types == {"impression", "click", "like", "watch"}
    assert live.behaviours_of == {"click": ("click",), "like": ("like",)}
    assert live.delays_ms == {"click": 0, "like": 0}
    assert live.dynamic_features == ("rank", "reasons", "bid")
    assert np.array_equal(live.prior, bundle.prior)
    assert abs(live.loaded_ms - time.time() * 1000) < 60_000


def test_event_types_and_delays_are_those_that_the_spec_names(bundle):
    spec = holder_of(bundle).live.spec
    click, like = spec.behaviours
    behaviours = (click.model_copy(update={"event": "tap", "delay_s": 1.5}), like.model_copy(update={"event": "tap"}))
    tasks = tuple(task.model_copy(update={"event": f"{task.name}_ed"}) for task in spec.tasks)
    live = replaced(holder_of(bundle), spec=spec.model_copy(update={"behaviours": behaviours, "tasks": tasks})).live
    assert live.behaviours_of == {"tap": ("click", "like")}
    assert live.event_types == {"impression", "tap", "click_ed", "like_ed", "watch_ed"}
    assert live.delays_ms == {"click": 1500, "like": 0}


def test_a_model_scores_like_the_bundle_it_was_loaded_from(bundle):
    live, ranker = LiveModel.load(bundle.path), Ranker(bundle)
    found, wanted = (each.score("u3", range(1, 41), time_ms=1_651_500_000_000) for each in (live.ranker, ranker))
    np.testing.assert_array_equal(found, wanted)


def test_a_model_that_predicts_no_number_is_refused(bundle, tmp_path):
    scores = np.load(bundle.path / "tables" / "tokens.npy")
    path = altered(bundle, tmp_path / "nan", tables__tokens_dot_npy=np.full_like(scores, np.nan))
    with pytest.raises(ArtifactError, match="no number"):
        LiveModel.load(path)


def test_every_file_of_a_model_is_checked_before_it_is_served_also_large_ones(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_SMALL", 100)
    shutil.copytree(bundle.path, tmp_path / "changed")
    victim = tmp_path / "changed" / "tables" / "embedding.npy"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum"):
        ModelHolder(tmp_path / "changed")


def test_a_bundle_is_served_for_good(bundle, other_version, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "bundle")
    holder = ModelHolder(tmp_path / "bundle", every_s=TICK_S)
    holder.watch()
    shutil.rmtree(tmp_path / "bundle")
    shutil.copytree(other_version, tmp_path / "bundle")
    time.sleep(5 * TICK_S)
    assert holder.live.version == bundle.manifest.version
    assert holder.refused is None
    holder.close()


@pytest.fixture
def other_version(versions):
    return versions[1]


def test_what_is_published_is_served_soon_and_told_once(watched, published, versions):
    first = watched.holder.live
    second = published.publish(versions[1])
    watched.becomes(second)
    assert watched.holder.live.prior[0] == 2
    assert first.prior[0] == 1  # whoever began with it ends with it
    time.sleep(5 * TICK_S)
    assert watched.told == [second]
    previous = published.rollback()
    watched.becomes(previous)
    assert watched.holder.live.prior[0] == 1
    assert watched.told == [second, previous]


def test_at_every_moment_of_many_swaps_a_request_finds_one_whole_version(watched, published, versions):
    priors = {version_of(path): i for i, path in enumerate(versions, start=1)}
    done = []

    def ask():
        while not done:
            live = watched.holder.live
            assert live.prior[0] == priors[live.version]
            assert np.isfinite(live.ranker.score("u1", [1, 2])).all()

    with running(ask):
        try:
            for path in (*versions[1:], versions[0]):
                watched.becomes(published.publish(path))
        finally:
            done.append(True)


def test_what_cannot_be_loaded_is_refused_once_and_the_old_one_serves_on(watched, published, versions):
    first = watched.holder.live.version
    broken = publish_damaged(published, versions[1], cut)
    wait_until(lambda: watched.holder.refused)
    time.sleep(5 * TICK_S)
    assert watched.holder.live.version == first
    assert watched.holder.refused == broken
    assert watched.told == [None]
    assert np.isfinite(watched.holder.live.ranker.score("u1", [1, 2])).all()

    third = published.publish(versions[2])
    watched.becomes(third)
    assert watched.holder.refused is None
    assert watched.told == [None, third]


def test_a_refused_version_is_tried_again_when_it_is_published_again(watched, published, versions):
    broken = publish_damaged(published, versions[1], cut)
    wait_until(lambda: watched.holder.refused)
    assert published.publish(versions[1]) == broken
    watched.becomes(broken)
    assert watched.holder.refused is None


def test_going_back_from_a_refused_version_ends_the_refusal(watched, published, versions):
    first = watched.holder.live.version
    publish_damaged(published, versions[1], cut)
    wait_until(lambda: watched.holder.refused)
    assert published.rollback() == first
    wait_until(lambda: watched.holder.refused is None)
    assert watched.told == [None]


def test_a_version_that_holds_another_is_refused(watched, published, versions):
    def exchange(path):
        shutil.rmtree(path)
        shutil.copytree(versions[2], path)

    first, wrong = watched.holder.live.version, publish_damaged(published, versions[1], exchange)
    wait_until(lambda: watched.holder.refused)
    assert (watched.holder.refused, watched.holder.live.version) == (wrong, first)


def test_a_pointer_that_is_damaged_or_gone_changes_nothing_until_it_is_mended(watched, published, versions):
    first = watched.holder.live.version
    pointer = published.path / "current.json"
    for text in ("{", "", json.dumps({"version": "../../etc", "published_ms": 1})):
        pointer.write_text(text)
        time.sleep(3 * TICK_S)
    pointer.unlink()
    time.sleep(3 * TICK_S)
    assert watched.holder.live.version == first
    assert watched.told == []
    watched.becomes(published.publish(versions[1]))


def test_whoever_is_told_of_a_swap_cannot_end_the_watching(watched, published, versions):
    def fails(_):
        raise RuntimeError("whoever listens has a bug")

    watched.holder.on_swap = fails
    for path in versions[1:]:
        version = published.publish(path)
        wait_until(lambda version=version: watched.holder.live.version == version)


def test_once_closed_nothing_is_swapped(watched, published, versions):
    watched.holder.close()
    first = watched.holder.live.version
    published.publish(versions[1])
    time.sleep(5 * TICK_S)
    assert watched.holder.live.version == first


def test_a_first_version_that_is_broken_gives_way_to_the_latest_that_is_not(published, versions, tmp_path):
    second = published.publish(versions[1])
    first = published.publication().previous[-1]
    broken = publish_damaged(published, versions[2], cut)
    assert published.publication().previous == (first, second)
    watched = Watched(published)
    assert watched.holder.live.version == second
    assert watched.holder.refused == broken
    time.sleep(5 * TICK_S)
    assert watched.told == []  # it was refused before anybody listened, and is not tried again
    cut(published.bundle_path(second))
    assert ModelHolder(published.path).live.version == first
    published.publish(versions[2])
    watched.becomes(broken)
    watched.holder.close()


def test_without_any_version_that_can_be_served_there_is_no_service(published, versions):
    first = published.publication().version
    publish_damaged(published, versions[1], cut)
    cut(published.bundle_path(first))
    with pytest.raises(ArtifactError, match=r"whole\.onnx"):
        ModelHolder(published.path)


def test_a_place_without_a_model_is_told(tmp_path):
    with pytest.raises(ArtifactError, match="infnet"):
        ModelHolder(tmp_path)
    with pytest.raises(ArtifactError, match="infnet"):
        ModelHolder(tmp_path / "nothing")


def unreadable(bundle, path, name):
    """A bundle whose checksums are right, such as one that is made for another version of a library."""
    return altered(bundle, path, **{name: b"{}"})


def test_a_version_that_a_library_cannot_read_is_refused(watched, published, bundle, tmp_path):
    version = published.publish(unreadable(bundle, tmp_path / "unreadable", "whole_dot_onnx"))
    wait_until(lambda: watched.holder.refused == version, within_s=0.6)


@pytest.mark.parametrize("name", ["whole_dot_onnx", "encoder__encoders_dot_json", "serving_dot_safetensors"])
def test_a_first_version_that_a_library_cannot_read_gives_way_as_well(published, bundle, tmp_path, name):
    first = published.publication().version
    version = published.publish(unreadable(bundle, tmp_path / "unreadable", name))
    holder = ModelHolder(published.path)
    assert (holder.live.version, holder.refused) == (first, version)
