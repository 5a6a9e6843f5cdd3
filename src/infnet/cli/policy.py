"""``infnet policy``: check a policy file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from infnet.data.layout import TaskLayout
from infnet.errors import did_you_mean
from infnet.evaluation.plain_table import text_table
from infnet.ranking.formula import Formula
from infnet.ranking.interval import Interval
from infnet.ranking.policy import Policy, policy_document
from infnet.ranking.policy_spec import InputSpec, PolicySpec
from infnet.ranking.rerank.spec import AtLeast

__all__ = ["load_policy", "policy_app"]

policy_app = typer.Typer(help="Ranking policies: what items are worth, and what pages may hold.", no_args_is_help=True)


@policy_app.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(help="Policy file.", show_default=False)],
    *,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle that the policy is for; without it, tasks are taken on trust.", show_default=False),
    ] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a policy file, and show what its formulas read and can come to.

    Example: infnet policy check policy.yaml --bundle bundle
    """
    policy = load_policy(file, bundle)
    if as_json_:
        typer.echo(json.dumps(_as_json(policy)))
        return
    typer.echo(f"{file}: policy '{policy.spec.name}', version {policy.version}, {policy.spec.combine}")
    if bundle is None:
        tasks = {each.task for each in policy.inputs.values() if each.task is not None}
        names = ", ".join(sorted(tasks)) or "none"
        typer.echo(f"Taken to be tasks of the model: {names}; give --bundle to check them")
    rows = [
        [name, f"{objective.weight:g}", objective.formula, _text(policy.bounds[name])]
        for name, objective in policy.spec.objectives.items()
    ]
    typer.echo("\n" + "\n".join(text_table(("objective", "weight", "formula", "from to"), rows, left=4)))
    inputs = [[name, _source(each), each.unit, _text(policy.ranges[name])] for name, each in policy.inputs.items()]
    if inputs:
        typer.echo("\n" + "\n".join(text_table(("input", "read from", "unit", "range"), inputs, left=4)))
    kept = [*map(str, policy.spec.constraints)]
    if policy.spec.diversity is not None:
        kept.append(f"diversity: {policy.spec.diversity}")
    if kept:
        typer.echo("\nPages, the last to be given up first:\n" + "\n".join(f"  {each}" for each in kept))


def load_policy(file: Path, bundle: Path | None) -> Policy:
    """A policy from a file, for a bundle's tasks, or for those that it seems to be about.

    Raises:
        SpecError: It cannot be used.
        ArtifactError: There is no such bundle.
    """
    document = policy_document(file)
    spec = document.validated(PolicySpec)
    if bundle is None:
        return Policy(spec, _named_tasks(spec), document)
    from infnet.export.bundle import Bundle

    return Policy(spec, Bundle.open(bundle).layout.tasks, document)


def _named_tasks(spec: PolicySpec) -> list[TaskLayout]:
    """The tasks that a policy seems to be about: what its formulas read and it does not declare.

    A name that is nearly a declared one is a slip, and no task.
    """
    binary = {each.task for each in spec.inputs.values() if each.task is not None}
    regression = set[str]()
    formulas = [each.formula for each in spec.objectives.values()]
    formulas += [each.where for each in spec.constraints if isinstance(each, AtLeast)]
    for text in formulas:
        for name in Formula(text, "formula").names - spec.inputs.keys():
            if name.startswith("p_"):
                binary.add(name.removeprefix("p_"))
            elif not did_you_mean(name, spec.inputs).startswith("; did you mean"):
                regression.add(name)
    return [
        *(TaskLayout(name=name, kind="binary", loss="bce") for name in sorted(binary)),
        *(TaskLayout(name=name, kind="regression", loss="mse") for name in sorted(regression - binary)),
    ]


def _source(declared: InputSpec) -> str:
    if declared.task is not None:
        return f"task {declared.task}"
    return f"item {declared.item}" if declared.item is not None else f"request {declared.request}"


def _text(bounds: Interval) -> str:
    return f"{bounds.low:g} to {bounds.high:g}"


def _pair(bounds: Interval) -> list[float]:
    return [bounds.low, bounds.high]


def _as_json(policy: Policy) -> dict[str, object]:
    return {
        "name": policy.spec.name,
        "version": policy.version,
        "objectives": {
            name: {"weight": each.weight, "formula": each.formula, "bounds": _pair(policy.bounds[name])}
            for name, each in policy.spec.objectives.items()
        },
        "inputs": {
            name: each.model_dump(exclude_none=True) | {"range": _pair(policy.ranges[name])}
            for name, each in policy.inputs.items()
        },
        "item_fields": list(policy.item_fields),
        "request_fields": list(policy.request_fields),
    }
