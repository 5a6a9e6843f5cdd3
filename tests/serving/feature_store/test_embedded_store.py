import fcntl
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from infnet.errors import StoreError
from infnet.serving.feature_store import embedded, open_store
from infnet.serving.feature_store.base import HistoryEvent, Lookup

BOUNDS = {"click": 100_000}
EVERYTHING = {"click": 2**53}

WRITER = """
import sys
from pathlib import Path
from infnet.serving.feature_store.base import HistoryEvent, Lookup
from infnet.serving.feature_store.embedded import EmbeddedStore

store = EmbeddedStore(Path(sys.argv[1]), {"click": 100_000})
(first,) = store.fetch([Lookup("u", before={"click": 2**53})])
for n in range(len(first.user.histories["click"].items) // 3, 10**9):
    store.append([HistoryEvent("u", "click", f"{n}-{part}", n, part) for part in range(3)])
    print(n, flush=True)
"""

FILLER = """
import resource, signal, sys
from pathlib import Path
from infnet.errors import StoreError
from infnet.serving.feature_store.base import HistoryEvent
from infnet.serving.feature_store.embedded import EmbeddedStore

store = EmbeddedStore(Path(sys.argv[1]), {"click": 100_000})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
for n in range(10**6):
    try:
        store.append([HistoryEvent("u", "click", "x" * 500 + str(n), n, 0)])
    except StoreError as error:
        print(error)
        break
try:
    store.append([HistoryEvent("u", "click", "y" * 5000, n, 0)])
except StoreError:
    pass
else:
    n += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
store.append([HistoryEvent("u", "click", "last", 2**50, 0)])
print(n + 1)
"""


def items(store, user="u"):
    (found,) = store.fetch([Lookup(user, before=EVERYTHING)])
    return found.user.histories["click"].items


def test_what_was_written_is_there_when_it_is_opened_again(tmp_path):
    with closing(open_store(tmp_path / "new" / "store", BOUNDS)) as store:
        store.append([HistoryEvent("u", "click", "a", 1, 0)])
        store.put_users({"u": {"x": 1}})
        store.put_items({"i": {"x": 2}})
        store.mark("loaded", "yes")
    with closing(open_store(tmp_path / "new" / "store", BOUNDS)) as store:
        (found,) = store.fetch([Lookup("u", ["i"], EVERYTHING)])
        assert (found.user.values, found.items) == ({"x": 1}, [{"x": 2}])
        assert found.user.histories["click"].items == ["a"]
        assert store.marked("loaded") == "yes"


def test_a_process_killed_in_the_middle_loses_nothing_acknowledged_and_leaves_no_halves(tmp_path):
    acknowledged = -1
    for _ in range(2):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            for _ in range(200):
                acknowledged = int(writer.stdout.readline())
            writer.kill()
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split("\n")[:-1])])
        with closing(open_store(tmp_path, BOUNDS)) as store:
            found = items(store)
        assert len(found) in (3 * (acknowledged + 1), 3 * (acknowledged + 2))
        assert found[::-1] == [f"{n}-{part}" for n in range(len(found) // 3) for part in range(3)]


def test_a_second_holder_is_told_who_the_first_one_is(tmp_path):
    with closing(open_store(tmp_path, BOUNDS)):
        with pytest.raises(StoreError, match=rf"process {os.getpid()} holds this feature store.*--store redis://"):
            open_store(tmp_path, BOUNDS)
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"process {os.getpid()} holds" in second.stderr
    open_store(tmp_path, BOUNDS).close()


def test_reading_does_not_wait_for_a_write(tmp_path):
    with closing(open_store(tmp_path, BOUNDS)) as store:
        store.append([HistoryEvent("u", "click", "a", 1, 0)])
        with closing(sqlite3.connect(tmp_path / "features.sqlite", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("DELETE FROM events")
            started = time.monotonic()
            assert items(store) == ["a"]
            assert time.monotonic() - started < 1
            writer.execute("COMMIT")
        assert items(store) == []


def test_a_full_disk_is_named_and_costs_nothing_that_was_acknowledged(tmp_path):
    filled = subprocess.run([sys.executable, "-c", FILLER, str(tmp_path)], capture_output=True, text=True, check=True)
    *complaint, num = filled.stdout.splitlines()
    assert len(complaint) == 1
    assert complaint[0].startswith(f"{tmp_path / 'features.sqlite'}: ")
    with closing(open_store(tmp_path, BOUNDS)) as store:
        found = items(store)
    assert found[0] == "last"
    assert len(found) == int(num)


@pytest.mark.parametrize("at", [0, 4096])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, at):
    with closing(open_store(tmp_path, BOUNDS)) as store:
        store.append([HistoryEvent("u", "click", str(n), n, 0) for n in range(5000)])
    with (tmp_path / "features.sqlite").open("r+b") as file:
        file.seek(at)
        file.write(b"no database " * 40_000)
    damaged = pytest.raises(StoreError, match=r"features.sqlite: .* damaged .* move .* away and start again")
    with damaged, closing(open_store(tmp_path, BOUNDS)) as store:
        items(store)
    with (tmp_path / "lock").open() as lock:  # nobody holds it any more
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_of_another_version_is_refused(tmp_path):
    open_store(tmp_path, BOUNDS).close()
    with closing(sqlite3.connect(tmp_path / "features.sqlite")) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="is a feature store of format 7, this package reads format 1"):
        open_store(tmp_path, BOUNDS)


def test_a_place_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file: cannot hold a feature store"):
        open_store(tmp_path / "file", BOUNDS)


def test_a_closed_store_says_so(tmp_path):
    store = open_store(tmp_path, BOUNDS)
    items(store)
    store.close()
    store.close()
    for call in (lambda: items(store), lambda: store.mark("a", "b"), store.ping):
        with pytest.raises(StoreError, match="the feature store is closed"):
            call()


def test_expired_records_leave_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_SWEEP_EVERY_S", 0.0)
    monkeypatch.setattr(embedded, "_SWEPT", 2)

    def sizes():
        with closing(sqlite3.connect(tmp_path / "features.sqlite")) as database:
            tables = ("histories", "events", "users", "items")
            return [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]

    with closing(open_store(tmp_path, BOUNDS, ttl_s=0.5)) as store:
        store.append([HistoryEvent(f"u{n}", "click", str(at), at, 0) for n in range(5) for at in range(3)])
        store.put_users({f"u{n}": {} for n in range(5)})
        store.put_items({f"i{n}": {} for n in range(5)})
        assert sizes() == [5, 15, 5, 5]
        time.sleep(0.6)
        for n in range(8):
            store.append([HistoryEvent("new", "click", str(n), n, 0)])
            store.put_items({"new": {}})
        assert sizes() == [1, 8, 0, 1]
        assert items(store, "new") == [str(n) for n in range(7, -1, -1)]


def test_requests_are_forgotten_oldest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_REMEMBERED", 3)
    with closing(open_store(tmp_path, BOUNDS)) as store:
        store.fetch([Lookup("a", request_id="1"), Lookup("b", request_id="2"), Lookup("c", request_id="3")])
        store.fetch([Lookup("a", request_id="1"), Lookup("d", request_id="4")])
        assert store.users_of(["1", "2", "3", "4"]) == ["a", None, "c", "d"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc here to count descriptors in")
def test_threads_that_come_and_go_leave_no_descriptors(tmp_path):
    with closing(open_store(tmp_path, BOUNDS)) as store:
        counts = []
        for _ in range(30):
            thread = threading.Thread(target=items, args=(store,))
            thread.start()
            thread.join()
            counts.append(len(os.listdir("/proc/self/fd")))
        assert max(counts) - counts[0] <= 2
