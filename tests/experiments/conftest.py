import json

import pytest

DAY = 86_400_000
START = 20_000 * DAY


@pytest.fixture
def write_log(tmp_path):
    """Writes an event log from (request, user, time, variant or None) and (event, request, type, time, value)."""

    def write(requests, events=(), experiment="e", **more):
        for kind in ("served", "events"):
            (tmp_path / "log" / kind).mkdir(parents=True, exist_ok=True)
        with (tmp_path / "log/served/w-000000000000.ndjson").open("a") as file:
            for request, user, time_ms, variant in requests:
                line = {"request_id": request, "user_id": user, "time_ms": time_ms, "context": {"tab": 1}, "user": None}
                line |= {"degraded": [], "items": ["1"], "scores": [0.5], **more.get(request, {})}
                if variant is not None:
                    line["experiments"] = {experiment: variant, "another": "x"}
                file.write(json.dumps(line) + "\n")
        with (tmp_path / "log/events/w-000000000000.ndjson").open("a") as file:
            for event, request, kind, time_ms, value in events:
                line = {"event_id": event, "request_id": request, "item_id": "1", "type": kind, "time_ms": time_ms}
                file.write(json.dumps(line | {"value": value, "user_id": None, "received_ms": time_ms}) + "\n")
        return tmp_path / "log"

    return write
