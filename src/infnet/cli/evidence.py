"""What policies are judged by: the options that say where evidence comes from, and logged rows with predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress

from infnet.data.dataset import Dataset
from infnet.errors import SpecError
from infnet.evaluation.evaluate import open_dataset_of
from infnet.evaluation.logged_lists import check_logged
from infnet.evaluation.predict import predict
from infnet.evaluation.predictions import Predictions
from infnet.ranking.policy import Policy
from infnet.training.run import Run

__all__ = ["check_source", "scored_split"]


def check_source(
    context: typer.Context,
    run: Path | None,
    events: Path | None,
    *,
    of_rows: Sequence[str],
    of_pages: Sequence[str],
) -> None:
    """See that evidence has one source, and that the options given are about it.

    Raises:
        SpecError: It has none or two, or an option is about the other one.
    """
    if (run is None) == (events is None):
        raise SpecError("wanted either --run, for logged rows, or --events, for served pages in random orders")
    other, given = (of_pages, "--run") if run is not None else (of_rows, "--events")
    for name in other:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise SpecError(f"--{name} has no meaning with {given}; leave it out")


def scored_split(
    policies: Sequence[Policy], run: Run, split: str, data: Path | None, rewards: Sequence[str]
) -> tuple[Dataset, Predictions]:
    """A run's dataset, or the one at ``data``, and what the run's model predicts of a split.

    Raises:
        SpecError: A reward is no label of it, or a policy reads what its rows do not have.
        DataError: It has no such split.
    """
    dataset = open_dataset_of(run, data)
    for policy in policies:
        check_logged(policy, dataset, rewards)
    model, num_rows = run.load_model(), dataset.num_rows(split)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"scoring {split}", total=num_rows)
        return dataset, predict(model, dataset, split, on_batch=lambda rows: progress.advance(bar, rows))
