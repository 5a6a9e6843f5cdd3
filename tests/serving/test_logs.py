import contextlib
import io
import json
import subprocess
import sys

import pytest
import structlog

from infnet.serving.logs import set_up_logs

LINES = """
import logging, sys
import structlog
from infnet.serving.logs import set_up_logs

for level in ("debug", "info", "error"):
    set_up_logs(level)
    log = structlog.get_logger("infnet.serving.app")
    log.debug("detail", number=1)
    log.info("told", text="naïve \\ud800\\nsecond line")
    with structlog.contextvars.bound_contextvars(trace_id="abc"):
        log.warning("within_a_request")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed", request_ids=["r1"])
    logging.getLogger("uvicorn.error").debug("server detail")
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    logging.getLogger("uvicorn").error("no good")
    logging.getLogger("elsewhere").info("somebody else's")
    print(level, file=sys.stderr)
print("an answer on standard output")
"""
EVENTS = {
    "debug": ["detail", "told", "within_a_request", "failed"],
    "info": ["told", "within_a_request", "failed"],
    "error": ["failed"],
}
OF_SERVER = {
    "debug": ["server detail", "Started server process [7]", "no good"],
    "info": ["Started server process [7]", "no good"],
    "error": ["no good"],
}


@pytest.fixture(scope="module")
def written():
    """By level, the lines on standard error."""
    done = subprocess.run([sys.executable, "-c", LINES], capture_output=True, check=True)
    assert done.stdout == b"an answer on standard output\n"
    rest, found = done.stderr.decode(), {}
    for level in EVENTS:
        part, _, rest = rest.partition(f"{level}\n")
        found[level] = [json.loads(line) for line in part.splitlines()]
    return found


@pytest.mark.parametrize("level", EVENTS)
def test_every_line_is_one_json_object_that_says_when_and_how_bad(written, level):
    assert all({"event", "level", "timestamp"} <= line.keys() for line in written[level])
    assert [line["event"] for line in written[level]] == EVENTS[level] + OF_SERVER[level]


def test_a_line_holds_what_it_was_given_and_nothing_else(written):
    told, within, failed, started, bad = written["info"]
    assert told["text"] == "naïve \ud800\nsecond line"
    assert within["trace_id"] == "abc"
    assert failed["request_ids"] == ["r1"]
    assert "ValueError: broken" in failed["exception"]
    assert "trace_id" not in failed
    assert bad.keys() == started.keys() == {"event", "level", "timestamp"}
    assert [line["level"] for line in written["info"]] == ["info", "warning", "error", "info", "error"]


def test_a_logger_that_was_used_follows_standard_error_to_another_place():
    log = structlog.get_logger("a module's own")
    try:
        for text in ("first", "second"):
            with contextlib.redirect_stderr(io.StringIO()) as place:
                set_up_logs("info")
                log.info(text)
            assert json.loads(place.getvalue())["event"] == text
            place.close()
        with contextlib.redirect_stderr(io.StringIO()) as place:
            log.info("third")
        assert json.loads(place.getvalue())["event"] == "third"
    finally:
        structlog.reset_defaults()
