"""Several processes behind one port and one Redis are one service."""

import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from redis_server import RedisServer
from served import PATIENT, served
from traffic import Traffic

TOKEN = "a token that nobody guesses"
PAGES = 40


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(tmp_path / "redis", password="secret")
    yield server
    server.stop()


@pytest.fixture
def service(bundle, redis, tmp_path):
    options = ("--store", redis.url, "--workers", "2", "--store-timeout-ms", "500", *PATIENT)
    with served(bundle.path, tmp_path / "service", *options, INFNET_TOKEN=TOKEN) as running:
        running.client.headers["authorization"] = f"Bearer {TOKEN}"
        yield running


def workers(service):
    """Processes of the service that answer."""
    listed = subprocess.run(["pgrep", "-P", str(service.process.pid)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split() if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def asked(service, path, body):
    """Over a connection of its own, which either process may take."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=service.client.base_url, timeout=10) as client:
        return client.post(path, json=body, headers=headers)


def test_a_click_told_to_one_is_in_the_history_that_any_reads_next(service):
    for page in range(PAGES):
        item = str(1 + page % 40)
        assert asked(service, "/v1/rank", {"request_id": f"a{page}", "user_id": "u3", "item_ids": [item]}).is_success
        event = {"request_id": f"a{page}", "item_id": item, "type": "click"}
        assert asked(service, "/v1/events", [event]).json()["accepted"] == 1
        assert asked(service, "/v1/rank", {"request_id": f"b{page}", "user_id": "u3", "item_ids": ["1"]}).is_success
    served_requests = {record["request_id"]: record for record in service.records("served")}
    assert len(served_requests) == 2 * PAGES
    for page in range(PAGES):
        assert served_requests[f"b{page}"]["histories"]["click"]["items"][0] == str(1 + page % 40)
    assert len({path.name for path in (service.directory / "events" / "served").glob("*.ndjson")}) == 2
    assert service.metric("infnet_candidates_count") == 2 * PAGES  # whichever process is asked


def test_a_worker_that_dies_is_replaced_and_the_other_one_serves_on(service, bundle):
    before = workers(service)
    assert len(before) == 2
    with httpx.Client(base_url=service.client.base_url, timeout=10) as client:
        os.kill(before[0], signal.SIGKILL)
        good = 0
        for number in range(200):
            try:
                good += client.post("/v1/rank", json={"user_id": "u1", "item_ids": [str(1 + number % 40)]}).is_success
            except httpx.TransportError:
                continue
        assert good >= 150
    Traffic.wait_until(lambda: len(workers(service)) == 2)
    assert before[1] in workers(service)


def test_without_the_token_nothing_changes_and_its_secrets_stay_inside(service, redis):
    del service.client.headers["authorization"]
    event = {"request_id": "r", "item_id": "1", "type": "click"}
    for given in (None, "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer ü".encode()):
        headers = {} if given is None else {"authorization": given}
        for answer in (
            service.client.post("/v1/events", json=[event], headers=headers),
            service.client.put("/v1/users/u1", json={"features": {"years": 30}}, headers=headers),
            service.client.put("/v1/items/1", json={"features": {"bid": 1.0}}, headers=headers),
        ):
            assert answer.status_code == 401
            assert TOKEN not in answer.text
    assert service.records("events") == []
    redis.stop()
    service.rank(user_id="u1", item_ids=["1"])
    assert "secret" not in service.log
    assert TOKEN not in service.log
