import json
import shutil
import sys

import pytest
import typer
from altered_bundles import altered_copy
from typer.testing import CliRunner

from infnet.cli import app, main
from infnet.cli.publish import publish_command
from infnet.export.bundle import Bundle
from infnet.serving.publication import ModelDirectory


def invoke(*arguments):
    alone = typer.Typer()
    alone.command()(publish_command)
    result = CliRunner().invoke(alone, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(monkeypatch, capsys, *arguments):
    """Exit code, and the one line on standard error."""
    monkeypatch.setattr(sys, "argv", ["infnet", "publish", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return stop.value.code, line


def test_a_bundle_becomes_current_and_the_way_back_is_shown(bundle, other_bundle, tmp_path):
    live, (first, second) = tmp_path / "new" / "live", (each.manifest.version for each in (bundle, other_bundle))
    assert invoke(bundle.path, "--to", live).splitlines() == [f"{live}: version {first} is current"]
    assert invoke(other_bundle.path, "--to", live).splitlines() == [
        f"{live}: version {second} is current",
        f"Back to {first}: infnet publish --rollback --to {live}",
    ]
    assert Bundle.open(ModelDirectory(live).current(), verify="full").manifest.version == second
    assert invoke("--rollback", "--to", live).splitlines() == [f"{live}: version {first} is current"]
    assert ModelDirectory(live).publication().version == first


def test_json_is_what_the_directory_says(bundle, other_bundle, tmp_path):
    live = tmp_path / "live"
    invoke(bundle.path, "--to", live)
    for arguments in ((other_bundle.path,), ("--rollback",)):
        said = json.loads(invoke(*arguments, "--to", live, "--json"))
        assert said == json.loads((live / "current.json").read_text())
        assert {*said} == {"version", "previous", "published_ms"}
    assert said["version"] == bundle.manifest.version


def test_as_many_versions_stay_as_asked(bundle, other_bundle, tmp_path):
    live = tmp_path / "live"
    spec = (bundle.path / "spec.yaml").read_bytes()
    third = altered_copy(bundle, tmp_path / "third", {"spec.yaml": spec + b"# another one"})
    versions = []
    for path in (bundle.path, other_bundle.path, third):
        invoke(path, "--to", live, "--keep", 2)
        versions.append(ModelDirectory(live).publication().version)
    assert len({*versions}) == 3
    assert ModelDirectory(live).versions() == sorted(versions[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "{tmp}/none: is no bundle (bundle.json: No such file or directory); make one with"),
        (["{tmp}/mine"], "{tmp}/mine: is no bundle (bundle.json: No such file or directory); make one with"),
        (["{tmp}/cut"], "{tmp}/cut/whole.onnx: "),
        ([], "BUNDLE is missing; give one, or --rollback"),
        (["{bundle}", "--rollback"], "--rollback: found the bundle {bundle} as well; give one or the other"),
        (["--rollback"], "{tmp}/live: holds no published model (current.json: No such file or directory); use 'infnet"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bundle, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "mine").mkdir()
    shutil.copytree(bundle.path, tmp_path / "cut")
    (tmp_path / "cut" / "whole.onnx").write_bytes(b"half")
    places = {"bundle": bundle.path, "tmp": tmp_path}
    given = [argument.format(**places) for argument in arguments]
    code, line = refused(monkeypatch, capsys, *given, "--to", tmp_path / "live")
    assert code == 2
    assert line.startswith(f"Error: {message.format(**places)}")
    assert not ModelDirectory.is_one(tmp_path / "live")
    assert ModelDirectory(tmp_path / "live").versions() == []


def test_a_step_back_in_a_directory_that_is_not_there_makes_none(tmp_path, monkeypatch, capsys):
    refused(monkeypatch, capsys, "--rollback", "--to", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_a_step_back_needs_something_before(bundle, tmp_path, monkeypatch, capsys):
    live, version = tmp_path / "live", bundle.manifest.version
    invoke(bundle.path, "--to", live)
    before = (live / "current.json").read_bytes()
    code, line = refused(monkeypatch, capsys, "--rollback", "--to", live)
    assert (code, line) == (2, f"Error: {live}: no version was current before {version}; publish another bundle")
    assert (live / "current.json").read_bytes() == before


def test_what_is_damaged_or_somebody_elses_stays_as_it_is(bundle, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear")
    code, line = refused(monkeypatch, capsys, bundle.path, "--to", tmp_path / "mine")
    assert (code, "is not empty and holds no published model; give another directory" in line) == (2, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    code, line = refused(monkeypatch, capsys, bundle.path, "--to", tmp_path / "mine" / "notes.txt")
    assert code == 2
    assert line.startswith(f"Error: {tmp_path}/mine/notes.txt: cannot be written: ")
    live = tmp_path / "live"
    invoke(bundle.path, "--to", live)
    (live / "current.json").write_text("{")
    code, line = refused(monkeypatch, capsys, "--rollback", "--to", live)
    assert code == 2
    assert line.startswith(f"Error: {live}/current.json: is damaged (")
    assert line.endswith("; publish a bundle again")


def test_a_damaged_directory_is_mended_as_its_error_says(bundle, tmp_path, monkeypatch):
    live = tmp_path / "live"
    invoke(bundle.path, "--to", live)
    (live / "current.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["infnet", "publish", str(bundle.path), "--to", str(live)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert ModelDirectory(live).publication().version == bundle.manifest.version


@pytest.mark.parametrize("arguments", [["--keep", "1", "--to", "live", "b"], ["b"], ["--to"]])
def test_what_is_no_such_command_is_told_with_exit_code_2(arguments):
    result = CliRunner().invoke(app, ["publish", *arguments])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_help_has_an_example():
    text = CliRunner().invoke(app, ["publish", "--help"]).stdout
    assert "Example: infnet publish bundle-2 --to live" in text
