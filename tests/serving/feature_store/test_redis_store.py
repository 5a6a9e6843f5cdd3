import select
import socket
import threading
import time
import traceback
from contextlib import closing, contextmanager

import pytest

from infnet.errors import SpecError, StoreError
from infnet.serving.feature_store import open_store
from infnet.serving.feature_store.base import HistoryEvent, Lookup
from infnet.serving.feature_store.redis import RedisStore
from redis_server import RedisServer

BOUNDS = {"click": 50, "like": 50}
EVERYTHING = {"click": 2**53, "like": 2**53}
SECRET = "s3cr3t"


@contextmanager
def counting_proxy(port, quiet_s=0.2):
    """Yields a port that leads to another one, and a list to which each turn of the client is added.

    A turn is what comes until the client is quiet; only then is it passed on, and the answer passed back likewise.
    """
    turns = []

    def pass_on(source, target):
        data = b""
        while not data or select.select([source], [], [], quiet_s)[0]:
            some = source.recv(1 << 20)
            if not some:
                return b""
            data += some
        target.sendall(data)
        return data

    def serve():
        try:
            with listener.accept()[0] as client, socket.create_connection(("127.0.0.1", port)) as server:
                while data := pass_on(client, server):
                    turns.append(data)
                    pass_on(server, client)
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], turns
    thread.join(5)


def history(store, user="u"):
    (found,) = store.fetch([Lookup(user, before=EVERYTHING)])
    return found.user.histories["click"].items


@contextmanager
def failing_within(seconds, match):
    started = time.monotonic()
    with pytest.raises(StoreError, match=match):
        yield
    assert time.monotonic() - started < seconds


def test_everything_several_requests_need_takes_one_round_trip(redis_server):
    with counting_proxy(redis_server.port) as (port, turns):
        store = RedisStore(f"redis://127.0.0.1:{port}", BOUNDS, timeout_s=20, namespace="turns")
        with closing(store):
            store.ping()
            turns.clear()
            items = [str(n) for n in range(500)]
            store.fetch([Lookup(f"u{n}", items, EVERYTHING, request_id=f"r{n}") for n in range(3)])
            assert len(turns) == 1
            assert turns[0].count(b"ZREVRANGEBYSCORE") == 6
            store.append([HistoryEvent(f"u{n}", "click", str(n), n, 0) for n in range(100)])
            assert len(turns) == 2
            assert turns[1].startswith(b"*1\r\n$5\r\nMULTI\r\n")
            assert turns[1].endswith(b"$4\r\nEXEC\r\n")
            store.put_items({item: {"x": 1} for item in items})
            assert len(turns) == 3


def test_everything_but_notes_expires(redis_server):
    with closing(RedisStore(redis_server.url, BOUNDS, ttl_s=1000, timeout_s=10, namespace="expiring")) as store:
        store.append([HistoryEvent("u", "click", "a", 1, 0)])
        store.put_users({"u": {}})
        store.put_items({"i": {}})
        store.fetch([Lookup("u", request_id="r")])
        store.mark("m", "1")
    with redis_server.client() as client:
        left = {key.decode(): client.ttl(key) for key in client.scan_iter("expiring:*")}
    kept = {"expiring:history:click:{uu}": 1000, "expiring:user:{uu}": 1000, "expiring:item:i": 1000}
    assert left == pytest.approx(kept | {"expiring:request:r": 3600, "expiring:mark:m": -1}, abs=20)


def test_namespaces_do_not_mix(redis_server):
    one, other = (RedisStore(redis_server.url, BOUNDS, timeout_s=10, namespace=name) for name in ("one", "other"))
    with closing(one), closing(other):
        one.append([HistoryEvent("u", "click", "a", 1, 0)])
        assert (history(one), history(other)) == (["a"], [])


def test_a_server_that_is_down_fails_at_once_and_is_used_again_as_soon_as_it_is_back(tmp_path):
    server = RedisServer(tmp_path, keeps=True)
    with closing(open_store(server.url, BOUNDS, timeout_s=1)) as store:
        for n in range(2):
            store.append([HistoryEvent("u", "click", str(n), n, 0)])
            server.stop()
            for call in (
                lambda: history(store),
                lambda: store.append([HistoryEvent("u", "click", "x", 9, 0)]),
                store.ping,
            ):
                with failing_within(1, f"Redis at 127.0.0.1:{server.port}/0 cannot be reached .*refused"):
                    call()
            server.start()
            assert history(store) == [str(n) for n in range(n, -1, -1)]
    server.stop()


def test_a_server_that_hangs_costs_the_timeout_and_no_answer_goes_to_another_question(redis_server):
    with (
        closing(RedisStore(redis_server.url, BOUNDS, timeout_s=0.1, namespace="hangs")) as store,
        redis_server.client() as client,
    ):
        store.append([HistoryEvent(user, "click", user, 1, 0) for user in ("u", "v")])
        client.execute_command("CLIENT", "PAUSE", 700, "ALL")
        for _ in range(2):
            with failing_within(0.5, "does not answer in time"):
                history(store, "u")
        time.sleep(0.7)
        assert (history(store, "v"), history(store, "u")) == (["v"], ["u"])


def test_no_password_is_in_any_message(tmp_path):
    server = RedisServer(tmp_path, password=SECRET)
    with closing(open_store(server.url, BOUNDS, timeout_s=5)) as store:
        store.ping()
        urls = [
            f"redis://:wrong{SECRET}@127.0.0.1:{server.port}/0",
            f"redis://user:{SECRET}@127.0.0.1:{server.port}/0",
            f"redis://:{SECRET}@127.0.0.1:{server.port}/77",
            f"redis://:{SECRET}@127.0.0.1:1/0",
            f"unix://:{SECRET}@/nowhere/redis.sock",
            f"redis://:{SECRET}#1@127.0.0.1:{server.port}/0",
            f"redis://:{SECRET}/1@127.0.0.1:{server.port}/0",
            f"redis://:{SECRET}@127.0.0.1:{server.port}/0?socket_timeout=x",
            f"redis://:{SECRET}@127.0.0.1:{server.port}/0?no_such_option=1",
            f"redis://:{SECRET}@127.0.0.1:99999/0",
            f"ftp://:{SECRET}@127.0.0.1/0",
        ]
        for url in urls:
            with (
                pytest.raises((StoreError, SpecError)) as caught,
                closing(open_store(url, BOUNDS, timeout_s=5)) as other,
            ):
                other.ping()
            told = "".join(traceback.format_exception(caught.value))
            assert SECRET not in told, url
            assert "\n" not in str(caught.value)
        server.stop()
        with pytest.raises(StoreError) as caught:
            store.ping()
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_command_that_redis_refuses_is_one_line(redis_server):
    with closing(RedisStore(redis_server.url, BOUNDS, timeout_s=10, namespace="refused")) as store:
        with redis_server.client() as client:
            client.set("refused:history:click:{uu}", "no list")
        for call in (lambda: history(store), lambda: store.append([HistoryEvent("u", "click", "a\nb", 1, 0)])):
            with pytest.raises(StoreError, match=r"refuses a command.*WRONGTYPE") as caught:
                call()
            assert "\n" not in str(caught.value)
