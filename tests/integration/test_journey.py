"""Whole journeys through the real command line, and what it says when something is wrong."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml
from typer.main import get_command

import infnet
from infnet.cli import app, main
from infnet.data.sources.synthetic import write_world
from infnet.data.sources.world import World, WorldConfig
from infnet.schema import parse_spec
from raw_logs import BASE, make_log, write

ROOT = Path(__file__).parents[2]
SMALL_MODEL = [
    argument
    for setting in ("model.width=4", "train.batch_size=256", "train.tensorboard=false", "train.threads=1")
    for argument in ("--set", setting)
]


def run_process(*arguments, cwd):
    command = [sys.executable, "-m", "infnet", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line inside this process: (exit code, output, errors)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["infnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        found = capsys.readouterr()
        return caught.value.code or 0, found.out, found.err

    return call


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """Synthesize, prepare, train one epoch, evaluate: each verb in a process of its own, as a user runs them."""
    home = tmp_path_factory.mktemp("journey")
    commands = {
        "synthesize": ("data", "synthesize", "--users", 150, "--items", 80, "--days", 4, "--out", "raw", "--json"),
        "prepare": ("prepare", "synthetic", "--raw", "raw", "--out", "prepared", "--json"),
        "train": ("train", "prepared", "--out", "run", "--epochs", 1, "--json", *SMALL_MODEL),
        "evaluate": ("evaluate", "run", "--split", "test", "--json", "metrics.json"),
    }
    return home, {name: run_process(*arguments, cwd=home) for name, arguments in commands.items()}


def files_below(path):
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_every_step_of_the_journey_succeeds_and_leaves_what_it_names(journey):
    home, results = journey
    for name, result in results.items():
        assert result.returncode == 0, f"{name}: {result.stderr}"
        assert result.stderr.strip() == ""
    assert {entry.name for entry in home.iterdir()} == {"raw", "prepared", "run", "metrics.json"}


def test_the_steps_tell_machines_what_they_did_and_agree(journey):
    home, results = journey
    world, prepared, trained = (json.loads(results[name].stdout) for name in ("synthesize", "prepare", "train"))
    assert prepared["log"]["rows_read"] == world["rows"]
    rows = {name: split["rows"] for name, split in prepared["splits"].items()}
    assert sum(rows.values()) == world["rows"]
    assert set(rows) == {"train", "valid", "test", "random"}
    assert abs(rows["test"] / (world["rows"] - rows["random"]) - 0.1) < 0.01
    assert (trained["epochs"], trained["rows"]) == (1, rows["train"])
    assert trained["steps"] == -(-rows["train"] // 256)
    assert (home / trained["checkpoint"]).is_file()

    metrics = json.loads((home / "metrics.json").read_text())
    assert set(metrics["tasks"]) == {"click", "like", "long_view", "watch_time"}
    binary = [values for values in metrics["tasks"].values() if "auc" in values]
    assert len(binary) == 3
    for name in ("auc", "gauc"):
        assert metrics["mean"][name] == pytest.approx(sum(values[name] for values in binary) / 3)
    assert metrics["counts"]["rows"] == rows["test"]
    assert f"{metrics['tasks']['click']['auc']:.4f}" in results["evaluate"].stdout


def test_the_same_commands_give_the_same_dataset_and_the_same_model(journey, run, tmp_path):
    home, _ = journey
    assert run("prepare", "synthetic", "--raw", home / "raw", "--out", tmp_path / "again")[0] == 0
    first, second = (files_below(path) for path in (home / "prepared", tmp_path / "again"))
    assert {name for name in first if first[name] != second.get(name)} <= {Path("report.json")}  # it holds times
    code, out, _ = run("train", tmp_path / "again", "--out", tmp_path / "run", "--epochs", 1, "--json", *SMALL_MODEL)
    assert code == 0
    assert json.loads(out)["metrics"] == json.loads((home / "run" / "report.json").read_text())["metrics"]


def test_other_splits_of_the_dataset_can_be_evaluated(journey, run, tmp_path):
    home, results = journey
    prepared = json.loads(results["prepare"].stdout)
    assert run("evaluate", home / "run", "--split", "random", "--json", tmp_path / "random.json")[0] == 0
    counts = json.loads((tmp_path / "random.json").read_text())["counts"]
    assert counts["rows"] == prepared["splits"]["random"]["rows"]


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    for here, there in (
        ('"kuairand-pure"', '"synthetic"'),
        ('"data/KuaiRand-Pure"', '"raw"'),
        ("epochs=2", "epochs=2, settings={'num_blocks': 1}"),
        ("infnet,ple,din", "ple,din"),
        ("seeds=3", "seeds=1"),
    ):
        assert here in code
        code = code.replace(here, there)
    write_world(World.create(WorldConfig(num_users=60, num_items=50, num_days=3)), tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert re.search(r"logloss .*\d\.\d{4}", out)
    assert infnet.Run.load("run").config.epochs == 2
    assert names["scores"].shape == (3, 4)


GUIDES = ["docs/business.md", "docs/business.zh-CN.md", "docs/simulation.md"]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", *GUIDES])
def test_the_commands_and_the_spec_of_the_readme_are_valid(name):
    text = (ROOT / name).read_text()
    lines = [line for line in re.findall(r"^(?:\.venv/bin/)?infnet (.*)$", text, flags=re.MULTILINE) if line]
    assert len(lines) >= 4
    for line in lines:
        command, arguments = get_command(app), shlex.split(line, comments=True)
        while hasattr(command, "get_command"):
            context = command.make_context("infnet", list(arguments), resilient_parsing=True)
            command, (verb, *arguments) = command.get_command(context, arguments[0]), arguments
            assert command is not None, f"infnet {line}: no verb {verb}"
        command.make_context(verb, arguments)  # exits if an option is unknown or missing
    for spec in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL):
        parse_spec(spec, name)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_stops_training_with_130_and_the_run_goes_on_later(journey, run, tmp_path):
    home, _ = journey
    arguments = ("train", home / "prepared", "--out", tmp_path / "run", *SMALL_MODEL, "--set", "train.patience=99999")
    # Whoever runs the tests in the background may have had Ctrl-C ignored for all of them.
    code = "import signal, infnet.cli; signal.signal(signal.SIGINT, signal.default_int_handler); infnet.cli.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments), "--epochs", "99999"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob(".*"))
    assert run("evaluate", tmp_path / "run")[0] == 0


def refused(result, *parts):
    """Exit code 2 and one line that names everything in ``parts``."""
    code, out, errors = result
    assert code == 2, errors
    assert out == ""
    (line,) = errors.strip().splitlines()
    assert line.startswith("Error: ")
    for part in parts:
        assert part in line
    return line


CONVERTED = {
    "user": {"key": "user", "parts": [["users*"]]},
    "item": {"key": "item", "parts": [["items*"]]},
}
USERS, ITEMS = pl.DataFrame({"user": [1, 2]}), pl.DataFrame({"item": [10, 11, 12]})


def csv_cut_short():
    return make_log().write_csv().rstrip("\n").rsplit(",", 2)[0]


def with_click(value):
    log = make_log().with_columns(pl.col("click").cast(pl.String))
    return log.with_columns(pl.when(pl.int_range(pl.len()) == 5).then(pl.lit(value)).otherwise("click").alias("click"))


BAD_INPUT = {
    "missing column": (
        {"tasks": [{"name": "click", "label": "clik"}]},
        {},
        ["clik", "did you mean 'click'?"],
    ),
    "missing key column": ({"log": BASE["log"] | {"user": "usr"}}, {}, ["log.user", "'usr'", "did you mean 'user'?"]),
    "wrong type": ({}, {"log.csv": with_click("yes")}, ["log.csv, line 7", "click", "yes"]),
    "label outside 0 and 1": ({}, {"log.csv": with_click("3")}, ["log.csv, line 7", "is 3, wanted 0 or 1"]),
    "empty split": (
        {"split": {"valid_from": "2022-06-02", "test_from": "2022-06-03"}},
        {},
        ["split 'valid' has no rows", "2022-05-01 to 2022-05-03", "2022-06-02"],
    ),
    "spec typo": ({"behaviors": []}, {}, ["spec.yaml, line ", "'behaviors'", "did you mean 'behaviours'?"]),
    "user without features": (
        CONVERTED,
        {"users.csv": USERS.filter(pl.col("user") != 2), "items.csv": ITEMS},
        ["log.csv, line 14", "user 2 has no row in the user table", "missing: keep"],
    ),
    "item not in the items table": (
        CONVERTED,
        {"users.csv": USERS, "items.csv": ITEMS.filter(pl.col("item") != 12)},
        ["log.csv, line 3", "item 12 has no row in the item table", "missing: drop"],
    ),
    "csv cut short": ({}, {"log.csv": csv_cut_short()}, ["log.csv, line 25", "cut short"]),
    "parquet cut short": ({}, {"log.csv": None, "log.parquet": b"PAR1 and no more"}, ["log.parquet", "cannot be read"]),
    "no log": ({}, {"log.csv": None}, ["no file matches 'log*'"]),
}


@pytest.fixture
def raw(tmp_path):
    """A directory with a good log and its spec, and a way to spoil them."""

    def make(changes=None, files=None):
        for name, content in ({"log.csv": make_log()} | (files or {})).items():
            path = tmp_path / "raw" / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, pl.DataFrame):
                write(content, path)
            elif isinstance(content, str):
                path.write_text(content)
            elif isinstance(content, bytes):
                path.write_bytes(content)
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(BASE | (changes or {}), sort_keys=False))
        return ("prepare", tmp_path / "spec.yaml", "--raw", tmp_path / "raw")

    return make


def test_the_good_log_is_good(raw, run, tmp_path):
    assert run(*raw(), "--out", tmp_path / "out")[0] == 0
    assert run(*raw(CONVERTED, {"users.csv": USERS, "items.csv": ITEMS}), "--out", tmp_path / "out")[0] == 0


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_refused_in_one_line_and_an_earlier_dataset_stays(raw, run, tmp_path, kind):
    changes, files, parts = BAD_INPUT[kind]
    assert run(*raw(), "--out", tmp_path / "out")[0] == 0
    (tmp_path / "raw" / "log.csv").unlink()
    command = raw(changes, files)
    before = files_below(tmp_path)
    for name in ("out", "new"):
        refused(run(*command, "--out", tmp_path / name), *parts)
        assert files_below(tmp_path) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "raw", "spec.yaml"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("prepare", "synthetc", "--raw", ".", "--out", "x"), ["'synthetc'", "did you mean 'synthetic'?"]),
        (("prepare", "none.yaml", "--raw", ".", "--out", "x"), ["none.yaml: cannot be read"]),
        (("prepare", "synthetic", "--raw", "none", "--out", "x"), ["none: is no directory"]),
        (
            ("prepare", "synthetic", "--raw", ".", "--out", "x", "--valid-from", "2022-05-05"),
            ["--test-from is missing"],
        ),
        (
            ("prepare", "synthetic", "--raw", ".", "--out", "x", "--valid-from", "5 May", "--test-from", "2022-05-06"),
            ["--valid-from is '5 May'", "2022-05-05"],
        ),
        (("train", "none", "--out", "x"), ["none: is no prepared dataset", "infnet prepare"]),
        (("evaluate", "none"), ["none: is no run", "infnet train"]),
        (("data", "download", "kuairand-pur", "--out", "x"), ["did you mean 'kuairand-pure'?"]),
    ],
)
def test_what_is_not_there_or_misspelt_is_refused_in_one_line(run, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("trian",),
        ("train",),
        ("train", "data", "--out"),
        ("train", "d", "--out", "x", "--epoch", "3"),
        ("evaluate",),
    ],
)
def test_bad_usage_is_exit_code_2(run, arguments):
    assert run(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("model.num_block=3", ["no setting 'num_block'", "did you mean 'num_blocks'?"]),
        ("train.learning_rat=3", ["train.learning_rat", "did you mean"]),
        ("train.learning_rate=fast", ["train.learning_rate", "found 'fast'"]),
        ("learning_rate=1", ["did you mean train.learning_rate?"]),
        ("train.monitor=clik_auc", ["no metric 'clik_auc'", "did you mean 'click_auc'?"]),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(journey, run, tmp_path, setting, parts):
    home, _ = journey
    refused(run("train", home / "prepared", "--out", tmp_path / "run", "--set", setting), *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_run_and_a_foreign_directory_are_not_overwritten(journey, run, tmp_path):
    home, _ = journey
    before = files_below(home)
    refused(run("train", home / "prepared", "--out", home / "run"), "holds a run already", "--force")
    refused(run("train", home / "prepared", "--out", home / "raw", "--force"), "holds no run")
    refused(run("prepare", "synthetic", "--raw", home / "raw", "--out", home / "run"), "give another --out")
    assert files_below(home) == before


# A regular file stands where a directory is wanted; nothing can be made below /proc: neither is writable for root.
targets = pytest.mark.parametrize(
    "target",
    [
        "a file/out",
        "a file/deep/out",
        pytest.param(
            "/proc/infnet/out", marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
        ),
    ],
)


@targets
@pytest.mark.parametrize("verb", ["synthesize", "prepare", "train", "evaluate"])
def test_a_place_that_cannot_be_written_is_refused_in_one_line(journey, run, tmp_path, monkeypatch, verb, target):
    home, _ = journey
    monkeypatch.chdir(tmp_path)
    Path("a file").write_text("mine")
    arguments = {
        "synthesize": ("data", "synthesize", "--users", 20, "--items", 20, "--days", 2, "--out", target),
        "prepare": ("prepare", "synthetic", "--raw", home / "raw", "--out", target),
        "train": ("train", home / "prepared", "--out", target, "--epochs", 1, *SMALL_MODEL),
        "evaluate": ("evaluate", home / "run", "--json", target),
    }
    refused(run(*arguments[verb]), target.split("/")[0] or "/proc")
    assert files_below(tmp_path) == {Path("a file"): b"mine"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_directory_is_refused_in_one_line(journey, run, tmp_path):
    home, _ = journey
    tmp_path.chmod(0o555)
    refused(run("prepare", "synthetic", "--raw", home / "raw", "--out", tmp_path / "out"), "Permission denied")
    tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == []


def copied(source, target):
    for name, content in files_below(source).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return target


def flipped(content):
    """One bit of the last byte, which is a number of some tensor."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (flipped, "checksum"),
        (lambda content: content[: len(content) // 2], "damaged"),
        (lambda content: b"", "damaged"),
        (lambda content: b"not a checkpoint", "damaged"),
        (None, "there is no checkpoint"),
    ],
    ids=["a bit", "cut short", "empty", "something else", "missing"],
)
def test_a_corrupt_checkpoint_is_refused_in_one_line(journey, run, tmp_path, damage, part):
    home, _ = journey
    best = copied(home / "run", tmp_path / "run") / "best.safetensors"
    if damage is None:
        best.unlink()
    else:
        best.write_bytes(damage(best.read_bytes()))
    refused(run("evaluate", tmp_path / "run", "--json", tmp_path / "m.json"), "best.safetensors", part)
    assert not (tmp_path / "m.json").exists()


def with_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))
    return path


def test_a_dataset_of_another_version_is_refused_in_one_line(journey, run, tmp_path):
    home, _ = journey
    data = with_manifest(copied(home / "prepared", tmp_path / "data"), format_version=99)
    parts = ("was prepared in format 99", "prepare it again")
    refused(run("train", data, "--out", tmp_path / "run"), *parts)
    refused(run("evaluate", home / "run", "--data", data), *parts)
    assert not (tmp_path / "run").exists()


def test_another_dataset_than_the_runs_own_is_refused_in_one_line(journey, run, tmp_path):
    home, _ = journey
    data = with_manifest(copied(home / "prepared", tmp_path / "data"), fingerprint="b" * 64)
    refused(run("evaluate", home / "run", "--data", data), str(home / "prepared"))


def test_a_damaged_dataset_is_refused_in_one_line(journey, run, tmp_path):
    home, _ = journey
    data = copied(home / "prepared", tmp_path / "data")
    labels = data / "train" / "labels.npy"
    labels.write_bytes(labels.read_bytes()[:-10])
    refused(run("train", data, "--out", tmp_path / "run"), "train/labels.npy")
    assert not (tmp_path / "run").exists()
