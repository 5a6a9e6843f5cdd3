import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from infnet.cli import main
from infnet.cli.rank import rank_command
from infnet.serving.encoding import RankRequest
from infnet.serving.ranker import Ranker
from small_bundle import small_run

AT = 1_651_800_000_000


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "items.txt"
    path.write_text("7\n\n 3 \nnew\n12\n", encoding="utf-8")
    return path


def invoke(*arguments):
    app = typer.Typer()
    app.command()(rank_command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result


def test_json_is_what_the_ranker_says_best_first(bundle, items):
    options = ("--context", "tab=t2", "--context", "temperature=3.5", "--time-ms", AT, "--json")
    result = invoke(bundle.path, "--user", "u3", "--items", items, "--by", "like", *options)
    found = json.loads(result.stdout)
    request = RankRequest("u3", ["7", "3", "new", "12"], {"tab": "t2", "temperature": 3.5}, time_ms=AT)
    wanted = Ranker(bundle).rank(request, "like")
    assert [item["item_id"] for item in found] == [item.item_id for item in wanted]
    for item, plain in zip(found, wanted, strict=True):
        assert list(item) == ["item_id", "score", "tasks"]
        assert item["tasks"] == pytest.approx(plain.tasks)
        assert item["score"] == item["tasks"]["like"]
    assert [item["score"] for item in found] == sorted((item["score"] for item in found), reverse=True)
    assert result.stderr == "1 of 4 items are unknown and scored as new ones\n"


def test_the_table_shows_the_best_with_every_task(bundle, items):
    result = invoke(bundle.path, "--user", "nobody", "--items", items, "--time-ms", AT, "--limit", 2)
    wanted = Ranker(bundle).rank(RankRequest("nobody", ["7", "3", "new", "12"], time_ms=AT))
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0] == ["rank", "item", "click", "like", "watch"]
    assert [line[:2] for line in lines if line[0].isdigit()] == [["1", wanted[0].item_id], ["2", wanted[1].item_id]]
    assert f"{wanted[0].tasks['watch']:.5g}" in lines[2]
    assert lines[-1] == ["ordered", "by", "click"]
    assert "user 'nobody' is unknown and treated as a new one" in result.stderr


def test_no_items_are_no_places(bundle, tmp_path):
    (tmp_path / "none").write_text("\n")
    result = invoke(bundle.path, "--user", "u3", "--items", tmp_path / "none", "--json")
    assert json.loads(result.stdout) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--items", "{items}"], "is no bundle (bundle.json: No such file or directory); make one with"),
        (
            ["{bundle}", "--items", "{tmp}/none"],
            "No such file or directory; give a text file with an item key per line",
        ),
        (["{bundle}", "--items", "{bundle}/whole.onnx"], "is no UTF-8 text"),
        (["{bundle}", "--items", "{items}", "--by", "clik"], "no task is called 'clik'; did you mean 'click'?"),
        (["{bundle}", "--items", "{items}", "--context", "tab"], "--context: found 'tab', wanted NAME=VALUE"),
        (["{bundle}", "--items", "{items}", "--context", "tap=t1"], "no context feature is called 'tap'; did you mean"),
        (["{bundle}", "--items", "{items}", "--context", "temperature=hot"], "'temperature' is 'hot', wanted a number"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bundle, items, tmp_path, tmp_path_factory, monkeypatch, capsys, arguments, message
):
    places = {"bundle": bundle.path, "items": items, "tmp": tmp_path, "run": small_run(tmp_path_factory).path}
    given = [argument.format(**places) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["infnet", "rank", *given, "--user", "u3"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert message in line
