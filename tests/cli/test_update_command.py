import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout

import polars as pl
import pytest
import typer
from altered_bundles import without_checkpoint
from sample_partitions import log_samples
from service_log import ServiceLog
from typer.testing import CliRunner

from infnet.cli import app, main
from infnet.cli.update import update_command
from infnet.export.bundle import Bundle
from infnet.schema import load_spec
from infnet.serving.label_join import join_labels
from infnet.serving.publication import ModelDirectory

NUM = 40
ACCEPT = ("--unsure", "accept")
"""So few rows are no reason to refuse."""
REPORT = {"version", "parent", "updates", "rows", "samples_part", "newest_ms", "new_users", "new_items", "added"}
REPORT |= {"forgotten", "seconds", "guard"}


@pytest.fixture(scope="session")
def log(dataset):
    return log_samples(dataset, "valid")


@pytest.fixture
def events(log, tmp_path):
    """An event log with some samples in it."""
    return ServiceLog(tmp_path / "events").add(log[:NUM])


def invoke(*arguments):
    alone = typer.Typer()
    alone.command()(update_command)
    result = CliRunner().invoke(alone, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def refused(monkeypatch, capsys):
    """Exit code, what was printed, and the one line on standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["infnet", "update", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        return stop.value.code, out, line

    return run


def test_a_bundle_learns_and_the_summary_says_what(bundle, log, events, tmp_path):
    out = tmp_path / "new" / "bundle-2"
    text = invoke(bundle.path, "--events", events.path, "--out", out, *ACCEPT)
    made, before = Bundle.open(out, verify="full").manifest, bundle.manifest
    first, learnt, grown, newest, guard, *tasks = text.splitlines()
    assert first == f"{out}: version {made.version}, update 1, after {before.version}"
    assert re.fullmatch(r"Learnt from 3\d rows in \d+\.\d s \(reading samples .*, exporting \d+\.\d\)", learnt)
    assert re.match(r"New users \d, new items \d; values with a new row: .*; values forgotten: none$", grown)
    assert re.fullmatch(r"Newest event in the weights: [\d,]+\.\d days old", newest)
    assert re.fullmatch(r"Guard: no worse on \d held-out rows, too few to be sure", guard)
    assert [re.match(r"  (\w+): loss \S+ -> \S+ \(error \S+\)", line)[1] for line in tasks] == [
        "click",
        "like",
        "watch",
    ]
    assert made.trained_to_ms == max(sample["impression_ms"] for _, sample in log[:NUM])
    assert {*(tmp_path / "new").iterdir()} == {out}
    assert (events.path / "samples" / "part-000001").is_dir()


def test_json_is_the_report_and_a_bundle_can_be_updated_in_place(bundle, log, events, tmp_path):
    parent, reports = bundle.path, []
    for number in (1, 2):
        arguments = (parent, "--events", events.path, "--samples", tmp_path / "kept", "--out", tmp_path / "b", "--json")
        reports.append(json.loads(invoke(*arguments, *ACCEPT)))
        assert reports[-1].keys() == REPORT
        assert reports[-1]["guard"].keys() == {"accepted", "rows", "is_sure", "reasons", "tasks"}
        assert (reports[-1]["updates"], reports[-1]["samples_part"]) == (number, number)
        assert Bundle.open(tmp_path / "b", verify="full").manifest.version == reports[-1]["version"]
        parent = tmp_path / "b"
        events.add(log[NUM : 2 * NUM])
    assert reports[1]["parent"] == reports[0]["version"]
    assert sum(report["rows"] + report["guard"]["rows"] for report in reports) >= 2 * NUM
    assert not (events.path / "samples").exists()


def test_a_directory_of_versions_is_updated_from_its_current_one_and_published_to(bundle, events, tmp_path, refused):
    live = ModelDirectory(tmp_path / "live")
    live.publish(bundle.path)
    arguments = (live.path, "--events", events.path, "--to", live.path)
    report = json.loads(invoke(*arguments, *ACCEPT, "--json"))
    assert live.publication().version == report["version"]
    assert live.publication().previous == (report["parent"],) == (bundle.manifest.version,)
    code, _, line = refused(*arguments)
    assert code == 2
    assert line == (
        f"Error: {events.path}/samples: holds nothing that {live.current()} has not learnt from; "
        "wait for labels to be due"
    )


def test_what_the_guard_refuses_is_kept_nowhere_and_exit_code_1(bundle, events, tmp_path, refused):
    live = ModelDirectory(tmp_path / "live")
    live.publish(bundle.path)
    options = ("--events", events.path, "--unsure", "refuse")
    code, out, line = refused(bundle.path, *options, "--out", tmp_path / "out", "--json")
    assert code == 1
    verdict = json.loads(out)["guard"]
    assert verdict["accepted"] is False
    (reason,) = verdict["reasons"]
    assert line == (
        f"Error: {bundle.path}: its update is refused, since on {verdict['rows']} held-out rows {reason}; "
        f"stay with version {bundle.manifest.version}"
    )
    code, out, _ = refused(live.path, *options, "--to", live.path)
    assert (code, out) == (1, "")
    assert live.publication().version == bundle.manifest.version
    assert not (tmp_path / "out").exists()


def test_tables_tell_of_new_items_and_users(bundle, log, tmp_path):
    request, sample = log[0]
    pair = (request | {"user_id": "new"}, sample | {"item_id": "9001"})
    events = ServiceLog(tmp_path / "events").add([pair, *log[1:20]])
    pl.DataFrame({"item": [9001], "price": [7.5]}).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"user": ["new"], "karma": [2.5]}).write_csv(tmp_path / "users.csv")
    tables = ("--items", tmp_path / "items.parquet", "--users", tmp_path / "users.csv")
    options = ("--events", events.path, "--out", tmp_path / "out", "--holdout", 0, *ACCEPT, "--json")
    report = json.loads(invoke(bundle.path, *options, *tables))
    assert report["guard"]["rows"] == 0
    assert report["rows"] == 20
    catalogue = Bundle.open(tmp_path / "out").catalogue()
    for entities, key, name, value in ((catalogue.items, "9001", "price", 7.5), (catalogue.users, "new", "karma", 2.5)):
        (index,) = entities.find(pl.Series([key]))
        assert index > 0
        assert entities.table.dense[index, 0] == catalogue.encoder.encode(name, [value])[0, 0]


def test_a_key_in_a_csv_file_is_what_is_written_there(bundle, log, tmp_path):
    request, sample = log[0]
    events = ServiceLog(tmp_path / "events").add([(request, sample | {"item_id": "0077"}), *log[1:20]])
    (tmp_path / "items.csv").write_text("item,price\n0077,7.5\n")
    options = ("--events", events.path, "--out", tmp_path / "out", "--holdout", 0, *ACCEPT)
    invoke(bundle.path, *options, "--items", tmp_path / "items.csv")
    items = Bundle.open(tmp_path / "out").catalogue().items
    assert "77" not in items.keys
    (index,) = items.find(pl.Series(["0077"]))
    assert items.table.dense[index, 0] == bundle.encoder.encode("price", [7.5])[0, 0]


def lines_of_rounds(num, *arguments):
    """The first lines of a loop, which is told to end by SIGTERM when they are there (or after a minute)."""
    text = io.StringIO()

    def end():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and text.getvalue().count("\n") < num:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # should it come too late
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ending = threading.Thread(target=end)
    ending.start()
    try:
        with redirect_stdout(text):
            app(["update", *map(str, arguments)], standalone_mode=False)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    finally:
        ending.join()
        signal.signal(signal.SIGTERM, before)
    return text.getvalue().splitlines()


def test_following_prints_a_line_a_round_until_it_is_told_to_end(bundle, events, tmp_path):
    live = ModelDirectory(tmp_path / "live")
    options = ("--events", events.path, "--to", live.path, "--follow", "--every", "0.1", "--min-samples", NUM)
    rounds = [json.loads(line) for line in lines_of_rounds(2, bundle.path, *options, *ACCEPT, "--json")]
    assert len(rounds) >= 2
    assert {*rounds[0]} == {"outcome", "version", "freshness_s", "new_samples", "seconds", "reason", "report"}
    assert [turn["outcome"] for turn in rounds] == ["published", *["waiting"] * (len(rounds) - 1)]
    assert rounds[0]["report"].keys() == REPORT
    assert {turn["version"] for turn in rounds} == {live.publication().version}
    assert live.publication().previous == (bundle.manifest.version,)


def test_a_line_of_text_says_why_nothing_was_published(bundle, events, tmp_path):
    options = ("--events", events.path, "--to", tmp_path / "live", "--follow", "--every", "0.1", "--unsure", "refuse")
    first, *rest = lines_of_rounds(2, bundle.path, *options, "--min-samples", NUM)
    begin = (
        r"\d\d:\d\d:\d\d {}: " + bundle.manifest.version + r" serves, newest event in its weights [\d,.]+ days old; "
    )
    assert re.fullmatch(begin.format("refused") + r".* has too few held-out labels to judge by .*", first)
    assert len(rest) >= 1
    assert all(re.fullmatch(begin.format("waiting") + f"{NUM} new samples", line) for line in rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}"], "give either --out BUNDLE or --to DIRECTORY"),
        (["{bundle}", "--out", "{tmp}/out", "--to", "{tmp}/live"], "give either --out BUNDLE or --to DIRECTORY"),
        (["{bundle}", "--out", "{tmp}/out", "--follow"], "--follow publishes to --to DIRECTORY, and takes neither"),
        (
            ["{bundle}", "--to", "{tmp}/live", "--follow", "--items", "{tmp}/items.csv"],
            "--follow publishes to --to DIRECTORY, and takes neither --users, --items nor --as-of",
        ),
        (["{tmp}/mine", "--out", "{tmp}/out"], "{tmp}/mine: is no bundle (bundle.json: No such file or directory)"),
        (
            ["{tmp}/mine", "--to", "{tmp}/live", "--follow"],
            "{tmp}/mine: is no bundle (bundle.json: No such file or directory); make one with 'infnet export'",
        ),
        (["{slim}", "--out", "{tmp}/out"], "was exported with --no-checkpoint and cannot be updated"),
        (["{bundle}", "--out", "{tmp}/mine"], "{tmp}/mine: exists and was not made by this command (no bundle.json"),
        (
            ["{bundle}", "--out", "{tmp}/out", "--items", "{tmp}/none.parquet"],
            "{tmp}/none.parquet: is no file (the table of items); give a CSV or Parquet file",
        ),
        (
            ["{bundle}", "--out", "{tmp}/out", "--users", "{tmp}/mine/notes"],
            "{tmp}/mine/notes: unknown file type; wanted",
        ),
        (
            ["{bundle}", "--out", "{tmp}/out", "--items", "{tmp}/items.csv"],
            "the table of items has no column 'item', the key of the spec's own; name it so",
        ),
        (
            ["{bundle}", "--out", "{tmp}/out", "--samples", "{tmp}/mine/notes"],
            "{tmp}/mine/notes: cannot hold samples (File exists); give another directory or mend its rights",
        ),
        (
            ["{bundle}", "--out", "{tmp}/out", "--items", "{tmp}/ragged.csv"],
            "{tmp}/ragged.csv, line 2: ",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bundle, events, tmp_path, refused, arguments, message):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("dear")
    (tmp_path / "items.csv").write_text("video,price\n7,1.5\n")
    (tmp_path / "ragged.csv").write_text("item,price\n7,1,5\n")
    places = {"bundle": bundle.path, "tmp": tmp_path, "slim": tmp_path / "slim"}
    if "{slim}" in arguments:
        without_checkpoint(bundle, places["slim"])
    given = [argument.format(**places) for argument in arguments]
    code, out, line = refused(*given, "--events", events.path)
    assert (code, out) == (2, "")
    assert line.startswith("Error: ")
    assert message.format(**places) in line
    left = {path.name for path in tmp_path.iterdir()} - {"slim"}
    assert left == {"mine", "items.csv", "ragged.csv", "events"}
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


@pytest.mark.parametrize("place", ["none", "mine"])
def test_where_no_events_were_logged_none_are_looked_for(bundle, tmp_path, refused, place):
    (tmp_path / "mine").mkdir()
    code, _, line = refused(bundle.path, "--events", tmp_path / place, "--out", tmp_path / "out")
    assert code == 2
    assert line == (
        f"Error: {tmp_path}/{place}: holds no event log (no served/ and no events/); "
        "give the directory a service writes to"
    )
    assert [*tmp_path.rglob("*")] == [tmp_path / "mine"]


@pytest.mark.parametrize("file", ["samples.parquet", "requests.parquet", "join.json"])
def test_damaged_samples_are_told_with_the_way_out(bundle, events, tmp_path, refused, file):
    join_labels(events.path, tmp_path / "samples", load_spec(bundle.path / "spec.yaml"))
    (damaged,) = tmp_path.glob(f"samples/part-*/{file}")
    damaged.write_bytes(damaged.read_bytes()[:100] + b"cut")
    options = ("--events", events.path, "--samples", tmp_path / "samples", "--out", tmp_path / "out")
    code, out, line = refused(bundle.path, *options, *ACCEPT)
    assert (code, out) == (2, "")
    assert line.startswith(f"Error: {tmp_path}/samples")
    assert "damaged" in line
    assert line.endswith(("; join into another place", f"; remove {tmp_path}/samples to join again"))
    assert not (tmp_path / "out").exists()


def test_somebody_elses_directory_is_not_published_to(bundle, events, tmp_path, refused):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("dear")
    code, out, line = refused(bundle.path, "--events", events.path, "--to", tmp_path / "mine", *ACCEPT)
    assert (code, out) == (2, "")
    assert "holds no published model; give another directory" in line
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


@pytest.mark.parametrize(
    "options", [("--unsure", "perhaps"), ("--delayed", "never"), ("--holdout", "0.95"), ("--every", "0"), ()]
)
def test_what_is_no_such_command_is_told_with_exit_code_2(options):
    result = CliRunner().invoke(app, ["update", "b", "--out", "c", *options, *(("--events", "e") if options else ())])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert all(option in result.stderr for option in options[:1] or ["--events"])


def test_help_has_examples():
    text = CliRunner().invoke(app, ["update", "--help"]).stdout
    assert "Example: infnet update bundle --events events --out bundle-2" in text
    assert "Example: infnet update bundle --events events --to live --follow --every 30" in text


WITHOUT_EXTRAS = """
import sys
sys.modules |= dict.fromkeys(("fastapi", "prometheus_client", "redis", "structlog", "uvicorn"))
from infnet.cli import main
main()
"""


def test_other_commands_do_without_what_a_service_needs():
    command = [sys.executable, "-c", WITHOUT_EXTRAS, "--version"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
