import errno
import json
import shutil
import tempfile
import threading
import time

import pytest
from altered_bundles import with_windows, without_checkpoint
from service_log import ServiceLog

from infnet.errors import ArtifactError
from infnet.export.bundle import Bundle
from infnet.serving.publication import ModelDirectory
from infnet.serving.samples import alone
from infnet.updating.follow import Follower, bundle_at
from infnet.updating.guard import GuardSettings
from infnet.updating.update import UpdateSettings

ENOUGH = 40
NEVER_SURE = UpdateSettings(guard=GuardSettings(when_unsure="refuse"))
"""So few rows are a reason to refuse whatever was learnt."""


class StopsWhenAsked(threading.Event):
    """Set itself once somebody has asked so many times whether it is."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.asked = after, 0

    def is_set(self) -> bool:
        self.asked += 1
        if self.asked > self.after:
            self.set()
        return super().is_set()


@pytest.fixture
def events(tmp_path):
    return ServiceLog(tmp_path / "events")


@pytest.fixture
def follower(bundle, events, tmp_path, accept):
    """Makes followers of one log, which begin with the bundle."""

    def make(settings=accept, name="live", **options):
        options = {"min_samples": ENOUGH} | options
        return Follower(bundle.path, events.path, tmp_path / f"samples-{name}", tmp_path / name, settings, **options)

    return make


def test_a_round_waits_for_enough_samples_and_publishes_what_it_learnt_from_them(bundle, log, events, follower):
    following, first = follower(), bundle.manifest.version
    events.add(log[: ENOUGH - 1])
    waiting = following.round()
    assert (waiting.outcome, waiting.version, waiting.new_samples) == ("waiting", first, ENOUGH - 1)
    assert waiting.reason is waiting.report is None
    assert waiting.freshness_s == pytest.approx(time.time() - bundle.manifest.trained_to_ms / 1000, abs=5)

    events.add(log[ENOUGH - 1 : ENOUGH])
    turn = following.round()
    made = Bundle.open(following.directory.current(), verify="full").manifest
    assert (turn.outcome, turn.version, turn.new_samples) == ("published", made.version, 0)
    assert made.version == turn.report.version != first
    assert (made.lineage.parent, made.lineage.updates) == (first, 1)
    assert turn.freshness_s == pytest.approx(time.time() - turn.report.newest_ms / 1000, abs=5)
    assert turn.report.newest_ms <= log[ENOUGH - 1][1]["impression_ms"]
    assert turn.freshness_s < waiting.freshness_s
    assert json.loads(json.dumps(turn.as_json())) == turn.as_json()

    events.add(log[ENOUGH : ENOUGH + 3])
    after = following.round()
    assert (after.outcome, after.version, after.new_samples) == ("waiting", made.version, 3)


def test_after_a_refusal_it_waits_for_as_many_further_samples(bundle, log, events, follower):
    following = follower(NEVER_SURE)
    outcomes = []
    for start, end in ((0, 40), (40, 41), (41, 79), (79, 80)):
        events.add(log[start:end])
        turn = following.round()
        outcomes.append((turn.outcome, turn.new_samples))
        assert turn.version == bundle.manifest.version
        assert (turn.reason is None) == (turn.outcome == "waiting")
        assert turn.report is None
    assert outcomes == [("refused", 40), ("waiting", 41), ("waiting", 79), ("refused", 80)]
    assert "has too few held-out labels to judge by" in turn.reason
    assert following.directory.versions() == [bundle.manifest.version]


def test_a_refusal_says_nothing_about_the_next_version(bundle, other_bundle, log, events, follower):
    following = follower(NEVER_SURE)
    events.add(log[:ENOUGH])
    assert [following.round().outcome for _ in range(2)] == ["refused", "waiting"]
    following.directory.publish(other_bundle.path)
    turn = following.round()
    assert (turn.outcome, turn.version) == ("refused", other_bundle.manifest.version)


def test_a_round_that_fails_is_tried_again(bundle, log, events, follower, tmp_path):
    following = follower()
    hidden = events.path.rename(tmp_path / "hidden")
    turn = following.round()
    assert (turn.outcome, turn.version) == ("failed", bundle.manifest.version)
    assert turn.reason.startswith(f"{events.path}: holds no event log")
    hidden.rename(events.path)
    events.add(log[:ENOUGH])
    with alone(tmp_path / "samples-live"):
        turn = following.round()
        assert turn.outcome == "failed"
        assert "another join is at work there" in turn.reason
    assert following.round().outcome == "published"


def test_a_full_disk_fails_the_round_and_not_the_loop(bundle, log, events, follower, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    following = follower()
    events.add(log[:ENOUGH])
    monkeypatch.setattr(shutil, "copytree", fails)
    turn = following.round()
    assert (turn.outcome, turn.version) == ("failed", bundle.manifest.version)
    assert "No space left on device" in turn.reason


def test_a_stop_between_any_two_stages_leaves_everything_as_it_was(
    bundle, log, events, follower, tmp_path, monkeypatch
):
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "work"))
    events.add(log[:ENOUGH])
    undisturbed = follower(name="undisturbed", stop=StopsWhenAsked(1000))
    wanted, num_stages = undisturbed.round().version, undisturbed.stop.asked
    assert num_stages > 8
    for after in (1, num_stages // 3, 2 * num_stages // 3, num_stages):
        following = follower(stop=StopsWhenAsked(after))  # asked once more, before the round
        before = following.directory.publication()
        turns = []
        following.run(600, turns.append)
        assert turns == []
        assert following.stop.asked == after + 1
        assert following.directory.publication() == before
        assert following.directory.versions() == [bundle.manifest.version]
        assert [*(tmp_path / "work").iterdir()] == []
    assert follower().round().version == wanted


def test_it_begins_with_a_bundle_or_the_current_version_of_a_directory(bundle, other_bundle, events, tmp_path):
    def begin(path, to):
        following = Follower(path, events.path, tmp_path / "samples", tmp_path / to)
        return following.directory.publication().version

    assert begin(bundle.path, "a") == bundle.manifest.version
    assert bundle_at(tmp_path / "a") == tmp_path / "a" / "versions" / bundle.manifest.version
    ModelDirectory(tmp_path / "a").publish(other_bundle.path)
    assert begin(tmp_path / "a", "b") == other_bundle.manifest.version
    assert begin(tmp_path / "a", "a") == other_bundle.manifest.version
    assert begin(bundle.path, "b") == other_bundle.manifest.version  # goes on from what was published


@pytest.mark.parametrize("existing", [True, False])
def test_what_is_no_bundle_is_told_before_the_first_round(events, tmp_path, existing):
    if existing:
        (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="empty: is no bundle"):
        Follower(tmp_path / "empty", events.path, tmp_path / "samples", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_bundle_that_cannot_learn_is_told_before_the_first_round(bundle, events, tmp_path):
    slim = without_checkpoint(bundle, tmp_path / "slim")
    with pytest.raises(ArtifactError, match="was exported with --no-checkpoint and cannot be updated"):
        Follower(slim, events.path, tmp_path / "samples", tmp_path / "to")


def test_a_bundle_that_cannot_learn_is_not_published(bundle, events, tmp_path):
    slim = without_checkpoint(bundle, tmp_path / "slim")
    with pytest.raises(ArtifactError):
        Follower(slim, events.path, tmp_path / "samples", tmp_path / "to")
    following = Follower(bundle.path, events.path, tmp_path / "samples", tmp_path / "to")
    assert following.directory.publication().version == bundle.manifest.version


def test_a_live_bundle_that_cannot_learn_fails_the_round(bundle, log, events, follower, tmp_path):
    following = follower()
    events.add(log[:ENOUGH])
    following.directory.publish(without_checkpoint(bundle, tmp_path / "slim"))
    turn = following.round()
    assert turn.outcome == "failed"
    assert "was exported with --no-checkpoint and cannot be updated" in turn.reason
    following.directory.rollback()
    assert following.round().outcome == "published"


def test_rounds_follow_one_another_until_it_is_stopped(events, follower):
    following, ended = follower(), []

    def tell(turn):
        ended.append(time.monotonic())
        assert turn.outcome == "waiting"
        if len(ended) == 3:
            following.stop.set()

    began = time.monotonic()
    following.run(0.4, tell)
    assert len(ended) == 3
    assert ended[2] - began >= 0.8
    following.stop.clear()
    timer = threading.Timer(0.2, following.stop.set)
    following.run(600, lambda _: timer.start())
    assert time.monotonic() - ended[2] < 20


def test_labels_that_come_late_are_waited_for_or_corrected_as_the_settings_say(bundle, log, tmp_path):
    path = with_windows(bundle, tmp_path / "bundle", click=60, like=36_000, watch=60)
    shown_ms = time.time_ns() // 1_000_000 - 120_000
    pairs = [
        (request | {"time_ms": shown_ms - 1 + n}, sample | {"time_ms": shown_ms - 1 + n, "impression_ms": shown_ms + n})
        for n, (request, sample) in enumerate(log[:5])
    ]
    events = ServiceLog(tmp_path / "events").add(pairs)
    found = {}
    for delayed in ("wait", "fake_negative"):
        settings = UpdateSettings(delayed=delayed)
        following = Follower(path, events.path, tmp_path / delayed, tmp_path / f"live-{delayed}", settings)
        found[delayed] = following.round().new_samples
    assert found == {"wait": 0, "fake_negative": 5}


def test_a_directory_of_versions_that_is_gone_is_told(follower):
    following = follower()
    shutil.rmtree(following.directory.path)
    with pytest.raises(ArtifactError, match="holds no published model any more; publish a bundle again"):
        following.round()
