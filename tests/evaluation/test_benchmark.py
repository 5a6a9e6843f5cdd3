import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml

from fake_results import fake_costs
from infnet.errors import ArtifactError, InputError, SpecError, TrainingError
from infnet.evaluation import benchmark as benchmark_module
from infnet.evaluation import series
from infnet.evaluation.benchmark import benchmark, chosen_models
from infnet.evaluation.evaluate import evaluate_run
from infnet.evaluation.predictions import Predictions
from infnet.models.base import model_names
from infnet.training.run import Run
from small_dataset import write_dataset

MODELS = "infnet,shared_bottom"
FAST = (
    *("model.width=4", "model.head_hidden=[4]", "train.batch_size=100", "train.learning_rate=0.01"),
    *("train.threads=1", "train.tensorboard=false", "train.log_every=2"),
)
PAGES = {"leaderboard.json", "leaderboard.md", "significance.json"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": 300, "valid": 150, "test": 150})


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Costs are made up here, and the models they were asked for listed."""
    asked = []

    def profile(dataset, configs):
        asked.extend(configs)
        costs = fake_costs(tuple(configs))
        return SimpleNamespace(models={n: SimpleNamespace(as_json=lambda c=c: c) for n, c in costs.items()})

    monkeypatch.setattr(benchmark_module, "profile_models", profile)
    monkeypatch.setattr(benchmark_module, "save_figure", lambda *_: None)  # most of the time; one test looks at them
    return asked


@pytest.fixture
def trained(monkeypatch):
    """Lists the runs that are trained, and whether training may go on."""
    seen, whole = [], series.train

    def train(dataset, config, path, **options):
        seen.append(path.name)
        return whole(dataset, config, path, **options)

    monkeypatch.setattr(series, "train", train)
    return seen


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A benchmark of two models and two seeds; copy it before changing it."""
    out = tmp_path_factory.mktemp("board") / "out"
    with pytest.MonkeyPatch.context() as patch:
        costs = fake_costs(("infnet", "shared_bottom"))
        patch.setattr(
            benchmark_module,
            "profile_models",
            lambda _, configs: SimpleNamespace(
                models={name: SimpleNamespace(as_json=lambda n=name: costs[n]) for name in configs}
            ),
        )
        benchmark(dataset, MODELS, out, seeds=2, settings=FAST)
    return out


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copied")


def test_every_model_is_trained_with_every_seed_judged_and_compared(finished):
    entries = json.loads((finished / "leaderboard.json").read_text())
    assert [(e["model"], e["seed"]) for e in entries] == [
        (model, seed) for seed in range(2) for model in ("infnet", "shared_bottom")
    ]
    for entry in entries:
        run = Run.load(finished / "runs" / f"{entry['model']}-seed{entry['seed']}")
        assert run.config.seed == entry["seed"]
        assert run.config.settings["width"] == 4
        judged = evaluate_run(run, "test").as_json()
        assert entry["tasks"] == judged["tasks"]
        assert entry["mean"] == judged["mean"]
        assert entry["cost"]["train_s"] == run.report["train_s"]
        assert entry["cost"]["request_ms"] > 0
        assert len(Predictions.load(run.path / "predictions-test.npz")) == 150
    told = json.loads((finished / "significance.json").read_text())
    assert told["references"] == {"auc": "shared_bottom", "gauc": "shared_bottom"}
    assert {d["model"] for d in told["differences"]} == {"infnet"}


def test_the_page_shows_its_figures(finished):
    text = (finished / "leaderboard.md").read_text()
    for name in ("leaderboard", "cost", "training", "calibration"):
        assert f"(figures/{name}.png)" in text
        assert (finished / "figures" / f"{name}.png").stat().st_size > 1000
    assert "`infnet benchmark" in text
    assert " --models infnet,shared_bottom --seeds 2 --split test --set model.width=4 " in text


def test_a_second_call_trains_and_measures_nothing_and_finds_the_same(dataset, copied, trained, measured):
    before = {name: (copied / name).read_text() for name in ("leaderboard.json", "significance.json")}
    found = benchmark(dataset, MODELS, copied, seeds=2, settings=FAST)
    assert trained == []
    assert measured == []
    assert {name: (copied / name).read_text() for name in before} == before
    assert found.as_json() == json.loads(before["leaderboard.json"])


def test_what_is_missing_is_made_up_for(dataset, copied, trained):
    before = (copied / "leaderboard.json").read_text()
    (copied / "runs" / "infnet-seed1" / "report.json").unlink()  # as if it had been killed
    (copied / "runs" / "infnet-seed1" / "predictions-test.npz").unlink()
    (copied / "runs" / "shared_bottom-seed0" / "predictions-test.npz").unlink()
    benchmark(dataset, MODELS, copied, seeds=2, settings=FAST)
    assert trained == ["infnet-seed1"]

    def metrics(text):
        return [(e["model"], e["seed"], e["tasks"]) for e in json.loads(text)]

    assert metrics((copied / "leaderboard.json").read_text()) == metrics(before)


def test_more_seeds_models_and_splits_build_on_what_is_there(dataset, copied, trained):
    found = benchmark(dataset, "shared_bottom", copied, seeds=3, split="valid", settings=FAST)
    assert trained == ["shared_bottom-seed2"]
    assert [(run.name, run.seed) for run in found.standings.results] == [("shared_bottom", s) for s in range(3)]
    assert found.provenance.split == "valid"
    assert found.standings.references["auc"] == "shared_bottom"
    assert "minus" not in (copied / "leaderboard.md").read_text()


def test_other_settings_are_refused_before_anything_is_touched(dataset, copied, trained):
    before = {path: path.read_bytes() for path in sorted(copied.rglob("*")) if path.is_file()}
    with pytest.raises(SpecError) as caught:
        benchmark(dataset, MODELS, copied, seeds=3, settings=(*FAST, "train.learning_rate=0.02"))
    assert "infnet-seed0: was trained with train.learning_rate 0.01, now 0.02 is asked for" in str(caught.value)
    assert "name another --out" in str(caught.value)
    with pytest.raises(SpecError, match=r"model\.dropout 0\.1, now 0\.3"):
        benchmark(dataset, MODELS, copied, seeds=2, settings=(*FAST, "model.dropout=0.3"))
    shorter = dataset.with_history_lengths([1] * len(dataset.layout.behaviours))
    with pytest.raises(SpecError, match=r"history\.lengths"):
        benchmark(shorter, MODELS, copied, seeds=2, settings=FAST)
    assert {path: path.read_bytes() for path in sorted(copied.rglob("*")) if path.is_file()} == before
    assert trained == []


def test_another_dataset_is_refused(copied, tmp_path):
    other = write_dataset(tmp_path / "other", {"train": 300, "valid": 150, "test": 150}, fingerprint="b" * 64)
    with pytest.raises(ArtifactError, match="has the fingerprint bbbb"):
        benchmark(other, MODELS, copied, seeds=1, settings=FAST)


def test_a_model_that_fails_is_listed_and_stops_no_other(dataset, tmp_path, monkeypatch):
    whole = series.train

    def train(dataset, config, path, **options):
        if config.model == "infnet" and config.seed == 1:
            raise TrainingError("the loss is nan after step 3")
        return whole(dataset, config, path, **options)

    monkeypatch.setattr(series, "train", train)
    found = benchmark(dataset, MODELS, tmp_path / "out", seeds=2, settings=FAST)
    assert [(f.name, f.seed) for f in found.failures] == [("infnet", 1)]
    assert len(found.standings.runs["shared_bottom"]) == 2
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "- infnet, seed 1: the loss is nan after step 3" in text
    assert "infnet (1 of 2 seeds)" in text


def test_all_of_them_may_fail(dataset, tmp_path, monkeypatch):
    def train(*_, **__):
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(series, "train", train)
    found = benchmark(dataset, "shared_bottom", tmp_path / "out", seeds=1, settings=FAST)
    assert found.as_json() == []
    assert {path.name for path in (tmp_path / "out").iterdir()} >= PAGES


def test_pages_are_there_after_every_run(dataset, tmp_path):
    out, lengths = tmp_path / "out", []

    def look(at):
        if at.stage == "score":
            file = out / "leaderboard.json"
            lengths.append(len(json.loads(file.read_text())) if file.exists() else 0)

    benchmark(dataset, MODELS, out, seeds=1, settings=FAST, progress=look)
    assert lengths == [0, 1]


def test_tuned_settings_are_used_where_there_are_some(dataset, tmp_path):
    tuned = tmp_path / "tuned" / "shared_bottom"
    tuned.mkdir(parents=True)
    best = {"model": {"name": "shared_bottom", "hidden": [12], "width": 4}, "train": {"batch_size": 150, "seed": 7}}
    (tuned / "best.yaml").write_text(yaml.safe_dump(best))
    told = {"space": "small", "trials": [{}, {}], "best": {"number": 1, "settings": {"model.hidden": [12]}}}
    (tuned / "report.json").write_text(json.dumps(told))
    settings = ("train.threads=1", "train.tensorboard=false")
    found = benchmark(dataset, "shared_bottom", tmp_path / "out", seeds=1, tuned=tmp_path / "tuned", settings=settings)
    run = Run.load(tmp_path / "out" / "runs" / "shared_bottom-seed0")
    assert (run.config.settings["hidden"], run.config.batch_size, run.config.seed) == ([12], 150, 0)
    assert run.config.threads == 1
    assert found.origins["shared_bottom"].searched == "space small, 2 trials"
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "| shared_bottom | space small, 2 trials | trial 1: model.hidden [12] |" in text


def test_with_trials_each_model_is_tuned_first(dataset, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        "model: {width: [4], hidden: [[4], [6]]}\n"
        "train: {epochs: 1, batch_size: 150, tensorboard: false, threads: 1, learning_rate: [0.01]}\n"
    )
    stages = []
    found = benchmark(
        dataset,
        "shared_bottom",
        tmp_path / "out",
        seeds=1,
        trials=2,
        space=str(space),
        progress=lambda at: stages.append(at.stage),
    )
    assert stages[0] == "tune"
    assert (tmp_path / "out" / "tuned" / "shared_bottom" / "best.yaml").is_file()
    assert found.origins["shared_bottom"].searched == f"space {space}, 2 trials"
    assert len(found.standings.results) == 1


def test_progress_says_which_run_of_how_many(dataset, tmp_path):
    seen = []
    benchmark(dataset, MODELS, tmp_path / "out", seeds=1, settings=FAST, progress=seen.append)
    assert [at.number for at in seen] == sorted(at.number for at in seen)
    assert {(at.number, at.total, at.name, at.seed) for at in seen if at.stage == "score"} == {
        (1, 2, "infnet", 0),
        (2, 2, "shared_bottom", 0),
    }
    assert any(at.training is not None and at.training.step == 3 for at in seen)


def test_models_are_named_or_all():
    assert chosen_models("all") == tuple(model_names())
    assert chosen_models("shared_bottom, infnet") == ("shared_bottom", "infnet")
    assert chosen_models(["infnet"]) == ("infnet",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": "infnt"}, "did you mean 'infnet'"),
        ({"models": ""}, "unknown model ''"),
        ({"models": "infnet,infnet"}, "is named twice"),
        ({"seeds": 0}, "--seeds: wanted at least 1, found 0"),
        ({"split": "tset"}, "has no split 'tset'; did you mean 'test'"),
        ({"split": "train"}, "choose valid or test"),
        ({"settings": ("model.widht=3",)}, "has no setting 'widht'; did you mean 'width'"),
        ({"settings": ("train.monitor=t9_auc",)}, "no metric 't9_auc'"),
        ({"trials": -1}, "wanted 0 or more"),
        ({"trials": 2, "space": "smal.yaml"}, "smal.yaml: cannot be read"),
        ({"trials": 2, "tuned": "studies"}, "give one of the two"),
        ({"tuned": "studies"}, "has no MODEL/best.yaml for infnet, shared_bottom"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(dataset, tmp_path, options, message):
    arguments = {"models": MODELS, "seeds": 1, **options}
    with pytest.raises(InputError) as caught:
        benchmark(dataset, out=tmp_path / "out", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_directory_with_something_else_is_refused(dataset, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match="choose another --out"):
        benchmark(dataset, MODELS, tmp_path, seeds=1, settings=FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_cost_is_refused_by_name(dataset, copied):
    (copied / "costs" / "infnet.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"infnet.json: is damaged"):
        benchmark(dataset, MODELS, copied, seeds=2, settings=FAST)
