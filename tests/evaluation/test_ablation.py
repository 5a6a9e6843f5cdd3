import json

import pytest
import torch

from infnet.data.dataset import Dataset
from infnet.errors import SpecError
from infnet.evaluation import series
from infnet.evaluation.ablation import ablate
from infnet.evaluation.variants import FULL, VARIANTS, chosen_variants
from infnet.models import build_model
from infnet.training.run import Run
from small_dataset import write_dataset

FAST = (
    *("model.width=4", "model.head_hidden=[4]", "model.cat_hidden=[4]", "train.batch_size=150"),
    *("train.threads=1", "train.tensorboard=false"),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": 300, "valid": 150, "test": 150})


@pytest.fixture(scope="module")
def ablation(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation") / "out"
    return ablate(dataset, out, seeds=2, only="no-gates,proxies-2,half-history", settings=FAST), out


def test_every_variant_builds_and_scores_differently_from_the_full_model_unless_it_is_the_same(dataset):
    batch = next(dataset.batches("valid", 20))

    def logits(variant):
        torch.manual_seed(0)
        return build_model("infnet", dataset.layout, dict(variant.settings)).eval()(batch)

    full = logits(VARIANTS[0])
    defaults = build_model("infnet", dataset.layout).config.model_dump()
    for variant in VARIANTS[1:]:
        is_same = all(defaults[name] == value for name, value in variant.settings.items())
        found = logits(variant)
        assert torch.isfinite(found).all()
        assert torch.equal(found, full) == is_same, variant.name


def test_names_are_distinct_and_fit_for_directories():
    names = [variant.name for variant in VARIANTS]
    assert names[0] == FULL
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() for name in names)


def test_each_variant_is_compared_with_the_full_model(ablation):
    found, out = ablation
    assert found.standings.references == {"auc": FULL, "gauc": FULL}
    told = json.loads((out / "ablation.json").read_text())
    assert [variant["name"] for variant in told["variants"]] == [FULL, "no-gates", "proxies-2", "half-history"]
    assert {len(variant["runs"]) for variant in told["variants"]} == {2}
    assert {d["model"] for d in told["significance"]["differences"]} == {"no-gates", "half-history"}
    assert (out / "ablation.png").stat().st_size > 1000
    assert "(ablation.png)" in (out / "ablation.md").read_text()


def test_settings_that_are_the_full_models_are_not_trained_again(ablation):
    found, out = ablation
    assert found.entries["proxies-2"] is found.entries[FULL]
    assert not (out / "runs" / "proxies-2-seed0").exists()
    assert "| proxies-2 (= full) |" in (out / "ablation.md").read_text()
    assert found.groups()["proxies per row (m)"] == [("proxies-2 (= full)", FULL)]


def test_shorter_histories_are_trained_and_judged_on_a_view_of_the_same_files(dataset, ablation):
    _, out = ablation
    run = Run.load(out / "runs" / "half-history-seed0")
    lengths = [behaviour.length for behaviour in dataset.layout.behaviours]
    assert [behaviour.length for behaviour in run.layout.behaviours] == [max(1, round(n / 2)) for n in lengths]
    run.check_dataset(Dataset.open(dataset.path))
    assert Run.load(out / "runs" / "no-gates-seed1").layout == dataset.layout


def test_a_second_call_trains_nothing(dataset, ablation, monkeypatch):
    found, out = ablation
    monkeypatch.setattr(series, "train", None)
    again = ablate(dataset, out, seeds=2, only=["half-history", "proxies-2", "no-gates"], settings=FAST)
    assert again.as_json() == found.as_json()


def test_the_full_model_is_the_configurations(dataset, tmp_path):
    config = tmp_path / "paper.yaml"
    config.write_text("model: {name: infnet, width: 4, head_reads: task, num_cat_proxies: 4, head_hidden: [4]}\n")
    settings = ("train.batch_size=150", "train.threads=1", "train.tensorboard=false")
    found = ablate(
        dataset,
        tmp_path / "out",
        seeds=1,
        only="proxies-4,no-task-tokens",
        config=config,
        settings=settings,
        split="valid",
    )
    assert found.entries["proxies-4"] is found.entries[FULL]
    assert found.entries[FULL].config.settings["head_reads"] == "task"
    assert found.entries["no-task-tokens"].config.settings["head_reads"] == "task+proxies"
    assert f"--config {config}" in (tmp_path / "out" / "ablation.md").read_text()


def test_the_papers_figures_stand_beside_ours_on_its_dataset_alone(dataset, ablation):
    found, _ = ablation
    assert "published" not in found.as_markdown()
    named = Dataset(dataset.path, dataset.manifest.model_copy(update={"name": "kuairand-pure"}))
    provenance = type(found.provenance)(named, "test", 2, ("infnet", "ablate"))
    text = type(found)(provenance, found.variants, found.entries, found.standings).as_markdown()
    assert "| 0.7716 |" in next(line for line in text.splitlines() if line.startswith("| no-gates | gate_with=none"))
    assert "for orientation only" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "no-gate"}, "unknown variant 'no-gate'; did you mean 'no-gates'"),
        ({"settings": ("model.name=shared_bottom",)}, "variants are of 'infnet'"),
        ({"settings": ("model.gate_with=always",)}, "gate_with"),
        ({"seeds": 0}, "--seeds"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(dataset, tmp_path, options, message):
    with pytest.raises(SpecError) as caught:
        ablate(dataset, tmp_path / "out", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_variants_keep_their_order():
    assert chosen_variants(None) == VARIANTS
    assert [v.name for v in chosen_variants("late-fusion, no-gates")] == [FULL, "no-gates", "late-fusion"]
