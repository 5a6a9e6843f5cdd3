"""Several models' costs side by side, each measured in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table

from infnet.data.dataset import Dataset
from infnet.data.layout import Manifest
from infnet.errors import TrainingError
from infnet.evaluation.efficiency import ModelCost, measure_cost
from infnet.models.base import build_model
from infnet.training.config import TrainConfig

__all__ = ["Profile", "profile_models"]

_HEADINGS = (
    "M dense params",
    "M table params",
    "MFLOPs a row",
    "MFLOPs a request",
    "ms a batch",
    "ms a request",
    "rows/s train",
    "rows/s score",
    "peak MB",
)


class Profile(BaseModel):
    """What models cost on a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dataset: str
    num_fields: int
    """M."""
    seq_len: int
    """L, at most."""
    num_tasks: int
    """T."""
    batch_size: int
    """Rows of a training step."""
    num_candidates: int
    """Of a request."""
    threads: int | None
    """Of PyTorch; None for as many as it takes."""
    models: dict[str, ModelCost]

    @property
    def title(self) -> str:
        """What was measured, in one line."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads > 1)}"
        return (
            f"{self.dataset}: {self.num_fields} fields, {self.seq_len} events, {self.num_tasks} tasks; "
            f"batches of {self.batch_size:,}, requests of {self.num_candidates:,}{threads}"
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, numbers unrounded."""
        return self.model_dump()

    def as_table(self) -> Table:
        """A line per model."""
        table = Table(title=self.title, box=SIMPLE_HEAD, padding=0)
        table.add_column("model", no_wrap=True)
        for heading in _HEADINGS:
            table.add_column(heading, justify="right", overflow="fold")
        for name, cost in self.models.items():
            table.add_row(name, *_cells(cost))
        return table

    def as_markdown(self) -> str:
        """The same table."""
        lines = [
            f"{self.title}.",
            "",
            f"| model | {' | '.join(_HEADINGS)} |",
            "|---|" + "---:|" * len(_HEADINGS),
            *(f"| {name} | {' | '.join(_cells(cost))} |" for name, cost in self.models.items()),
        ]
        return "\n".join(lines) + "\n"


def profile_models(
    dataset: Dataset,
    configs: Mapping[str, TrainConfig],
    *,
    num_candidates: int = 500,
    repeats: int = 5,
    on_model: Callable[[str], None] | None = None,
) -> Profile:
    """Measure models one after the other, each in a fresh process, so that none inherits another's memory.

    Args:
        dataset: On disk.
        configs: What to train with, by the name to show; batch size and threads are the same for all.
        num_candidates: Of a request.
        repeats: Of each measurement.
        on_model: Called with each name before it is measured.

    Raises:
        SpecError: A model or one of its settings is unknown, or a value is out of range.
        TrainingError: A process was ended from outside, such as for want of memory.
    """
    for config in configs.values():
        build_model(config.model, dataset.layout, config.settings)  # a wrong setting ends it here, not after an hour
    costs = {}
    for name, config in configs.items():
        if on_model is not None:
            on_model(name)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            measured = process.submit(_measure, dataset.path, dataset.manifest, config, num_candidates, repeats)
            try:
                costs[name] = measured.result()
            except BrokenProcessPool as error:
                raise TrainingError(
                    f"{name}: the process that measured it was ended, perhaps for want of memory; "
                    "lower --batch-size or --candidates"
                ) from error
    layout, first = dataset.layout, next(iter(configs.values()))
    return Profile(
        dataset=dataset.manifest.name,
        num_fields=layout.num_fields,
        seq_len=layout.seq_len,
        num_tasks=len(layout.tasks),
        batch_size=first.batch_size,
        num_candidates=num_candidates,
        threads=first.threads,
        models=costs,
    )


def _measure(path: Path, manifest: Manifest, config: TrainConfig, num_candidates: int, repeats: int) -> ModelCost:
    return measure_cost(
        config.model,
        config.settings,
        Dataset(path, manifest),
        batch_size=config.batch_size,
        num_candidates=num_candidates,
        repeats=repeats,
        seed=config.seed,
        train=config,
    )


def _cells(cost: ModelCost) -> list[str]:
    return [
        f"{cost.dense_parameters / 1e6:,.3f}",
        f"{cost.embedding_parameters / 1e6:,.3f}",
        f"{cost.flops_per_row / 1e6:,.2f}",
        f"{cost.flops_per_request / 1e6:,.0f}",
        f"{cost.batch_ms:,.1f}",
        f"{cost.request_ms:,.1f}",
        f"{cost.train_rows_per_s:,.0f}",
        f"{cost.score_rows_per_s:,.0f}",
        "" if cost.peak_mb is None else f"{cost.peak_mb:,.0f}",
    ]
