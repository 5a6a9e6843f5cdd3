"""Our baselines beside the same models of torch-rechub, on the same prepared rows; prints a Markdown table.

    pip install torch-rechub==0.9.0
    python benchmarks/rechub.py prepared --out runs/rechub

Both sides read the batches of one prepared dataset: the same rows in the same order, the same fields, histories and
labels, and are judged by the same metrics. torch-rechub's networks get its own trainers' recipe (Adam, weight decay
1e-5, BatchNorm in every MLP), the widths of ours, and the learning rate of ``--rates`` and the epoch that do best on
validation; ours get the defaults of ``infnet train``. torch-rechub knows DIN and DCNv2 for one label only: one copy per
task, or of those that ``--tasks`` names (its DIN is slow). An event's first tag stands for its tags, because a sequence
of sets has no place there. A second call goes on where the first was interrupted.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accuracy import table
from infnet.api import evaluate, train
from infnet.data.batch import RequestBatch
from infnet.data.dataset import Dataset
from infnet.errors import InfnetError
from infnet.evaluation.predictions import Predictions
from infnet.evaluation.report import EvaluationReport, evaluate_predictions
from infnet.training.checkpoint import write_atomically
from infnet.training.config import TrainConfig

try:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE, PLE, SharedBottom
    from torch_rechub.models.ranking import DIN, DCNv2
except ImportError:
    sys.exit("Error: torch-rechub is not installed; pip install torch-rechub==0.9.0")

MODELS = ("shared_bottom", "mmoe", "ple", "din", "dcnv2")
SINGLE_TASK = ("din", "dcnv2")
WIDTH, HIDDEN, TOWER, DROPOUT = 16, [256, 128], [64], 0.1


class Columns:
    """A prepared dataset's fields as torch-rechub's features, and its batches as their dictionaries of tensors.

    An id becomes its place in its vocabulary, counted from 1; 0 is padding.
    """

    def __init__(self, dataset: Dataset, tasks: list[str] | None = None) -> None:
        self.layout = layout = dataset.layout
        self.vocabularies = {v.name: v for v in layout.vocabularies}
        wanted = layout.task_names if tasks is None else tasks
        self.binary = [i for i, task in enumerate(layout.tasks) if task.kind == "binary" and task.name in wanted]
        self.home: dict[str, str] = {}
        """The field whose table a vocabulary's other fields share."""
        self.fields: list[Any] = []
        for field in layout.fields:
            if field.storage == "dense":
                continue  # torch-rechub's DIN takes none
            assert field.vocabulary is not None
            kind = SparseFeature if field.storage == "id" else SequenceFeature
            self.fields.append(kind(field.name, **self._shared(field.vocabulary, field.name)))

    def _shared(self, vocabulary: str, name: str) -> dict[str, Any]:
        home = self.home.setdefault(vocabulary, name)
        size = self.vocabularies[vocabulary].size + 1
        settings: dict[str, Any] = {"vocab_size": size, "embed_dim": WIDTH, "padding_idx": 0}
        return settings if home == name else {**settings, "shared_with": home}

    def histories(self, pooling: str) -> list[Any]:
        """A feature per behaviour and field of its events."""
        of_field = {f.name: f for f in self.layout.fields}
        return [
            SequenceFeature(
                f"{b.name}:{name}", pooling=pooling, **self._shared(str(of_field[name].vocabulary), f"{b.name}:{name}")
            )
            for b in self.layout.behaviours
            for name in b.fields
        ]

    def targets(self) -> list[Any]:
        """For each of :meth:`histories` the candidate's value."""
        of_field = {f.name: f for f in self.layout.fields}
        return [
            SparseFeature(
                f"target:{b.name}:{name}", **self._shared(str(of_field[name].vocabulary), f"target:{b.name}:{name}")
            )
            for b in self.layout.behaviours
            for name in b.fields
        ]

    def values(self, batch: RequestBatch) -> dict[str, Tensor]:
        """What a batch of single rows (N = 1) holds."""
        layout, out = self.layout, {}
        items = batch.candidate_item[:, 0].long()
        for side, values in (
            ("user", batch.user),
            ("context", batch.context),
            ("item", batch.item),
            ("candidate", batch.candidate),
        ):
            columns = layout.id_columns(side)
            for field in [f for f in layout.side(side) if f.storage != "dense"]:
                ids = self._local(batch.rows, values.ids[:, columns[field.name]], str(field.vocabulary))
                ids = ids[items] if side == "item" else ids
                out[field.name] = ids[:, 0] if field.storage == "id" else ids
        return out | self._events(batch, out)

    def _events(self, batch: RequestBatch, fields: dict[str, Tensor]) -> dict[str, Tensor]:
        layout, out, at = self.layout, {}, 0
        longest = max((b.length for b in layout.behaviours), default=0)  # DIN stacks its histories
        of_field, item_columns = {f.name: f for f in layout.fields}, layout.id_columns("item")
        first, where = 0, {}
        for name in layout.event_fields:
            where[name] = first
            first += item_columns[name].stop - item_columns[name].start
        for behaviour in layout.behaviours:
            part = slice(at, at + behaviour.length)
            at += behaviour.length
            events, present = batch.history[:, part].long(), batch.history_present[:, part]
            for name in behaviour.fields:
                ids = self._local(batch.rows, batch.event_ids[:, where[name]], str(of_field[name].vocabulary))
                found = torch.where(present, ids[events], 0)
                out[f"{behaviour.name}:{name}"] = nn.functional.pad(found, (0, longest - behaviour.length))
                own = fields[name]
                out[f"target:{behaviour.name}:{name}"] = own if own.ndim == 1 else own[:, 0]
        return out

    def _local(self, rows: Tensor, positions: Tensor, vocabulary: str) -> Tensor:
        local = rows[positions.clamp(min=0).long()] - self.vocabularies[vocabulary].first + 1
        return torch.where(positions >= 0, local, 0)

    def labels(self, batch: RequestBatch) -> Tensor:
        """(B, T): 0 or 1, or standardised values."""
        assert batch.labels is not None
        mean = torch.tensor([0.0 if t.kind == "binary" else t.mean for t in self.layout.tasks])
        std = torch.tensor([1.0 if t.kind == "binary" else t.std for t in self.layout.tasks])
        return (batch.labels[:, 0] - mean) / std


def multi_task(columns: Columns, name: str) -> nn.Module:
    """A network for all tasks."""
    features = columns.fields + columns.histories("mean")
    types = ["classification" if t.kind == "binary" else "regression" for t in columns.layout.tasks]
    deep = {"dims": HIDDEN, "activation": "relu", "dropout": DROPOUT}
    towers = [{"dims": TOWER, "activation": "relu", "dropout": DROPOUT} for _ in types]
    if name == "shared_bottom":
        return SharedBottom(features, types, deep, towers)
    if name == "mmoe":
        return MMOE(features, types, 4, deep, towers)
    return PLE(features, types, 1, 2, 2, deep, towers)


class OneTaskEach(nn.Module):
    """A single-task network per binary task."""

    def __init__(self, columns: Columns, name: str) -> None:
        super().__init__()
        self.copies = nn.ModuleList(self._one(columns, name) for _ in columns.binary)

    @staticmethod
    def _one(columns: Columns, name: str) -> nn.Module:
        fields = copy.deepcopy(columns.fields)  # a feature keeps the table it made: each copy gets its own
        deep = {"dims": HIDDEN, "dropout": DROPOUT}
        if name == "dcnv2":
            return DCNv2(fields + columns.histories("mean"), 3, deep, use_low_rank_mixture=False)
        attention = {"dims": [36], "activation": "dice"}
        return DIN(fields, columns.histories("concat"), columns.targets(), deep, attention)

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        """Probabilities (B, binary tasks)."""
        return torch.stack([network(values) for network in self.copies], dim=1)


class Peer:
    """One network of torch-rechub in training."""

    def __init__(self, dataset: Dataset, name: str, rate: float, seed: int, options: argparse.Namespace) -> None:
        torch.manual_seed(seed)
        self.dataset, self.seed, self.batch_size = dataset, seed, options.batch_size
        is_single = name in SINGLE_TASK
        self.columns = Columns(dataset, options.tasks if is_single else None)
        self.network = OneTaskEach(self.columns, name) if is_single else multi_task(self.columns, name)
        self.tasks = self.columns.binary if is_single else list(range(len(dataset.layout.tasks)))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=rate, weight_decay=1e-5)

    def epoch(self, number: int) -> float:
        """One pass over the training rows; rows a second, making batches included."""
        self.network.train()
        started, rows = time.perf_counter(), 0
        for values, labels in self._batches("train", seed=self.seed, epoch=number):
            out = self.network(values)
            losses = [
                nn.functional.binary_cross_entropy(out[:, k], labels[:, i])
                if i in self.columns.binary
                else nn.functional.mse_loss(out[:, k], labels[:, i])
                for k, i in enumerate(self.tasks)
            ]
            self.optimizer.zero_grad()
            (sum(losses) / (1 if len(losses) == len(self.columns.binary) else len(losses))).backward()
            self.optimizer.step()
            rows += len(labels)
        return rows / (time.perf_counter() - started)

    def judge(self, split: str) -> EvaluationReport:
        """Metrics of the binary tasks."""
        self.network.eval()
        binary = self.columns.binary
        at = [self.tasks.index(i) for i in binary]
        with torch.inference_mode():
            found = [(self.network(values)[:, at], labels[:, binary]) for values, labels in self._batches(split)]
        scores, labels = (torch.cat(part).double().numpy() for part in zip(*found, strict=True))
        tasks = [self.dataset.layout.tasks[i].name for i in binary]
        users = np.asarray(self.dataset.rows(split).user, dtype=np.int64)
        kinds = ("binary",) * len(tasks)
        return evaluate_predictions(Predictions(tuple(tasks), kinds, labels.astype(np.float32), scores, users))

    def _batches(self, split: str, **options: Any) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for batch in self.dataset.batches(split, self.batch_size, **options):
            yield self.columns.values(batch), self.columns.labels(batch)


def of_peer(dataset: Dataset, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """torch-rechub's model with the rate and epoch that do best on validation."""
    best: dict[str, Any] = {}
    for rate in options.rates:
        peer = Peer(dataset, name, rate, seed, options)
        for epoch in range(options.epochs):
            speed = peer.epoch(epoch)
            value = peer.judge("valid").as_flat()["mean"]
            if not best or value > best["value"]:
                found = peer.judge("test").as_json()
                best = {
                    "value": value,
                    "rate": rate,
                    "epoch": epoch + 1,
                    "tasks": found["tasks"],
                    "mean": found["mean"],
                }
                best["rows_per_s"] = speed
            elif value < best["value"] - 0.01:
                break  # past its best
    setting = f"rate {best['rate']:g}, epoch {best['epoch']}"
    print(f"rechub {name}, seed {seed}: {setting}, {best['rows_per_s']:.0f} rows/s", file=sys.stderr)
    return {"model": f"{name}, torch-rechub", "seed": seed, **best}


def of_ours(dataset: Dataset, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Our model by its default recipe."""
    config = TrainConfig(model=name, seed=seed, tensorboard=False)
    run = train(dataset, config, options.out / f"{name}-seed{seed}", resume=True)
    found = evaluate(run, "test").as_json()
    tasks = {task: metrics for task, metrics in found["tasks"].items() if "auc" in metrics}
    speed = run.report["rows_per_s"]
    return {"model": f"{name}, ours", "seed": seed, "tasks": tasks, "mean": found["mean"], "rows_per_s": speed}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared dataset")
    parser.add_argument("--out", type=Path, required=True, help="directory of our runs and of rechub.json")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-4], help="torch-rechub's learning rates")
    parser.add_argument("--epochs", type=int, default=3, help="torch-rechub's passes at most")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--tasks", nargs="+", help="of torch-rechub's single-task models; all binary ones by default")
    options = parser.parse_args(arguments)
    dataset = Dataset.open(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "rechub.json"
    results: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    sides: tuple[tuple[str, Callable[..., dict[str, Any]]], ...] = (("ours", of_ours), ("torch-rechub", of_peer))
    for name in options.models:
        for title, measure in sides:
            for seed in options.seeds:
                if not any(r["model"] == f"{name}, {title}" and r["seed"] == seed for r in results):
                    results.append(measure(dataset, name, seed, options))
                    write_atomically(kept, json.dumps(results, indent=1) + "\n")
    print(table(results))
    print("\n| model | training rows/s, median |\n|---|---:|")
    for model in dict.fromkeys(r["model"] for r in results):
        speeds = [r["rows_per_s"] for r in results if r["model"] == model]
        print(f"| {model} | {statistics.median(speeds):,.0f} |")


if __name__ == "__main__":
    try:
        main()
    except InfnetError as error:
        sys.exit(f"Error: {error}")
