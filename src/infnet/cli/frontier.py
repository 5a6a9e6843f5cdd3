"""``infnet policy frontier``: weights by evidence."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import Progress

import infnet
from infnet.cli.evidence import check_source, scored_split
from infnet.cli.policy import load_policy
from infnet.errors import SpecError
from infnet.evaluation.figures import check_figures, save_figure
from infnet.evaluation.frontier_figure import frontier_figure
from infnet.evaluation.logged_lists import ListKind, logged_evidence
from infnet.evaluation.policy_evidence import Evidence
from infnet.evaluation.policy_frontier import PolicyFrontier
from infnet.evaluation.policy_search import Sampler, check_search, search_frontier
from infnet.ranking.frontier import parse_limits
from infnet.ranking.policy import Policy, policy_document
from infnet.ranking.policy_spec import PolicySpec
from infnet.ranking.weight_space import WeightSpace
from infnet.training.checkpoint import write_atomically
from infnet.training.run import Run

__all__ = ["frontier_command"]

_OF_ROWS, _OF_PAGES = ("split", "data", "top", "discounted", "lists"), ("bundle",)


def frontier_command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Policy file.", show_default=False)],
    *,
    objectives: Annotated[
        str,
        typer.Option(
            help="Rewards, comma-separated: labels of the dataset; of events, types or TYPE.value.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Directory for frontier.json, frontier.png and policies.", show_default=False)
    ],
    run: Annotated[
        Path | None, typer.Option(help="Run whose predictions order logged rows.", show_default=False)
    ] = None,
    events: Annotated[
        Path | None, typer.Option(help="Event log with pages in random orders, instead.", show_default=False)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="OBJECTIVE=CHANGE%: the least change that is allowed; repeatable.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset whose rows are ordered.")] = "test",
    data: Annotated[
        Path | None, typer.Option(help="Where the dataset is, if it has moved since training.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Positions of each list of rows that count.")] = 10,
    discounted: Annotated[bool, typer.Option("--discounted", help="Position p counts 1 / log2(p + 1).")] = False,
    lists: Annotated[ListKind, typer.Option(help="Which rows of a user make a list.")] = "day",
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle that the policy is for, with --events; else tasks are taken on trust.", show_default=False
        ),
    ] = None,
    span: Annotated[
        float, typer.Option("--range", help="Times more or less than declared that weights may be.")
    ] = 100.0,
    trials: Annotated[int, typer.Option(min=1, help="Weights to try; half as many again with --keep.")] = 200,
    sampler: Annotated[Sampler, typer.Option(help="What proposes weights.")] = "nsga2",
    seed: Annotated[int, typer.Option(min=0, help="Of the search, and of which users choose.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print frontier.json.")] = False,
) -> None:
    """Find the weights of a policy's objectives that earn the most of several rewards, and what each costs the others.

    Example: infnet policy frontier policy.yaml --run runs/first --objectives click,watch_time --out figures
    """
    rewards = _rewards(objectives)
    limits = parse_limits(keep or [], rewards)
    check_source(context, run, events, of_rows=_OF_ROWS, of_pages=_OF_PAGES)
    check_figures()
    check_search()
    if run is not None:
        policy, evidence = _of_rows(file, Run.load(run), split, data, rewards, top, discounted, lists)
    else:
        from infnet.experiments.page_evidence import page_evidence

        assert events is not None
        policy = load_policy(file, bundle)
        evidence = page_evidence(policy, events, rewards)
    space = WeightSpace(policy, span)
    out.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("searching", total=trials + (trials // 2 if limits else 0))
        frontier = search_frontier(
            evidence,
            space,
            limits=limits,
            trials=trials,
            sampler=sampler,
            seed=seed,
            progress=lambda done: progress.update(bar, completed=done),
        )
    settings = {"range": span, "trials": trials, "sampler": sampler, "seed": seed}
    source = {"run": str(run), "split": split, "top": top, "discounted": discounted, "lists": lists}
    document = {
        "policy": {"file": str(file), "name": policy.spec.name, "version": policy.version},
        "source": source if run is not None else {"events": str(events)},
        "settings": settings,
        "versions": _versions(),
        **frontier.as_json(),
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    written = _write(out, file, policy, frontier, text)
    if as_json:
        typer.echo(text)
        return
    typer.echo(frontier.as_text())
    typer.echo(f"\nWritten: {', '.join(map(str, written))}")


def _of_rows(
    file: Path, run: Run, split: str, data: Path | None, rewards: list[str], top: int, discounted: bool, lists: ListKind
) -> tuple[Policy, Evidence]:
    policy = Policy.load(file, run.layout.tasks)
    dataset, found = scored_split([policy], run, split, data, rewards)
    return policy, logged_evidence(policy, dataset, split, found, rewards, top=top, discounted=discounted, kind=lists)


def _rewards(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise SpecError(f"--objectives '{text}': wanted different names with commas between, such as click,watch_time")
    if len(names) < 2:
        raise SpecError(f"--objectives '{text}': is a single one; wanted two or more, such as click,watch_time")
    return names


def _write(out: Path, file: Path, policy: Policy, frontier: PolicyFrontier, text: str) -> list[Path]:
    """Write all files; those of choices that there are not are taken away."""
    written = [out / "frontier.json", out / "frontier.png"]
    write_atomically(written[0], text + "\n")
    save_figure(frontier_figure(frontier, f"Policy '{policy.spec.name}': {frontier.about}"), written[1])
    for name, number in (("knee", frontier.knee), ("kept", frontier.kept)):
        path = out / f"policy.{name}.yaml"
        if number is None:
            path.unlink(missing_ok=True)
            continue
        weights = dict(zip(frontier.weighed, frontier.trials[number].weights, strict=True))
        write_atomically(path, _policy_text(file, weights, f"'{name}' of infnet policy frontier, see frontier.json"))
        written.append(path)
    return written


def _policy_text(file: Path, weights: dict[str, float], what: str) -> str:
    """The policy file with other weights; comments are lost."""
    raw: dict[str, Any] = dict(policy_document(file).raw)
    raw["objectives"] = {name: {**each, "weight": weights[name]} for name, each in raw["objectives"].items()}
    PolicySpec.model_validate(raw)
    return f"# {file.name} with the weights of {what}.\n" + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("optuna", "numpy")}
    return {"infnet": infnet.__version__, "python": platform.python_version(), **packages}
