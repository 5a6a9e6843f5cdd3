import json
import sys
from html.parser import HTMLParser

import polars as pl
import pytest
from typer.testing import CliRunner

from infnet.cli import main
from infnet.cli.ab import ab_app
from simulated_users import users

DAY = 86_400_000
EXPERIMENTS = """
experiments:
  - name: e
    variants: [{name: control}, {name: new}]
    forced: {tester: new}
    metrics:
      - {name: ctr, kind: ratio, numerator: click, denominator: impressions}
      - {name: "shown", numerator: impressions, is_guardrail: true, margin: 0.3}
"""


def invoke(*arguments):
    result = CliRunner().invoke(ab_app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiments.yaml"
    path.write_text(EXPERIMENTS)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "users.parquet"
    frame = users(3000, lift=0.3, before=True)
    frame.with_columns(tab=pl.Series(["1", "2"] * 1500)).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Users over three days, who click more often in the new variant."""
    directory, start = tmp_path_factory.mktemp("log"), 20_000 * DAY
    served, events = [], []
    for user, variant, shown, clicks in (
        users(600, lift=0.8).select("user_id", "variant", "impressions", "click").rows()
    ):
        for day in range(3):
            request, at = f"{user}-{day}", start + day * DAY
            line = {"request_id": request, "user_id": user, "time_ms": at, "degraded": [], "context": {"tab": day}}
            served.append(line | {"user": None, "items": ["1"], "experiments": {"e": variant}})
            for kind, number in (("impression", shown), ("click", clicks)):
                for index in range((int(number) + 2 - day) // 3):
                    event = {"event_id": f"{request}{kind}{index}", "request_id": request, "item_id": "1", "type": kind}
                    events.append(event | {"time_ms": at + 9, "value": 1.0, "user_id": None, "received_ms": at + 9})
    for name, lines in (("served", served), ("events", events)):
        (directory / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / name / "w-000000000000.ndjson").write_text(text)
    return directory


class Balanced(HTMLParser):
    """Fails where tags do not close each other."""

    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, _):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_report_of_a_log_gives_a_verdict_and_a_page(log, file, tmp_path):
    arguments = ("report", "--events", log, "--experiment", "e", "--experiments", file)
    text = invoke(*arguments, "--html", tmp_path / "a.html")
    first, *rest = text.splitlines()
    assert first == "e: ship new"
    assert any(line.startswith("ctr     new") and line.endswith("better") for line in rest)
    assert any("guardrail, held" in line for line in rest)
    page = (tmp_path / "a.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<svg") == 2
    assert "e: ship new" in parser.texts
    invoke(*arguments, "--html", tmp_path / "b.html")
    assert (tmp_path / "b.html").read_text() == page


def test_a_report_as_json_has_everything(log, file):
    found = json.loads(invoke("report", "--events", log, "--experiment", "e", "--experiments", file, "--json"))
    assert (found["outcome"], found["variant"], found["is_trusted"]) == ("ship", "new", True)
    assert sum(found["users"].values()) == 600
    assert [effect["metric"] for effect in found["effects"]] == ["ctr", "shown"]
    assert found["effects"][0]["low"] < found["effects"][0]["relative"] < found["effects"][0]["high"]
    assert {day["day"] for day in found["daily"]} == {20_000, 20_001, 20_002}


def test_a_ready_table_needs_no_log(table):
    text = invoke("report", "--table", table, "--experiment", "p", "--metric", "click", "--segment", "tab", "--fixed")
    assert text.splitlines()[0] == "p: ship new"
    assert "the pre-period narrows them to" in text
    assert any(line.startswith("tab      2") for line in text.splitlines())


def test_power_says_how_long_it_takes(log, table):
    text = invoke("power", "--events", log, "--metric", "ctr=click/impressions", "--effect", "0.1")
    assert "ctr: +10.0% needs " in text
    (found,) = json.loads(invoke("power", "--table", table, "--metric", "click", "--effect", "0.05", "--json"))
    frame = pl.read_parquet(table)
    mean, rho = frame["click"].mean(), frame.select(pl.corr("click", "click_before")).item()
    variance = frame["click"].var() * (1 - rho**2)
    wanted = 4 * (1.959964 + 0.841621) ** 2 * variance / (0.05 * mean) ** 2
    assert found["needed_users"] == pytest.approx(wanted, rel=0.02)


def test_check_and_assign_show_who_is_where(file):
    assert invoke("check", file).splitlines()[-1].split()[0] == "e"
    text = invoke("assign", file, "--user", "tester", "--user", "anna")
    assert [line.split() for line in text.splitlines()][2] == ["tester", "new"]
    found = json.loads(invoke("assign", file, "--user", "tester", "--json"))
    assert found == {"tester": {"e": "new"}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--experiment", "e"], "give either --events DIRECTORY or --table FILE"),
        (["report", "--events", "{log}", "--experiment", "f"], "no request was answered under 'f'; known are: e"),
        (
            ["report", "--events", "{tmp}", "--experiment", "e"],
            "served: is no directory; an event log holds served and",
        ),
        (
            ["report", "--events", "{log}", "--experiment", "e", "--metric", "clik"],
            "no event is of type 'clik'; did you",
        ),
        (
            ["report", "--events", "{log}", "--experiment", "e", "--control", "c"],
            "none of them 'c'; name one as --control",
        ),
        (["report", "--table", "{table}", "--experiment", "e", "--metric", "tab"], "column 'tab' holds String, wanted"),
        (["report", "--table", "{table}", "--experiment", "e", "--metric", "order"], "has no column 'order', which a"),
        (["report", "--table", "{tmp}/none.csv", "--experiment", "e"], "none.csv: cannot be read"),
        (["check", "{tmp}/none.yaml"], "none.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(log, table, tmp_path, monkeypatch, capsys, arguments, message):
    places = {"log": log, "tmp": tmp_path, "table": table}
    monkeypatch.setattr(sys, "argv", ["infnet", "ab", *(argument.format(**places) for argument in arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
