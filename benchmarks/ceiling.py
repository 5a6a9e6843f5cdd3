"""How near models come to the truth: click AUC on a synthetic world beside that of its true probabilities.

    python benchmarks/ceiling.py --out runs/ceiling --drift 0

The world is `infnet data synthesize`'s, with few users who come often, some 800,000 rows of 300 users on 300 items, so
that what a user likes can be known at all. The position, which the truth knows, is a field of the request here. All
models are trained by the same recipe, several passes over the data, and judged on the last tenth of the rows. Beside
them stands what the same rows teach a learner that knows the form of the world's equations and none of its numbers.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn

from infnet.api import evaluate, prepare, train
from infnet.data.dataset import Dataset
from infnet.data.sources.known import known_spec
from infnet.data.sources.synthetic import write_world
from infnet.data.sources.truth import best_auc
from infnet.data.sources.world import World, WorldConfig
from infnet.errors import InfnetError
from infnet.evaluation.auc import auc
from infnet.features import CategoryFeature
from infnet.training.config import load_config

_BIASES = ("user_id", "video_id", "position", "hour", "tab")
RECIPE = (
    "train.epochs=8",
    "train.batch_size=1024",
    "train.learning_rate=2e-3",
    "train.embedding_learning_rate=1e-2",
    "train.schedule=cosine",
)
SEEN = (0, 50, 1000, 3000, 10**9)
"""Training rows of an item, at which test rows are told apart."""


def open_world(options: argparse.Namespace) -> Dataset:
    """The prepared world, made first if it is not there."""
    raw, prepared = options.out / "raw", options.out / "prepared"
    if not (raw / "world.json").is_file():
        world = WorldConfig(
            num_users=options.users,
            num_items=options.items,
            num_days=options.days,
            drift=options.drift,
            sessions_per_day=12,
            session_length=20,
        )
        print(write_world(World.create(world), raw), file=sys.stderr)
    if not (prepared / "manifest.json").is_file():
        spec = known_spec("synthetic")
        position = CategoryFeature(name="position", side="candidate")
        prepare(spec.model_copy(update={"features": [*spec.features, position]}), raw, prepared)
    return Dataset.open(prepared)


class Informed(nn.Module):
    """The logit of a click as the world has it: biases, a user's taste for an item's topics, style, and age."""

    def __init__(self, rows: pl.DataFrame, num_styles: int = 8) -> None:
        super().__init__()
        self.biases = nn.ModuleDict({name: _zeros(rows[name]) for name in _BIASES})
        self.taste = _zeros(rows["user_id"], int(rows["topic2"].max()) + 1)
        self.user, self.item = (_zeros(rows[name], num_styles) for name in ("user_id", "video_id"))
        for style in (self.user, self.item):
            nn.init.normal_(style.weight, std=0.1)
        self.age = nn.Parameter(torch.zeros(()))

    def forward(self, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits, and a penalty on tastes and styles."""
        taste = self.taste(rows["user_id"])
        of_topics = 0.7 * taste.gather(1, rows["topic1"][:, None]) + 0.3 * taste.gather(1, rows["topic2"][:, None])
        user, item = self.user(rows["user_id"]), self.item(rows["video_id"])
        logits = of_topics[:, 0] + (user * item).sum(dim=1) + self.age * rows["log_age"]
        penalty = 0.02 * of_topics.square().mean() + 2e-3 * (user.square() + item.square()).sum(dim=1).mean()
        return logits + sum(bias(rows[name])[:, 0] for name, bias in self.biases.items()), penalty


def _zeros(column: pl.Series, width: int = 1) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.zeros(int(column.max()) + 1, width), freeze=False)


def informed_scores(raw: Path, first_test_ms: int, epochs: int = 6, batch_size: int = 4096) -> pl.DataFrame:
    """Test rows as :class:`Informed` sees them, trained on all rows before.

    Columns ``is_click``, ``truth`` and ``score``, and ``seen``, the training rows of the row's item.
    """
    items = pl.read_parquet(raw / "data/video_features_basic.parquet", columns=["video_id", "tag", "upload_dt"])
    topics = pl.col("tag").str.split(",").list.eval(pl.element().cast(pl.Int64))
    items = items.with_columns(topic1=topics.list.first(), topic2=topics.list.last())
    age = (pl.from_epoch("time_ms", time_unit="ms") - pl.col("upload_dt").str.to_date()).dt.total_hours() / 24
    truth = pl.read_parquet(raw / "truth/truth_*.parquet").select(truth="p_click")
    log = pl.concat([pl.read_parquet(raw / "data/log_*.parquet"), truth], how="horizontal")
    log = log.filter(pl.col("is_rand") == 0).join(items, on="video_id")
    log = log.with_columns(hour=pl.col("time_ms") // 3_600_000 % 24, log_age=age.clip(0).log1p().cast(pl.Float32))
    used = [*_BIASES, "topic1", "topic2"]
    columns = {name: torch.tensor(log[name].cast(pl.Int64).to_numpy()) for name in used}
    columns["log_age"] = torch.tensor(log["log_age"].to_numpy())
    clicked = torch.tensor(log["is_click"].cast(pl.Float32).to_numpy())
    log = log.with_columns(is_test=pl.col("time_ms") >= first_test_ms)
    is_test = torch.tensor(log["is_test"].to_numpy())
    torch.manual_seed(0)
    model, train = Informed(log), (~is_test).nonzero()[:, 0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(train) // batch_size))
    for _ in range(epochs):
        for chosen in train[torch.randperm(len(train))].split(batch_size):
            logits, penalty = model({name: values[chosen] for name, values in columns.items()})
            loss = nn.functional.binary_cross_entropy_with_logits(logits, clicked[chosen]) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        scores = model({name: values[is_test] for name, values in columns.items()})[0]
    seen = (~pl.col("is_test")).sum().over("video_id")
    test = log.with_columns(seen=seen).filter("is_test").select("is_click", "truth", "seen")
    return test.with_columns(score=pl.Series(scores.double().numpy()))


def click_auc(rows: pl.DataFrame, column: str) -> float:
    """Of one column's scores."""
    return auc(rows["is_click"].to_numpy(), rows[column].cast(pl.Float64).to_numpy())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the world and the runs")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--days", type=int, default=105)
    parser.add_argument("--drift", type=float, default=1.0, help="how far interests swing")
    parser.add_argument("--models", nargs="+", default=["infnet"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run; repeatable")
    options = parser.parse_args(arguments)
    dataset, raw = open_world(options), options.out / "raw"
    first = int(dataset.rows("test").time.min())
    truth = best_auc(raw, (pl.col("time_ms") >= first) & (pl.col("is_rand") == 0))["click"]
    informed = informed_scores(raw, first)
    found = {"a learner that knows the equations": click_auc(informed, "score")}
    for model in options.models:
        config = load_config(None, [*RECIPE, *options.set], model=model)
        run = train(dataset, config, options.out / model, resume=True)
        found[model] = evaluate(run, "test").as_json()["tasks"]["click"]["auc"]
    rows = sum(dataset.num_rows(split) for split in ("train", "valid", "test"))
    print(f"{rows:,} rows, drift {options.drift:g}\n\n| | click AUC, test | below the truth |\n|---|---:|---:|")
    print(f"| true probabilities | {truth:.4f} | |")
    for name, value in found.items():
        print(f"| {name} | {value:.4f} | {truth - value:.4f} |")
    print("\n| training rows of the item | share of the test rows | true probabilities | the informed learner |")
    print("|---|---:|---:|---:|")
    for low, high in pairwise(SEEN):
        rows = informed.filter(pl.col("seen").is_between(low, high, closed="left"))
        if rows["is_click"].n_unique() == 2:
            share = rows.height / informed.height
            print(f"| {low:,} up | {share:.0%} | {click_auc(rows, 'truth'):.4f} | {click_auc(rows, 'score'):.4f} |")


if __name__ == "__main__":
    try:
        main()
    except InfnetError as error:
        sys.exit(f"Error: {error}")
