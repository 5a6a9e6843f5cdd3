from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from infnet import cli
from raw_logs import make_log, make_spec, write


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(make_log(), tmp_path / "raw" / "log.csv")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(make_spec().model_dump(mode="json")))
    return tmp_path / "raw"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``infnet prepare``."""
    monkeypatch.setattr("sys.argv", ["infnet", "prepare", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_it_prepares_and_shows_the_report(raw: Path, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, raw.parent / "spec.yaml", "--raw", raw, "--out", raw.parent / "out")
    assert code == 0
    assert "click rate" in out
    assert (raw.parent / "out" / "manifest.json").is_file()


def test_json_is_the_stored_report(raw: Path, monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, raw.parent / "spec.yaml", "--raw", raw, "--out", raw.parent / "out", "--json")
    assert json.loads(out) == json.loads((raw.parent / "out" / "report.json").read_text())


def test_dates_on_the_command_line_replace_those_of_the_spec(raw: Path, monkeypatch, capsys):
    arguments = (raw.parent / "spec.yaml", "--raw", raw, "--out", raw.parent / "out", "--json")
    dates = ("--valid-from", "2022-05-03", "--test-from", "2022-05-04")
    code, _, err = run(monkeypatch, capsys, *arguments, *dates)
    assert code == 2
    assert "split 'test' has no rows: the log covers 2022-05-01 to 2022-05-03" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["kuairand-pur"], "'kuairand-pur' is neither a YAML file nor a known dataset; did you mean 'kuairand-pure'?"),
        (["nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["kuairand-pure", "--valid-from", "2022-05-03"], "--test-from is missing"),
        (["kuairand-pure", "--valid-from", "May", "--test-from", "2022-05-03"], "--valid-from is 'May', wanted a day"),
        (["kuairand-pure", "--valid-from", "2022-05-04", "--test-from", "2022-05-03"], "is not before --test-from"),
        (["qk-video", "--valid-from", "2022-05-02", "--test-from", "2022-05-03"], "qk-video has no timestamps"),
        (["kuairand-pure"], "no file matches '**/log_*_pure*.csv' (the log)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], expected: str, raw: Path, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, *arguments, "--raw", raw, "--out", raw.parent / "out")
    assert code == 2
    assert out == ""
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert not (raw.parent / "out").exists()
