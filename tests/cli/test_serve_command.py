import contextlib
import gc
import logging
import os
import re
import shutil
import signal
import socket
import sys

import pytest
import structlog
import typer
from typer.main import get_command
from typer.testing import CliRunner

from infnet.cli import app, main
from infnet.cli.serve import serve_command
from infnet.serving import run
from infnet.serving.publication import ModelDirectory
from infnet.serving.settings import ServeSettings

LOGGERS = ("uvicorn", "uvicorn.error")


class BegunError(Exception):
    """The service would have begun to serve."""


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """In a directory of one's own; nothing is served, and signals and logs are put back."""

    def begin(*_, **__):
        raise BegunError

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INFNET_TOKEN", raising=False)
    monkeypatch.setattr(run.uvicorn.Server, "run", begin)
    monkeypatch.setattr(run.Multiprocess, "run", begin)
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    loggers = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in LOGGERS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name, (before, propagates) in loggers.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = before, propagates
        logger.setLevel(logging.NOTSET)
    structlog.reset_defaults()
    gc.unfreeze()
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def taken():
    """A port on which somebody listens already, at every address of this machine."""
    with socket.socket() as somebody:
        somebody.bind(("0.0.0.0", 0))
        somebody.listen()
        yield somebody.getsockname()[1]


@pytest.fixture
def refused(monkeypatch, capsys):
    """Exit code, and the one line on standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["infnet", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return stop.value.code, line

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "{tmp}/none: is no bundle (bundle.json: No such file or directory); make one with 'infnet"),
        (["{tmp}"], "{tmp}: is no bundle (bundle.json: No such file or directory); make one with 'infnet export'"),
        (["{tmp}/cut"], "{tmp}/cut/whole.onnx: "),
        (["{bundle}", "--workers", "2"], "--workers 2: the embedded store is for one process; give --store redis://.."),
        (
            ["{bundle}", "--host", "0.0.0.0"],
            "--host 0.0.0.0: others can reach it, and without a token anybody may send events; set INFNET_TOKEN",
        ),
        (["{bundle}", "--host", "::"], "--host ::: others can reach it, and without a token"),
        (["{bundle}", "--host", "ranker.example.com"], "--host ranker.example.com: others can reach it, and without"),
        (
            ["{bundle}", "--port", "{taken}"],
            "--host 127.0.0.1 --port {taken}: cannot listen there (Address already in use); give another",
        ),
        (
            ["{bundle}", "--host", "192.0.2.1", "--token-file", "{tmp}/token"],
            "--host 192.0.2.1 --port 0: cannot listen there (Cannot assign requested address); give another",
        ),
        (["{bundle}", "--token-file", "{tmp}/none"], "{tmp}/none: cannot be read as text; give a file with the token"),
        (["{bundle}", "--token-file", "{tmp}/binary"], "{tmp}/binary: cannot be read as text; give a file with the"),
        (["{bundle}", "--token-file", "{tmp}/blank"], "{tmp}/blank: is empty; give a file with the token in it"),
        (
            ["{bundle}", "--store", "http://127.0.0.1:6379/0"],
            "the URL of the feature store cannot be read; wanted redis://[[user]:password@]host[:port][/database]",
        ),
        (
            ["{bundle}", "--store", "127.0.0.1:6379"],
            "the URL of the feature store cannot be read; wanted redis://[[user]:password@]host[:port][/database]",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bundle, tmp_path, taken, refused, arguments, message):
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "blank").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    shutil.copytree(bundle.path, tmp_path / "cut")
    (tmp_path / "cut" / "whole.onnx").write_bytes(b"half")
    before = {*tmp_path.iterdir()}
    places = {"bundle": bundle.path, "tmp": tmp_path, "taken": taken}
    code, line = refused("--port", 0, *(argument.format(**places) for argument in arguments))
    assert code == 2
    assert line.startswith(f"Error: {message.format(**places)}")
    assert {*tmp_path.iterdir()} == before


def test_a_task_that_is_none_is_told_with_what_may_have_been_meant(bundle, refused):
    assert refused(bundle.path, "--port", 0, "--by", "clik") == (
        2,
        "Error: no task is called 'clik'; did you mean 'click'?",
    )


def test_a_task_that_is_none_leaves_nothing_behind(bundle, refused, tmp_path):
    refused(bundle.path, "--port", 0, "--by", "clik")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("option", "what"), [("--state", "a feature store"), ("--events", "an event log")])
def test_a_directory_that_cannot_be_used_is_told_with_exit_code_1(bundle, refused, tmp_path, option, what):
    (tmp_path / "file").write_text("dear")
    code, line = refused(bundle.path, "--port", 0, option, tmp_path / "file")
    assert code == 1
    assert re.fullmatch(rf"Error: {tmp_path}/file: cannot hold {what} \(.*\); give another directory.*", line)
    assert (tmp_path / "file").read_text() == "dear"


def test_several_workers_need_a_redis_that_answers(bundle, refused, tmp_path):
    with socket.socket() as nobody:  # bound, but nobody listens
        nobody.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
        code, line = refused(bundle.path, "--port", 0, "--store", url, "--workers", 2)
    assert code == 1
    assert re.fullmatch(r"Error: Redis at 127\.0\.0\.1:\d+/0 cannot be reached \(.*\); see that it runs", line)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("arguments", [("--by", "clik"), ("--events", "file")])
def test_several_workers_are_not_begun_with_bad_input(bundle, refused, tmp_path, redis_server, arguments):
    (tmp_path / "file").write_text("dear")
    several = ("--store", redis_server.url, "--workers", 2, "--log-level", "error")
    code, _ = refused(bundle.path, "--port", 0, *several, *arguments)
    assert code in (1, 2)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_this_machine_alone_needs_no_token(bundle, taken, refused, host):
    with contextlib.ExitStack() as stack:
        if ":" in host and socket.has_ipv6:  # somebody listens there as well, where there is such an address
            with contextlib.suppress(OSError):
                somebody = stack.enter_context(socket.socket(socket.AF_INET6))
                somebody.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                somebody.bind((host, taken))
                somebody.listen()
        code, line = refused(bundle.path, "--host", host, "--port", taken)
    assert code == 2
    assert line.startswith(f"Error: --host {host} --port {taken}: cannot listen there (")


@pytest.mark.parametrize("source", ["file", "environment"])
def test_an_open_address_is_let_pass_with_a_token(bundle, taken, refused, tmp_path, monkeypatch, source):
    options = ()
    if source == "file":
        (tmp_path / "token").write_text("secret\n")
        options = ("--token-file", tmp_path / "token")
    else:
        monkeypatch.setenv("INFNET_TOKEN", "secret")
    code, line = refused(bundle.path, "--host", "0.0.0.0", "--port", taken, *options)
    assert code == 2
    assert line.startswith(f"Error: --host 0.0.0.0 --port {taken}: cannot listen there (")


def test_an_empty_token_in_the_environment_is_none(bundle, refused, monkeypatch):
    monkeypatch.setenv("INFNET_TOKEN", "")
    assert "without a token anybody may send events" in refused(bundle.path, "--host", "0.0.0.0")[1]


def test_a_directory_of_versions_can_be_served(bundle, tmp_path):
    ModelDirectory(tmp_path / "live").publish(bundle.path)
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "live"), "--port", "0"])
    assert isinstance(result.exception, BegunError)


@pytest.fixture
def received(monkeypatch):
    """What the service is told."""
    calls = []
    monkeypatch.setattr(run, "serve", lambda settings, token: calls.append((settings, token)))

    def call(*arguments):
        result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return calls[-1]

    return call


def test_the_defaults_are_those_of_the_service(received, tmp_path):
    settings, token = received("b")
    assert settings == ServeSettings(model="b", state="state", events="events")
    assert token is None


def test_every_option_reaches_the_service(received, tmp_path):
    (tmp_path / "token").write_text(" secret\n")
    given = {
        **{"store": "redis://r/1", "state": "s", "events": "e", "host": "::1", "port": 81, "workers": 3, "threads": 4},
        **{"by": "like", "deadline_ms": 50.0, "store_timeout_ms": 7.0, "queue": 9, "batch": 5, "batch_wait_ms": 2.5},
        **{"max_candidates": 77, "fsync": "always", "log_level": "error"},
    }
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    settings, token = received("b", *options, "--no-load", "--tracing", "--token-file", tmp_path / "token")
    said = settings.model_dump(mode="json")
    assert {name: said[name] for name in given} == given
    assert (settings.loads, settings.tracing, token) == (False, True, "secret")


@pytest.mark.parametrize("options", [("--port", "70000"), ("--workers", "0"), ("--fsync", "often"), ("--polite", "1")])
def test_what_is_no_such_command_is_told_with_exit_code_2(options):
    result = CliRunner().invoke(app, ["serve", "b", *options])
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert options[0] in line


@pytest.mark.parametrize("missing", ["uvicorn", "fastapi"])
def test_without_the_extra_it_says_how_to_install_it(refused, monkeypatch, missing):
    monkeypatch.delitem(sys.modules, "infnet.serving.run")
    monkeypatch.setitem(sys.modules, missing, None)
    assert refused("b") == (2, f"Error: serving needs {missing}; install it with: pip install 'infnet[serve]'")


def test_help_has_an_example_and_a_word_on_every_option():
    text = CliRunner().invoke(app, ["serve", "--help"]).stdout
    assert "Example: infnet serve bundle --store redis://127.0.0.1:6379/0 --workers 2" in text
    alone = typer.Typer()
    alone.command()(serve_command)
    assert all(
        parameter.help for parameter in get_command(alone).params if parameter.name in ServeSettings.model_fields
    )
