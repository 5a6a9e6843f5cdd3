import json

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from infnet.cli.data import data_app
from infnet.data.download import DownloadError

app = typer.Typer()
app.add_typer(data_app, name="data")


def run(*arguments):
    return CliRunner().invoke(app, ["data", *arguments])


def test_list_names_every_dataset_and_its_licence():
    shown = json.loads(run("list", "--json").stdout)
    assert [d["name"] for d in shown] == [
        "synthetic",
        "kuairand-pure",
        "kuairand-1k",
        "kuairand-27k",
        "qb-video",
        "qk-video",
    ]
    assert all(d["licence"] for d in shown)
    table = run("list").stdout
    assert all(name in table for name in ("kuairand-27k", "qk-video", "by hand"))


def test_synthesize_writes_a_world_and_reports_it(tmp_path):
    arguments = ("synthesize", "--users", "200", "--items", "100", "--days", "3", "--seed", "4")
    result = run(*arguments, "--out", str(tmp_path / "raw"), "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["rows"] == pl.scan_parquet(tmp_path / "raw/data/log_*.parquet").select(pl.len()).collect().item()
    assert report["days"] == 3
    told = run(*arguments, "--out", str(tmp_path / "again")).stdout
    assert f"{report['rows']:,} rows" in told.replace("\n", " ")
    assert f"infnet prepare synthetic --raw {tmp_path / 'again'}" in told.replace("\n", "")


def test_download_of_a_licensed_dataset_tells_the_steps(tmp_path):
    result = run("download", "qb-video", "--out", str(tmp_path))
    assert isinstance(result.exception, DownloadError)
    assert "accept the licence agreement" in str(result.exception)


@pytest.mark.parametrize("verb", ["list", "download", "synthesize"])
def test_help_has_an_example(verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Example: infnet data {verb}" in result.stdout
