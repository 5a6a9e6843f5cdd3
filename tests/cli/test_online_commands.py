"""``infnet serve``, ``publish`` and ``update`` through the command line: what they say, and how they refuse."""

import json
import socket
import sys

import pytest
from sample_partitions import log_samples
from service_log import ServiceLog

from infnet.cli import main
from infnet.export.bundle import Bundle
from infnet.serving.publication import ModelDirectory
from small_bundle import graphs_of


@pytest.fixture
def run_command(monkeypatch, capsys):
    """(exit code, output, errors)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["infnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        found = capsys.readouterr()
        return caught.value.code or 0, found.out, found.err

    return call


@pytest.fixture(scope="module")
def events(dataset, tmp_path_factory):
    """A log whose windows have closed."""
    return ServiceLog(tmp_path_factory.mktemp("log") / "events").add(log_samples(dataset, "valid")[:96]).path


@pytest.mark.parametrize("verb", ["serve", "publish", "update"])
def test_help_has_an_example(run_command, verb):
    code, out, _ = run_command(verb, "--help")
    assert code == 0
    assert f"Example: infnet {verb}" in out


def refusals(bundle, home):
    events, live = home / "no events", home / "live"
    taken = socket.create_server(("127.0.0.1", 0))
    return taken, {
        "is no bundle": ("serve", home),
        "cannot listen there": ("serve", bundle, "--port", taken.getsockname()[1]),
        "give --store redis://": ("serve", bundle, "--workers", 2),
        "set INFNET_TOKEN": ("serve", bundle, "--host", "0.0.0.0"),
        "cannot be read as text; give a file with the token": ("serve", bundle, "--token-file", home / "none"),
        "URL of the feature store cannot be read": ("serve", bundle, "--store", "http://x", "--port", 0),
        "no task is called 'clik'; did you mean 'click'?": ("serve", bundle, "--by", "clik", "--port", 0),
        "--rollback: found the bundle": ("publish", bundle, "--to", live, "--rollback"),
        "BUNDLE is missing": ("publish", "--to", live),
        "holds no published model": ("publish", "--to", live, "--rollback"),
        "holds no event log": ("update", bundle, "--events", events, "--out", home / "out"),
        "give either --out BUNDLE or --to": ("update", bundle, "--events", events),
        "--follow publishes to --to": ("update", bundle, "--events", events, "--out", home / "out", "--follow"),
    }


def test_bad_input_is_refused_in_one_line_and_leaves_nothing(bundle, run_command, tmp_path, monkeypatch):
    monkeypatch.delenv("INFNET_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    taken, commands = refusals(bundle.path, tmp_path)
    with taken:
        for wanted, command in commands.items():
            code, out, err = run_command(*command)
            said = " ".join(err.split())
            assert (code, out) == (2, ""), command
            assert wanted in said, command
            assert said.startswith("Error: "), command
            assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert not ModelDirectory.is_one(tmp_path / "live")


def test_what_is_published_is_said_and_the_way_back(bundle, other_bundle, run_command, tmp_path):
    live = tmp_path / "live"
    versions = [each.manifest.version for each in (bundle, other_bundle)]
    code, out, _ = run_command("publish", bundle.path, "--to", live)
    assert (code, out) == (0, f"{live}: version {versions[0]} is current\n")
    _, out, _ = run_command("publish", other_bundle.path, "--to", live)
    assert f"Back to {versions[0]}: infnet publish --rollback --to {live}" in out
    _, out, _ = run_command("publish", "--rollback", "--to", live, "--json")
    assert json.loads(out)["version"] == versions[0]
    code, _, err = run_command("publish", "--rollback", "--to", live)
    assert code == 2
    assert "publish another bundle" in err


def test_an_update_makes_the_next_bundle_and_another_one_needs_more_events(
    bundle, events, run_command, tmp_path, monkeypatch
):
    samples, out = tmp_path / "samples", tmp_path / "next"
    command = ("--events", events, "--samples", samples)
    with graphs_of(bundle):
        code, text, _ = run_command("update", bundle.path, *command, "--out", out, "--unsure", "accept")
        made = Bundle.open(out, verify="full").manifest
        assert code == 0
        assert f"version {made.version}, update 1, after {bundle.manifest.version}" in text
        assert "Guard: no worse on" in text
        assert made.lineage.parent == bundle.manifest.version
        code, _, err = run_command("update", out, *command, "--out", tmp_path / "third")
        assert code == 2
        assert "wait for labels to be due" in err
        assert not (tmp_path / "third").exists()
        code, text, _ = run_command(
            "update", bundle.path, *command, "--to", tmp_path / "live", "--unsure", "accept", "--json"
        )
        report = json.loads(text)
        assert {"version", "parent", "rows", "added", "forgotten", "guard", "seconds"} <= {*report}
        assert ModelDirectory(tmp_path / "live").publication().version == report["version"] == made.version


def test_a_refusal_by_the_guard_ends_with_1_and_says_why(bundle, events, run_command, tmp_path):
    command = ("--events", events, "--samples", tmp_path / "samples", "--out", tmp_path / "out", "--unsure", "refuse")
    code, out, err = run_command("update", bundle.path, *command, "--json")
    assert code == 1
    assert json.loads(out)["guard"]["accepted"] is False
    assert "its update is refused" in " ".join(err.split())
    assert not (tmp_path / "out").exists()
