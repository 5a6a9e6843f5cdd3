import re
import sys

import pytest
import typer
from typer.testing import CliRunner

from infnet.cli import main
from infnet.cli.export import export_command
from infnet.evaluation import calibrators
from infnet.export import exporter
from infnet.export.bundle import Bundle
from small_bundle import graphs_of


def invoke(bundle, *arguments):
    app = typer.Typer()
    app.command()(export_command)
    with graphs_of(bundle):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_becomes_a_bundle_and_the_summary_says_how_good_it_is(run, bundle, tmp_path):
    out = tmp_path / "new" / "bundle"
    text = invoke(bundle, run.path, "--out", out)
    made = Bundle.open(out, verify="full").manifest
    assert made.version == bundle.manifest.version
    first, agreement, times, following = text.splitlines()
    assert re.fullmatch(rf"{out}: infnet, version {made.version}, \d\.\d MB, tables in float32", first)
    assert agreement.endswith(f": onnx {made.parity['onnx']:.1e}, torch {made.parity['torch']:.1e}")
    assert re.search(r"500 candidates, one thread: onnx .* ms, torch .* ms; (onnx|torch) is the default", times)
    assert following == f"Next: infnet rank {out} --user ID --items FILE"


def test_compression_and_a_dataset_that_has_moved_are_options(run, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "MAX_LOSS", 1.0)
    moved = run.dataset_path.rename(run.dataset_path.with_name("moved"))
    try:
        text = invoke(bundle, run.path, "--out", tmp_path / "b", "--quantize", "int8", "--int8-dense", "--data", moved)
    finally:
        moved.rename(run.dataset_path)
    made = Bundle.open(tmp_path / "b").manifest
    assert (made.precision, made.int8_dense) == ("int8", True)
    assert f"Validation AUC that compression costs: click {made.loss['click']:+.5f}, like" in text


@pytest.mark.parametrize(
    ("run_path", "out", "message"),
    [
        ("{data}", "{tmp}/out", "is no run (no run.json); give a directory that 'infnet train --out' wrote"),
        ("{run}", "{data}", "exists and was not made by this command (no bundle.json in it); give another --out"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, capsys, run_path, out, message):
    places = {"data": run.dataset_path, "run": run.path, "tmp": tmp_path}
    monkeypatch.setattr(sys, "argv", ["infnet", "export", run_path.format(**places), "--out", out.format(**places)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(message)
    assert not (tmp_path / "out").exists()


def test_calibration_is_told_and_kept(run, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrators, "_LEAST_ROWS", 30)
    monkeypatch.setattr(calibrators, "_LEAST_POSITIVES", 5)
    text = invoke(bundle, run.path, "--out", tmp_path / "b", "--calibrate", "isotonic", "--calibrate-by", "tab")
    calibration = Bundle.open(tmp_path / "b").calibration
    assert calibration.settings.by == "tab"
    assert f"Calibrated (isotonic, per value of tab) on {calibration.rows} rows; cross-fitted:" in text
    assert re.search(r"  click: predicted over observed [\d.]+ -> [\d.]+, expected error [\d.]+ -> [\d.]+", text)


def test_too_few_labels_for_a_calibration_are_told(run, bundle, tmp_path):
    text = invoke(bundle, run.path, "--out", tmp_path / "b", "--calibrate", "isotonic")
    assert "  click: left as it is, too few labels" in text.splitlines()


def test_segments_go_with_a_calibration(run, tmp_path, monkeypatch, capsys):
    arguments = ["infnet", "export", str(run.path), "--out", str(tmp_path / "b"), "--calibrate-by", "tab"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "--calibrate-by tab: goes with --calibrate isotonic or platt; give both" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
