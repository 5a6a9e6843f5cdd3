import json
import sys

import numpy as np
import pytest
from matplotlib.text import Annotation

from fake_results import MODELS, fake_costs, fake_results
from infnet.errors import SpecError
from infnet.evaluation.figures import check_figures, new_figure, save_figure
from infnet.evaluation.labels import place_labels
from infnet.evaluation.leaderboard import is_baseline
from infnet.evaluation.predictions import Predictions
from infnet.evaluation.run_figures import calibration_figure, reliability, training_figure
from infnet.evaluation.standings import Standings
from infnet.evaluation.standings_figures import cost_accuracy_figure, difference_figure, leaderboard_figure

LARGEST = 150_000


def standings(**options):
    return Standings.beside_best(fake_results(**options), [name for name in MODELS if is_baseline(name)])


def predictions(seed=0):
    rng = np.random.default_rng(seed)
    probs = 1 / (1 + np.exp(-rng.normal([-0.5, -4.0], 1.0, (4000, 2))))
    labels = (rng.random(probs.shape) < probs).astype(np.float32)
    return Predictions(("click", "like"), ("binary", "binary"), labels, probs, np.arange(4000) // 4)


def write_journals(folder, names, evaluations=4):
    paths = {}
    for place, name in enumerate(names):
        paths[name] = [folder / f"{name}-{seed}.jsonl" for seed in range(2)]
        for path in paths[name]:
            lines = [{"kind": "train", "step": step, "loss": 2.0 + 50 / step} for step in range(50, 801, 50)]
            lines += [
                {"kind": "evaluation", "step": 200 * n, "metrics": {"mean": 0.6 + 0.01 * n - 0.001 * place}}
                for n in range(1, evaluations + 1)
            ]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


FIGURES = {
    "leaderboard": lambda folder: leaderboard_figure(standings(), "log, split test"),
    "cost": lambda folder: cost_accuracy_figure(standings(), fake_costs(), "log, split test"),
    "difference": lambda folder: difference_figure(
        Standings(fake_results(), {"auc": "infnet", "gauc": "infnet"}),
        {"parts": [(name, name) for name in MODELS], "same": [("as it is", "infnet")]},
        "infnet",
        "log, split test",
    ),
    "training": lambda folder: training_figure(write_journals(folder, MODELS), MODELS, "mean", "log"),
    "calibration": lambda folder: calibration_figure(
        {"infnet": [predictions(), predictions(1)], "fm": [predictions(2)]}, "log"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_twenty_models_is_small_and_the_same_every_time(name, tmp_path):
    for file in ("first.png", "second.png"):
        save_figure(FIGURES[name](tmp_path), tmp_path / file)
    first = (tmp_path / "first.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert len(first) < LARGEST
    assert (tmp_path / "second.png").read_bytes() == first
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("seeds", [1, 2])
def test_every_axis_says_what_it_shows(seeds, tmp_path):
    for figure in (
        leaderboard_figure(standings(seeds=seeds, models=("infnet", "fm")), "log"),
        leaderboard_figure(standings(seeds=seeds, models=("infnet",)), "log"),
        training_figure(write_journals(tmp_path, ("infnet",), evaluations=1), ("infnet",), "mean", "log"),
        calibration_figure({"infnet": [predictions()]}, "log"),
    ):
        assert all(panel.get_xlabel() for panel in figure.axes)
        assert figure.get_suptitle() == "log"


def test_names_cover_neither_each_other_nor_dots():
    rng = np.random.default_rng(0)
    figure = new_figure(7, 5)
    panel = figure.subplots()
    points = [(float(x), float(y)) for x, y in rng.normal(0, 0.5, (20, 2))]
    points[1] = points[0]
    panel.plot(*zip(*points, strict=True), marker="o", linestyle="none")
    panel.margins(0.15)
    place_labels(figure, panel, MODELS, points, ["black"] * 20)
    figure.draw_without_rendering()
    boxes = {a.get_text(): a.get_window_extent() for a in panel.get_children() if isinstance(a, Annotation)}
    assert set(boxes) == set(MODELS)
    names = list(boxes)
    assert not [(a, b) for i, a in enumerate(names) for b in names[:i] if boxes[a].overlaps(boxes[b])]
    for x, y in panel.transData.transform(points):
        assert not [name for name, box in boxes.items() if box.contains(x, y)]


def test_reliability_is_the_mean_of_predictions_and_labels_in_equal_bins():
    rng = np.random.default_rng(0)
    order = rng.permutation(100)
    probs, labels = np.arange(100)[order] / 100, (np.arange(100) >= 50)[order].astype(float)
    labels[order == 99] = np.nan
    predicted, observed = reliability(labels, probs, 11)
    assert predicted == pytest.approx([(9 * k + 4) / 100 for k in range(11)])
    assert observed == pytest.approx([0, 0, 0, 0, 0, 4 / 9, 1, 1, 1, 1, 1])
    assert len(reliability(np.array([1.0, np.nan]), np.array([0.5, 0.5]), 10)[0]) == 1


def test_without_matplotlib_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SpecError, match=r"pip install 'infnet\[figures\]'"):
        check_figures()
