import json
import math

import numpy as np
import pytest

from fake_results import MODELS, TASKS, fake_costs, fake_results
from infnet.data.dataset import Dataset
from infnet.errors import ArtifactError, SpecError
from infnet.evaluation.leaderboard import Leaderboard, Origin, is_baseline
from infnet.evaluation.provenance import Provenance
from infnet.evaluation.series import FailedRun
from infnet.evaluation.significance import compare, holm
from infnet.evaluation.standings import Standings
from small_dataset import write_dataset

BASELINES = [name for name in MODELS if is_baseline(name)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": 30, "valid": 10, "test": 10})


def board(dataset, results, name="small", failures=()):
    named = Dataset(dataset.path, dataset.manifest.model_copy(update={"name": name}))
    models = dict.fromkeys(result.name for result in results)
    return Leaderboard(
        provenance=Provenance(named, "test", 3, ("infnet", "benchmark", "my data", "--seeds", "3")),
        standings=Standings.beside_best(results, BASELINES),
        origins={model: Origin() for model in models},
        costs=fake_costs(tuple(models)),
        failures=tuple(failures),
    )


def table_under(text, heading, number=0):
    """Rows of a section's table as lists of cells, header first."""
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = [block for block in section.strip().split("\n\n") if block.startswith("|")]
    lines = blocks[number].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def test_the_best_baseline_has_the_highest_mean_and_is_never_infnet(dataset):
    standings = Standings.beside_best(fake_results(), BASELINES)
    for metric in ("auc", "gauc"):
        means = {name: standings.mean(name, "mean", metric) for name in BASELINES}
        assert standings.references[metric] == max(means, key=means.get)
    alone = Standings.beside_best(fake_results(("infnet", "infnet_paper")), BASELINES)
    assert alone.references == {}
    assert alone.comparison("infnet", "mean", "auc") is None


def test_every_model_is_compared_with_the_best_baseline_and_corrected_in_its_column():
    results = fake_results(MODELS[:6])
    standings = Standings.beside_best(results, BASELINES)
    base = standings.references["auc"]
    others = [name for name in MODELS[:6] if name != base]
    runs = {name: [r.resampled for r in results if r.name == name] for name in MODELS[:6]}
    for part in (*TASKS, "mean"):
        found = [standings.comparison(name, part, "auc") for name in others]
        wanted = [compare(runs[name], runs[base])["auc"][part] for name in others]
        assert [f.difference for f in found] == wanted
        assert [f.corrected_p for f in found] == holm([w.p_value for w in wanted])
    assert standings.comparison(base, "mean", "auc") is None


def test_bold_is_best_and_proven():
    apart = Standings.beside_best(fake_results(MODELS[:4], spread=0.4, replicates=2000), BASELINES)
    assert apart.comparison("infnet", "mean", "auc").corrected_p < 0.05
    assert apart.is_proven_best("infnet", "mean", "auc")
    assert not any(apart.is_proven_best(name, "mean", "auc") for name in MODELS[1:4])
    alike = Standings.beside_best(fake_results(MODELS[:4], spread=0.001, noise=0.0001, replicates=2000), BASELINES)
    assert not any(alike.is_proven_best(name, part, "auc") for name in MODELS[:4] for part in (*TASKS, "mean"))
    once = Standings.beside_best(fake_results(MODELS[:4], seeds=1, spread=0.4, replicates=2000), BASELINES)
    assert not once.is_proven_best("infnet", "mean", "auc")


def test_the_page_marks_what_is_proven_and_shows_mean_and_spread(dataset):
    found = board(dataset, fake_results(MODELS[:4], spread=0.4, replicates=2000))
    header, *rows = table_under(found.as_markdown(), "AUC")
    assert header == ["model", "click", "like", "long_view", "mean"]
    assert [row[0] for row in rows] == found.standings.ranked("auc")
    values = found.standings.values("infnet", "click", "auc")
    assert rows[0][1] == f"**{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}**"
    assert sum("**" in cell for row in rows for cell in row) <= 4
    header, *rows = table_under(found.as_markdown(), "AUC", 1)
    base = found.standings.references["auc"]
    assert header[0] == f"minus {base}"
    assert base not in [row[0] for row in rows]
    compared = found.standings.comparison("infnet", "mean", "auc")
    assert rows[0][-1].startswith(f"{compared.difference.value:+.4f} ({compared.difference.low:+.4f} to ")


def test_the_page_tells_how_it_was_made(dataset):
    text = board(dataset, fake_results(MODELS[:3])).as_markdown([("AUC", "figures/auc.png")])
    assert dataset.manifest.fingerprint in text
    assert "`infnet benchmark 'my data' --seeds 3`" in text
    assert "30 train, 10 valid, 10 test" in text
    assert "seeds 0, 1, 2" in text
    assert "infnet 1, torch 2" in text
    assert "![AUC](figures/auc.png)" in text
    assert "Failed" not in text
    assert "published" not in text
    assert table_under(text, "Amounts")[0] == ["model", "watch_time R2", "watch_time MAE", "watch_time RMSE"]
    assert "embedding parameters" in table_under(text, "Cost")[0]


def test_failures_and_missing_seeds_are_told(dataset):
    results = [r for r in fake_results(MODELS[:3]) if (r.name, r.seed) != ("shared_bottom", 2)]
    text = board(dataset, results, failures=[FailedRun("shared_bottom", 2, "the loss is nan")]).as_markdown()
    assert "- shared_bottom, seed 2: the loss is nan" in text
    assert "| shared_bottom (2 of 3 seeds) |" in text


def test_nothing_finished_still_gives_a_page(dataset):
    found = board(dataset, [], failures=[FailedRun("fm", None, "no trial came to its end")])
    assert "- fm: no trial came to its end" in found.as_markdown()
    assert found.as_json() == []


@pytest.mark.parametrize("name", ["kuairand-pure", "kuairand-pure-nostats"])
def test_published_figures_stand_beside_ours_on_their_dataset_alone(dataset, name):
    text = board(dataset, fake_results(("infnet", "fm", "autoint")), name).as_markdown()
    rows = table_under(text, "Beside the paper")
    assert {row[5] for row in rows[1:] if row[0] == "infnet"} == {"0.6757", "0.6464", "0.6784"}
    assert [row[3] for row in rows if row[0] == "fm"] == ["0.7206"]
    assert "for orientation only" in text


def test_json_has_an_entry_per_run(dataset, tmp_path):
    models = ("infnet", "shared_bottom")
    found = board(dataset, fake_results(models))
    found.write(tmp_path / "new")
    entries = json.loads((tmp_path / "new" / "leaderboard.json").read_text())
    assert [(e["model"], e["seed"]) for e in entries] == [(m, s) for s in range(3) for m in models]
    assert all(set(entry) == {"model", "seed", "tasks", "mean", "cost"} for entry in entries)
    assert set(entries[0]["mean"]) == {"auc", "gauc"}
    assert {"auc", "gauc", "logloss"} <= set(entries[0]["tasks"]["click"])
    assert entries[0]["cost"]["rows_per_s"] == 9000.0
    assert entries[0]["cost"]["flops_per_row"] > 0
    told = json.loads((tmp_path / "new" / "significance.json").read_text())
    assert (told["replicates"], told["resampled"]) == (400, "users and seeds")
    assert set(told["differences"][0]) == {"model", "metric", "part", "value", "low", "high", "p_value", "corrected_p"}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "leaderboard.json",
        "leaderboard.md",
        "significance.json",
    ]


def test_undefined_metrics_are_said_to_be(dataset):
    results = fake_results(MODELS[:3])
    for result in results:
        result.report.tasks["like"].metrics["auc"] = math.nan
        result.resampled.values[0, 1] = math.nan
        result.resampled.draws[0, 1] = math.nan
    found = board(dataset, results)
    assert table_under(found.as_markdown(), "AUC")[1][2] == "undefined"
    assert found.as_json()[0]["tasks"]["like"]["auc"] is None
    json.dumps(found.standings.as_json(), allow_nan=False)


def write_study(path, **report):
    path.mkdir()
    (path / "best.yaml").write_text("model: {name: fm, width: 8}\ntrain: {epochs: 1}\n")
    if report:
        (path / "report.json").write_text(json.dumps(report))
    return path


def test_settings_say_what_was_searched_and_what_won(tmp_path):
    best = {"number": 4, "settings": {"train.learning_rate": 0.001, "model.hidden": [64, 32]}}
    study = write_study(tmp_path / "fm", space="small", trials=[{}] * 20, best=best)
    assert Origin.of_study(study, "fm") == Origin(
        "space small, 20 trials", "trial 4: train.learning_rate 0.001, model.hidden [64, 32]"
    )
    assert Origin.of_study(write_study(tmp_path / "by_hand"), "fm").searched == "not recorded"


def test_a_study_of_another_model_or_with_a_damaged_report_is_refused(tmp_path):
    with pytest.raises(SpecError, match="is of model 'fm', wanted 'mmoe'"):
        Origin.of_study(write_study(tmp_path / "mmoe"), "mmoe")
    with pytest.raises(ArtifactError, match=r"report.json: is damaged"):
        Origin.of_study(write_study(tmp_path / "fm", best=3), "fm")
