import json
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from infnet.errors import SpecError, StoreError
from infnet.serving import event_log
from infnet.serving.event_log import EventLog
from infnet.serving.events import Event, Served
from infnet.serving.log_reader import read_events
from infnet.serving.segments import segments

child = multiprocessing.get_context("fork")


def an_event(event_id="e", **changes):
    given = {"request_id": "r", "item_id": "7", "type": "click", "time_ms": 5, "received_ms": 0}
    return Event(event_id=event_id, **(given | changes))


def a_request(request_id="r", **changes):
    given = {
        "user_id": "u",
        "time_ms": 5,
        "received_ms": 0,
        "version": "v",
        "context": {"tab": "1"},
        "user": None,
        "histories": {},
        "items": ["7"],
        "values": {"rank": [1]},
        "predictions": {"click": [0.5]},
        "scores": [0.5],
        "degraded": [],
    }
    return Served(request_id=request_id, **(given | changes))


def ids(directory):
    return read_events(directory).events["event_id"].to_list()


def stamps(directory, writer):
    return read_events(directory, writer=writer).events["received_ms"].to_list()


def append_until_killed(directory, life, pipe):
    log, number = EventLog(directory, writer="w", fsync="never", segment_mb=1), 0
    while True:
        batch = [an_event(f"{life}-{number + i}", item_id="x" * (100 * i)) for i in range(1 + number % 7)]
        log.append_events(batch)
        number += len(batch)
        os.write(pipe, b"%d\n" % number)


def test_kill_9_loses_nothing_acknowledged_and_doubles_nothing(tmp_path):
    acknowledged = []
    for life in range(5):
        reads, writes = os.pipe()
        process = child.Process(target=append_until_killed, args=(tmp_path, life, writes))
        process.start()
        os.close(writes)
        told = os.read(reads, 1 << 20)
        deadline = time.monotonic() + 0.05 + 0.03 * life
        while time.monotonic() < deadline:
            told += os.read(reads, 1 << 20)
        os.kill(process.pid, signal.SIGKILL)
        while more := os.read(reads, 1 << 20):
            told += more
        os.close(reads)
        process.join()
        number = int(told[: told.rfind(b"\n")].rsplit(b"\n", 1)[-1])
        acknowledged += [f"{life}-{i}" for i in range(number)]
    EventLog(tmp_path, writer="w").close()
    found = Counter(ids(tmp_path))
    assert set(found.values()) == {1}
    assert found.keys() >= set(acknowledged)
    assert len(found) - len(acknowledged) <= 5 * 7  # the last batch of each life may have been written
    times = stamps(tmp_path, "w")
    assert times == sorted(times)


def test_a_line_that_a_killed_writer_left_unfinished_is_cut_off_and_counted(tmp_path):
    log = EventLog(tmp_path, writer="w")
    log.append_events([an_event("a")])
    log.close()
    (segment,) = segments(tmp_path / "events")
    whole = segment.path.read_bytes()
    segment.path.write_bytes(whole + whole[:-5] * 1000)
    log = EventLog(tmp_path, writer="w")
    assert log.num_torn == 1
    assert segment.path.read_bytes() == whole
    log.append_events([an_event("b")])
    assert ids(tmp_path) == ["a", "b"]


def fill_the_disk(directory, pipe):
    log, taken = EventLog(directory, writer="w", fsync="never"), []
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    refused = None
    for number in range(1000):
        batch = [an_event(f"{number}-{i}") for i in range(7)]
        try:
            log.append_events(batch)
        except StoreError as error:
            refused = str(error)
            break
        taken += [event.event_id for event in batch]
    states = [log.is_well, ids_by_hand(directory) == taken]
    with pytest.raises(StoreError):
        log.append_events(batch)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append_events([an_event("after")])
    states += [log.is_well, ids_by_hand(directory) == [*taken, "after"]]
    pipe.send((refused, states))


def ids_by_hand(directory):
    """Without Polars, whose threads a forked process does not have."""
    files = [segment.path for segment in segments(directory / "events")]
    return [json.loads(line)["event_id"] for file in files for line in file.read_bytes().splitlines()]


def test_a_full_disk_refuses_whole_batches_and_the_log_goes_on_when_there_is_room(tmp_path):
    here, there = child.Pipe()
    process = child.Process(target=fill_the_disk, args=(tmp_path, there))
    process.start()
    there.close()
    refused, states = here.recv()
    process.join()
    assert "disk is full" in refused
    assert states == [False, True, True, True]


def test_threads_lose_nothing_and_every_call_stands_together(tmp_path):
    log = EventLog(tmp_path)

    def append(number):
        log.append_events([an_event(f"{number}/{i}") for i in range(5)])
        log.append_served(a_request(str(number)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(200)))
    found = ids(tmp_path)
    assert sorted(found) == sorted(f"{number}/{i}" for number in range(200) for i in range(5))
    assert all(found[i : i + 5] == [f"{found[i].split('/')[0]}/{k}" for k in range(5)] for i in range(0, 1000, 5))
    assert {served.request_id for served in log.recent_served(1000)} == {str(number) for number in range(200)}


def test_writers_on_one_directory_have_different_names_and_a_restarted_one_takes_a_free_name(tmp_path):
    first, second = EventLog(tmp_path), EventLog(tmp_path)
    assert first.writer != second.writer
    name = first.writer
    first.close()
    third = EventLog(tmp_path)
    assert third.writer == name
    for log in (second, third):
        log.append_events([an_event(log.writer)])
    assert sorted(ids(tmp_path)) == sorted([second.writer, name])


def test_a_name_in_use_or_no_name_is_refused(tmp_path):
    log = EventLog(tmp_path, writer="w")
    with pytest.raises(StoreError, match="another process writes as 'w'"):
        EventLog(tmp_path, writer="w")
    with pytest.raises(SpecError, match=r"'\.\./w'"):
        EventLog(tmp_path, writer="../w")
    log.close()
    EventLog(tmp_path, writer="w")


def test_time_of_arrival_never_falls_even_when_the_clock_does(tmp_path, monkeypatch):
    clock = [2_000_000_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: clock[0] * 1_000_000)
    log = EventLog(tmp_path, writer="w")
    for step in (0, 50, -10_000, 20, 9_000):
        clock[0] += step
        log.append_events([an_event(str(step))])
        log.append_served(a_request(str(step)))
    log.close()
    clock[0] -= 86_400_000
    log = EventLog(tmp_path, writer="w")
    log.append_events([an_event("after")])
    assert stamps(tmp_path, "w") == [2_000_000_000_000] + [2_000_000_000_050] * 5
    assert log.recent_event_ids(2) == ["9000", "after"]


def test_time_of_arrival_is_the_clocks(tmp_path):
    log, before = EventLog(tmp_path, writer="w"), time.time_ns() // 1_000_000
    log.append_events([an_event(received_ms=5)])
    assert before <= stamps(tmp_path, "w")[0] <= time.time_ns() // 1_000_000


def test_segments_rotate_by_size_and_by_age(tmp_path):
    log = EventLog(tmp_path / "size", segment_mb=1)
    for number in range(30):
        log.append_events([an_event(str(number), item_id="x" * 100_000)])
    sizes = [segment.path.stat().st_size for segment in segments(tmp_path / "size" / "events")]
    assert len(sizes) == 3
    assert max(sizes) < 1_200_000
    old = EventLog(tmp_path / "age", max_age_s=0.05)
    old.append_events([an_event("a")])
    old.append_events([an_event("b")])
    time.sleep(0.06)
    old.append_events([an_event("c")])
    assert len(segments(tmp_path / "age" / "events")) == 2
    assert ids(tmp_path / "age") == ["a", "b", "c"]


def test_a_log_that_was_emptied_does_not_begin_with_numbers_it_had(tmp_path):
    log = EventLog(tmp_path, writer="w")
    log.append_events([an_event("a")])
    _, position, _ = read_events(tmp_path)
    log.close()
    for segment in segments(tmp_path / "events"):
        segment.path.unlink()
    time.sleep(1.01)
    EventLog(tmp_path, writer="w").append_events([an_event("b")])
    assert read_events(tmp_path, position).events["event_id"].to_list() == ["b"]


def test_fsync_always_brings_each_record_to_the_disk_and_callers_share_it(tmp_path, monkeypatch):
    sizes, fsync, expected = [], os.fsync, 2

    def slow(descriptor):
        """A disk that takes until everybody has written."""
        while segments(tmp_path / "events")[0].path.read_bytes().count(b"\n") < expected:
            time.sleep(0.001)
        fsync(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    log = EventLog(tmp_path, fsync="always")
    log.append_events([an_event("first")])
    monkeypatch.setattr(os, "fsync", slow)
    log.append_events([an_event("alone")])
    assert sizes == [log.position().popitem()[1]]
    expected += 16
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: log.append_events([an_event(str(number))]), range(16)))
    assert sizes[-1] == log.position().popitem()[1]
    assert len(sizes) <= 3  # one for whoever came first, one for all the others


def test_what_a_disk_may_have_lost_is_not_acknowledged(tmp_path, monkeypatch):
    log, fsync = EventLog(tmp_path, fsync="always"), os.fsync
    log.append_events([an_event("a")])
    started, failing = threading.Barrier(4), [True]

    def broken(descriptor):
        if failing[0]:
            time.sleep(0.02)
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    def append(event_id):
        started.wait()
        with pytest.raises(StoreError, match="Input/output error"):
            log.append_events([an_event(event_id)])

    monkeypatch.setattr(os, "fsync", broken)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, "bcde"))
    assert not log.is_well
    failing[0] = False
    log.append_events([an_event("f")])
    assert log.is_well
    assert {"a", "f"} <= set(ids(tmp_path))
    assert len(segments(tmp_path / "events")) > 1  # what failed is not written to again


def test_fsync_by_interval_happens_without_further_calls(tmp_path, monkeypatch):
    synced, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(event_log, "_SYNC_EVERY_S", 0.02)
    log = EventLog(tmp_path, fsync="interval")
    log.append_events([an_event("a")])
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), synced.set()))
    log.append_events([an_event("b")])
    assert synced.wait(2)
    log.close()


def test_malformed_events_are_kept_with_the_reason(tmp_path):
    log = EventLog(tmp_path)
    log.reject(b'{"type": \xff\n', "is no JSON")
    log.reject(b"x" * 100_000, "is no JSON")
    first, second = (
        json.loads(line)
        for segment in segments(tmp_path / "rejected")
        for line in segment.path.read_text().splitlines()
    )
    assert (first["reason"], first["raw"]) == ("is no JSON", '{"type": \\xff\n')
    assert second["num_bytes"] == 100_000
    assert len(second["raw"]) == 16_384


def test_the_latest_records_of_all_writers_are_known_after_a_restart(tmp_path):
    logs = [EventLog(tmp_path, segment_mb=1) for _ in range(2)]
    for number in range(60):
        logs[number % 2].append_events([an_event(str(number), item_id="x" * 100_000)])
        logs[number % 2].append_served(a_request(str(number)))
        time.sleep(0.0015)
    for log in logs:
        log.close()
    log = EventLog(tmp_path)
    assert log.recent_event_ids(45) == [str(number) for number in range(15, 60)]
    assert len(log.recent_event_ids(1000)) == 60
    assert [served.request_id for served in log.recent_served(45)] == [str(number) for number in range(15, 60)]
    assert log.recent_served(1)[0] == a_request("59", received_ms=log.recent_served(1)[0].received_ms)


def test_a_closed_log_and_a_directory_that_cannot_be_one_are_refused(tmp_path):
    log = EventLog(tmp_path / "log")
    log.close()
    with pytest.raises(StoreError, match="closed"):
        log.append_events([an_event()])
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot hold an event log"):
        EventLog(tmp_path / "file")
