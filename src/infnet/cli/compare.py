"""``infnet policy compare``: what two policies would have earned, from what was left to chance."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from infnet.cli.evidence import check_source, scored_split
from infnet.cli.policy import load_policy
from infnet.evaluation.logged_lists import ListKind, logged_lists
from infnet.evaluation.plain_table import text_table
from infnet.evaluation.random_rows import random_decisions, shown_rows
from infnet.ranking.offpolicy import Decisions, Estimate, evaluate_offline
from infnet.ranking.policy import Policy
from infnet.training.run import Run

__all__ = ["compare_command"]

_OF_ROWS, _OF_PAGES = ("split", "data", "top", "lists"), ("bundle",)
_LOGGED = ("train", "valid", "test")
"""Splits whose rows a recommender had chosen."""


@dataclass(frozen=True)
class _Compared:
    about: str
    """What it rests on."""
    num: int
    what: str
    """Of which there are so many."""
    decisions: tuple[Decisions, Decisions]
    same: float
    """Share of lists or pages on which both choose the same."""
    notes: tuple[str, ...]


def compare_command(
    context: typer.Context,
    first: Annotated[Path, typer.Argument(help="Policy file.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    *,
    events: Annotated[
        Path | None, typer.Option(help="Event log with pages in random orders.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run whose predictions order rows that were shown at random, instead.", show_default=False),
    ] = None,
    reward: Annotated[
        str,
        typer.Option(
            help="What an item earns: an event type, or TYPE.value for the sum of its values; with --run a label."
        ),
    ] = "click",
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle that the policies are for, with --events; else tasks are taken on trust.", show_default=False
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the run's dataset with the rows shown at random.")] = "random",
    data: Annotated[
        Path | None, typer.Option(help="Where the dataset is, if it has moved since training.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows of each list that a policy would show.")] = 1,
    lists: Annotated[ListKind, typer.Option(help="Which rows of a user make a list.")] = "day",
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what two policies would have earned, from pages in random orders ('exploration') or items shown at random.

    Example: infnet policy compare policy.yaml other.yaml --events events --reward click
    """
    check_source(context, run, events, of_rows=_OF_ROWS, of_pages=_OF_PAGES)
    files = (first, second)
    if run is not None:
        compared = _by_rows(files, Run.load(run), split, data, reward, top, lists)
    else:
        assert events is not None
        compared = _by_pages([load_policy(file, bundle) for file in files], events, reward)
    both = compared.decisions
    found = [evaluate_offline(each) for each in both]
    change = both[1].minus(both[0])
    if as_json_:
        result = {compared.what: compared.num, "same_choice": compared.same, "difference": asdict(change)}
        policies = [{"file": file.name, **asdict(one)} for file, one in zip(files, found, strict=True)]
        typer.echo(json.dumps(result | {"notes": compared.notes, "policies": policies}))
        return
    typer.echo(f"{compared.about}, 95% intervals\n")
    rows = [
        [file.name, *(_interval(each) for each in (one.snips, one.ips, one.doubly_robust)), f"{one.effective:,.0f}"]
        for file, one in zip(files, found, strict=True)
    ]
    titles = ("policy", "self-normalised", "inverse propensity", "doubly robust", "effective decisions")
    typer.echo("\n".join(text_table(titles, rows)))
    typer.echo(
        f"\n{second.name} beside {first.name}: {_interval(change)}; the same choice on {compared.same:.0%} of "
        f"{compared.what}"
    )
    for note in compared.notes:
        typer.echo(note)
    for file, one in zip(files, found, strict=True):
        if one.doubt is not None:
            typer.echo(f"{file.name}: not to be trusted: {one.doubt}")


def _by_pages(policies: list[Policy], events: Path, reward: str) -> _Compared:
    from infnet.experiments.logged_pages import LoggedPages
    from infnet.experiments.metrics import parse_metric

    measure = parse_metric(reward).numerator
    pages = LoggedPages.read(events, measure)
    one, other = (pages.orders(policy) for policy in policies)
    same = sum(bool(len(a) and len(b) and a[0] == b[0]) for a, b in zip(one, other, strict=True)) / len(pages.pages)
    inverse = f"The model does not predict '{measure.event}', so that the doubly robust estimate is the inverse one"
    return _Compared(
        about=f"{len(pages.pages):,} pages in random orders; {measure.column} per page",
        num=len(pages.pages),
        what="pages",
        decisions=(pages.decisions(one), pages.decisions(other)),
        same=same,
        notes=() if pages.has_model else (inverse,),
    )


def _by_rows(
    files: tuple[Path, Path], run: Run, split: str, data: Path | None, reward: str, top: int, kind: ListKind
) -> _Compared:
    policies = [Policy.load(file, run.layout.tasks) for file in files]
    dataset, found = scored_split(policies, run, split, data, [reward])
    predicted = found.scores[:, found.tasks.index(reward)]
    both, shown = [], []
    for policy in policies:
        logged = logged_lists(policy, dataset, split, found, [reward], kind=kind)
        shown.append(shown_rows(policy, logged, top))
        both.append(random_decisions(logged, shown[-1], top, reward, predicted))
    is_choice = logged.sizes > top
    differ = np.bincount(logged.lists.numbers, shown[0] != shown[1], len(is_choice)) > 0
    num = int(is_choice.sum())
    chosen = f"Rows of split '{split}' were chosen by a recommender, and not at random: these estimates are biased"
    return _Compared(
        about=f"{len(both[0].reward):,} exposures in {num:,} lists of split '{split}'; {reward} per exposure",
        num=num,
        what="lists",
        decisions=(both[0], both[1]),
        same=1 - float(differ[is_choice].mean()),
        notes=(chosen,) if split in _LOGGED else (),
    )


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"
