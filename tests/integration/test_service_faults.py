"""Faults with traffic on: answers keep coming in time, and nothing that was acknowledged is lost."""

import shutil
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from infnet.serving.feature_store import open_store
from infnet.serving.feature_store.base import Lookup
from infnet.serving.label_join import join_labels
from infnet.serving.publication import ModelDirectory
from infnet.serving.samples import read_samples
from redis_server import RedisServer
from served import PATIENT, served
from slow_proxy import SlowProxy
from small_disk import mounted, needs_mount, resize
from traffic import Traffic

LATE_S = 0.1
"""The deadline, which services keep by their own clock."""


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(tmp_path / "redis", keeps=True)
    yield server
    server.stop()


@pytest.fixture
def live(bundle, tmp_path):
    """A directory of versions."""
    directory = ModelDirectory(tmp_path / "live")
    directory.publish(bundle.path)
    return directory


def assert_log_has(service, traffic):
    """Every acknowledged event, once."""
    logged = Counter(record["event_id"] for record in service.records("events"))
    assert traffic.acknowledged
    assert not set(traffic.acknowledged) - set(logged)
    assert set(logged.values()) == {1}


def assert_histories_follow_the_log(service, bundle, store):
    """Each user's newest clicks are those of the log."""
    user_of = {record["request_id"]: record["user_id"] for record in service.records("served")}
    clicks = {}
    for record in service.records("events"):
        if record["type"] == "click":
            user = record["user_id"] or user_of.get(record["request_id"])
            clicks.setdefault(user, []).append((record["time_ms"], record["item_id"]))
    assert clicks
    for user, told in clicks.items():
        if user is None:
            continue
        (found,) = store.fetch([Lookup(user, before={"click": 2**52}, limits={"click": len(told)})])
        history = found.user.histories["click"]
        wanted = sorted(told, key=lambda click: -click[0])[: len(history.items)]
        assert len(history.items) == min(len(told), store.bound("click"))
        assert history.times == [at for at, _ in wanted]
        assert Counter(zip(history.times, history.items, strict=True)) <= Counter(told)


@contextmanager
def histories(target):
    store = open_store(target, {"click": 54, "like": 52})
    try:
        yield store
    finally:
        store.close()


def in_order(service):
    def is_ok():
        return service.client.get("/healthz").json()["status"] == "ok"

    Traffic.wait_until(is_ok)


def share_late(answers):
    return np.mean([answer.seconds > 2 * LATE_S for answer in answers])


def test_a_redis_that_is_killed_and_comes_back_costs_no_event_and_no_answer(bundle, redis, tmp_path):
    with served(bundle.path, tmp_path / "service", "--store", redis.url) as service:
        in_order(service)
        with Traffic(service, bundle) as traffic:
            traffic.wait_for(30)
            redis.stop()
            stopped = time.monotonic()
            traffic.wait_for(60)
            assert service.client.get("/healthz").json()["feature_store"] == "failing"
            without = [answer for answer in traffic.answers if answer.at > stopped]
            redis.start()
            in_order(service)
            traffic.wait_for(30)
        assert set(traffic.statuses()) == {200}
        assert set(traffic.event_statuses) == {200}
        assert traffic.unanswered == 0
        assert share_late(traffic.answers) < 0.05
        assert Counter("last_known_features" in answer.degraded for answer in without)[True] > len(without) / 2
        assert "last_known_features" not in traffic.answers[-1].degraded
        assert service.metric("infnet_degraded_total") > 0
        in_order(service)
        assert_log_has(service, traffic)
        with histories(redis.url) as store:
            assert_histories_follow_the_log(service, bundle, store)


def test_a_redis_that_lost_everything_is_filled_again(bundle, tmp_path):
    redis = RedisServer(tmp_path / "redis", keeps=False)
    with served(bundle.path, tmp_path / "service", "--store", redis.url) as service, histories(redis.url) as store:
        in_order(service)
        with Traffic(service, bundle) as traffic:
            traffic.wait_for(30)
            redis.stop()
            redis.start()
            traffic.wait_for(30)
            Traffic.wait_until(lambda: service.log.count("feature_store_loaded") == 2)
        in_order(service)
        assert_log_has(service, traffic)
        assert_histories_follow_the_log(service, bundle, store)
        (found,) = store.fetch([Lookup("u1", before={"like": 2**52})])
        assert found.user.histories["like"].items  # of the bundle: nobody has liked anything since
    redis.stop()


def test_a_redis_that_takes_half_a_second_delays_nobody(bundle, redis, tmp_path):
    proxy = SlowProxy(redis.port)
    with served(bundle.path, tmp_path / "service", "--store", f"redis://127.0.0.1:{proxy.port}/0") as service:
        in_order(service)
        with Traffic(service, bundle) as traffic:
            traffic.wait_for(30)
            proxy.delay_s = 0.5
            slow_since = time.monotonic()
            traffic.wait_for(100)
            slow = [answer for answer in traffic.answers if answer.at > slow_since]
            proxy.delay_s = 0.0
            in_order(service)
            traffic.wait_for(20)
        proxy.close()
        assert set(traffic.statuses()) == {200}
        assert set(traffic.event_statuses) == {200}
        assert np.mean([answer.seconds < 0.5 for answer in slow]) == 1.0
        assert share_late(slow) < 0.05
        assert Counter("last_known_features" in answer.degraded for answer in slow)[True] > len(slow) / 2
        in_order(service)
        assert_log_has(service, traffic)
        with histories(redis.url) as store:
            assert_histories_follow_the_log(service, bundle, store)


def test_a_server_that_is_killed_has_kept_what_it_acknowledged(bundle, tmp_path):
    with served(bundle.path, tmp_path / "service") as service:
        with Traffic(service, bundle) as traffic:
            for _ in range(3):
                traffic.wait_for(25)
                service.kill()
                service.start()
            traffic.wait_for(10)
        in_order(service)
        assert traffic.unanswered
        assert set(traffic.statuses()) == {200}
        assert_log_has(service, traffic)
        before = len(service.records("events"))
        said = traffic.acknowledged[0].split("/")
        again = {"request_id": said[0], "item_id": said[1], "type": said[2], "event_id": "/".join(said)}
        assert service.tell(again).json() == {"accepted": 0, "duplicates": 1, "rejected": []}
        assert len(service.records("events")) == before
        assert service.stop() == 0
        with histories(tmp_path / "service" / "state") as store:
            assert_histories_follow_the_log(service, bundle, store)


@needs_mount
def test_a_full_disk_stops_the_events_and_not_the_ranking(bundle, tmp_path):
    disk = tmp_path / "service" / "events"
    with mounted(disk, "size=400k"), served(bundle.path, tmp_path / "service", "--fsync", "always") as service:
        with Traffic(service, bundle) as traffic:
            Traffic.wait_until(lambda: traffic.event_statuses[503] >= 5)
            full_since = time.monotonic()
            assert service.client.get("/healthz").json()["event_log"] == "failing"
            traffic.wait_for(20)
            assert service.metric("infnet_event_log_failures_total") > 0
            resize(disk, "64m")
            before = traffic.event_statuses[200]
            Traffic.wait_until(lambda: traffic.event_statuses[200] > before + 10)
        in_order(service)
        assert {answer.status for answer in traffic.answers if answer.at > full_since} == {200}
        assert set(traffic.event_statuses) == {200, 503}
        assert_log_has(service, traffic)
        assert service.stop() == 0
        shutil.copytree(disk, tmp_path / "copy" / "events")
    service.directory = tmp_path / "copy"
    assert_log_has(service, traffic)
    with histories(tmp_path / "service" / "state") as store:
        assert_histories_follow_the_log(service, bundle, store)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest"])
def test_a_damaged_bundle_is_refused_while_the_old_one_serves_on(bundle, other_bundle, live, damage, tmp_path):
    with served(live.path, tmp_path / "service", *PATIENT) as service, Traffic(service, bundle) as traffic:
        traffic.wait_for(10)
        prepared = tmp_path / "prepared"
        other = ModelDirectory(prepared)
        other.publish(other_bundle.path)
        version = other.publication().version
        spoil(other.bundle_path(version), damage)
        shutil.copytree(other.bundle_path(version), live.bundle_path(version))
        now = live.publication()
        (live.path / "current.json").write_text(now.model_copy(update={"version": version}).model_dump_json())
        Traffic.wait_until(lambda: service.client.get("/v1/model").json()["refused"] == version)
        traffic.wait_for(10)
        assert service.client.get("/v1/model").json()["version"] == bundle.manifest.version
        live.publish(other_bundle.path)  # the whole one
        Traffic.wait_until(lambda: service.client.get("/v1/model").json()["version"] == version)
        assert service.client.get("/v1/model").json()["refused"] is None
        traffic.wait_for(10)
    assert set(traffic.statuses()) == {200}
    assert traffic.unanswered == 0


def spoil(path, damage):
    if damage == "manifest":
        (path / "bundle.json").write_text("{")
        return
    victim = max(path.rglob("*.onnx"))
    if damage == "missing":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-100])
    else:
        raw = bytearray(victim.read_bytes())
        raw[len(raw) // 2] ^= 1
        victim.write_bytes(bytes(raw))


def test_swaps_lose_no_request_and_each_answer_is_of_one_version(bundle, other_bundle, live, tmp_path):
    versions = {bundle.manifest.version, other_bundle.manifest.version}
    with served(live.path, tmp_path / "service", *PATIENT) as service, Traffic(service, bundle) as traffic:

        def serves(version):
            return lambda: service.client.get("/v1/model").json()["version"] == version

        for number in range(12):
            version = live.publish((other_bundle if number % 2 == 0 else bundle).path)
            Traffic.wait_until(serves(version))
        traffic.wait_for(5)
        began = time.monotonic()
        previous = live.rollback()
        Traffic.wait_until(serves(previous))
        assert time.monotonic() - began < 4  # a second on an idle machine
        traffic.wait_for(5)
        assert service.metric("infnet_model_swaps_total") == 13
    assert set(traffic.statuses()) == {200}
    assert traffic.unanswered == 0
    assert {answer.version for answer in traffic.answers} == versions


def test_a_clock_that_goes_backwards_loses_nothing_and_doubles_nothing(bundle, tmp_path):
    offset = tmp_path / "offset"
    offset.write_text("0")
    clock = {"PYTHONPATH": str(Path(__file__).parents[1] / "moving_clock"), "CLOCK_OFFSET": str(offset)}
    with served(bundle.path, tmp_path / "service", **clock) as service:
        with Traffic(service, bundle) as traffic:
            for back_s in (0, -7200, -86_400, 0):
                offset.write_text(str(back_s))
                traffic.wait_for(25)
        assert set(traffic.statuses()) == {200}
        assert set(traffic.event_statuses) == {200}
        assert_log_has(service, traffic)
        for stream in ("events", "served"):
            received = [record["received_ms"] for record in service.records(stream)]
            assert received == sorted(received)
        logged = {r["request_id"] for r in service.records("served") if r["items"]}  # not those out of time
        times = [record["time_ms"] for record in service.records("events")]
        assert min(times) < max(times) - 80_000_000  # it really went back
    later = max(times) + 10 * 86_400_000
    spec = bundle.catalogue().spec
    report = join_labels(tmp_path / "service" / "events", tmp_path / "samples", spec, now_ms=later, max_age_s=1e6)
    told = [event.split("/") for event in traffic.acknowledged]
    impressions = [(page, item) for page, item, kind in told if kind == "impression" and page in logged]
    samples, _ = read_samples(tmp_path / "samples")
    assert report.fates.samples == samples.height == len(impressions) > 250
    assert samples.unique(["request_id", "item_id"]).height == samples.height
