"""``infnet ab``: who sees what in an experiment, how long it takes, and what came of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from infnet.errors import SpecError
from infnet.evaluation.plain_table import text_table
from infnet.experiments.analysis import analyse, daily_effects
from infnet.experiments.assignment import Assigner
from infnet.experiments.experiment_log import ExperimentLog
from infnet.experiments.metrics import MetricSpec, default_metrics, parse_metric
from infnet.experiments.moments import load_tea_tasting
from infnet.experiments.page import as_html
from infnet.experiments.power import PowerSettings, plan, plan_from_log
from infnet.experiments.reading import DECLARED, load_experiments
from infnet.experiments.ready_table import ReadyTable
from infnet.experiments.report import as_json, as_text, plan_as_text
from infnet.experiments.settings import AnalysisSettings, Looks
from infnet.experiments.spec import Experiment
from infnet.experiments.user_table import user_table
from infnet.experiments.verdict import judge
from infnet.training.checkpoint import write_atomically

__all__ = ["ab_app"]

ab_app = typer.Typer(help="A/B tests: check, assign, plan and report experiments.", no_args_is_help=True)

_DEFAULTS = AnalysisSettings()

_Events = Annotated[Path | None, typer.Option(help="Event log of the service.", show_default=False)]
_Table = Annotated[
    Path | None, typer.Option(help="Ready user table (Parquet, CSV), instead of --events.", show_default=False)
]
_Experiments = Annotated[
    Path | None,
    typer.Option("--experiments", help="Experiments file that declares it; the log's by default.", show_default=False),
]
_Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="Name of a declared metric, or [NAME=]NUMERATOR[/DENOMINATOR]; repeatable.", show_default=False
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@ab_app.command("report")
def report_command(
    *,
    events: _Events = None,
    table: _Table = None,
    name: Annotated[str, typer.Option("--experiment", help="Name of the experiment.", show_default=False)],
    file: _Experiments = None,
    metric: _Metrics = None,
    control: Annotated[
        str | None, typer.Option(help="Control of an experiment that no file declares.", show_default=False)
    ] = None,
    segment: Annotated[
        list[str] | None,
        typer.Option(help="Context value, user feature or column to split users by; repeatable.", show_default=False),
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential/--fixed", help="Valid at any number of looks, or for one at the end.")
    ] = True,
    expected_effect: Annotated[
        float, typer.Option(min=0.0001, help="Relative effect for which sequential intervals are narrowest.")
    ] = _DEFAULTS.expected_effect,
    cuped: Annotated[bool, typer.Option("--cuped/--no-cuped", help="Take out what users did before.")] = True,
    pre_days: Annotated[float, typer.Option(min=0, help="Days before the first exposure that this looks at.")] = 7.0,
    page: Annotated[Path | None, typer.Option("--html", help="Write a page too.", show_default=False)] = None,
    as_json_: _Json = False,
) -> None:
    """Analyse an experiment and say what to do.

    Example: infnet ab report --events events --experiment diversity --experiments experiments.yaml --html report.html

    Example: infnet ab report --table users.parquet --experiment pricing --metric orders --fixed
    """
    load_tea_tasting()
    declared = _declared(file, name, control) or _declared_in(events, name, control)
    segments = segment or []
    if _is_table(events, table):
        ready = ReadyTable.read(_given(table))
        experiment = declared or ready.observed(name, control)
        metrics = _metrics(metric, experiment, ready.default_metrics())
        users = ready.users(experiment, metrics, segments)
    else:
        log = ExperimentLog.read(_given(events), name, segments)
        experiment = declared or log.observed(name, control)
        metrics = _metrics(metric, experiment, default_metrics(log.event_types))
        users = user_table(log, experiment, metrics, segments=segments, pre_days=pre_days)
    looks: Looks = "sequential" if sequential else "fixed"
    settings = AnalysisSettings(looks=looks, cuped=cuped, expected_effect=expected_effect)
    analysis = analyse(users, experiment, metrics, settings, segments=segments)
    verdict = judge(analysis, datetime.now(UTC))
    deciding = [m for m in metrics if not m.is_guardrail]
    treatments = [v for v in experiment.weights if v != experiment.resolved_control]
    daily = (
        {(m.name, v): daily_effects(analysis, m, v) for m in deciding for v in treatments} if page or as_json_ else {}
    )
    if page is not None:
        write_atomically(page, as_html(analysis, verdict, daily))
    typer.echo(json.dumps(as_json(analysis, verdict, daily)) if as_json_ else as_text(analysis, verdict))


@ab_app.command("power")
def power_command(
    *,
    events: _Events = None,
    table: _Table = None,
    metric: _Metrics = None,
    effect: Annotated[float, typer.Option(min=0.0001, help="Relative effect to find, such as 0.02 for 2%.")] = 0.02,
    variants: Annotated[int, typer.Option(min=2, help="Variants, the control included.")] = 2,
    coverage: Annotated[float, typer.Option(min=0.0001, max=1, help="Share of users in the experiment.")] = 1.0,
    power: Annotated[float, typer.Option(min=0.01, max=0.999, help="Chance of finding the effect.")] = 0.8,
    as_json_: _Json = False,
) -> None:
    """How small an effect can be found in how many days, from what users did so far.

    Example: infnet ab power --events events --metric click/impressions --effect 0.01
    """
    load_tea_tasting()
    settings = PowerSettings(effect=effect, num_variants=variants, coverage=coverage, power=power)
    if _is_table(events, table):
        ready = ReadyTable.read(_given(table))
        metrics = _metrics(metric, None, ready.default_metrics())
        plans = plan(ready.users(None, metrics), metrics, settings)
    else:
        log = ExperimentLog.read(_given(events), None)
        plans = plan_from_log(log, _metrics(metric, None, default_metrics(log.event_types)), settings)
    typer.echo(
        json.dumps([_plan_json(asdict(p), p.metric) for p in plans]) if as_json_ else plan_as_text(plans, effect)
    )


@ab_app.command("assign")
def assign_command(
    file: Annotated[Path, typer.Argument(help="Experiments file.", show_default=False)],
    *,
    user: Annotated[list[str], typer.Option(help="Key of a user; repeatable.", show_default=False)],
    at: Annotated[datetime | None, typer.Option(help="Moment, UTC.  [default: now]", show_default=False)] = None,
    as_json_: _Json = False,
) -> None:
    """Show which variants users are in.

    Example: infnet ab assign experiments.yaml --user 123 --user 456
    """
    spec = load_experiments(file)
    assigner = Assigner(spec)
    time_ms = int(time.time() * 1000 if at is None else at.replace(tzinfo=UTC).timestamp() * 1000)
    found = {key: dict(assigner.assign(key, time_ms)) for key in user}
    if as_json_:
        typer.echo(json.dumps(found))
        return
    rows = [[key, *(variants.get(name, "-") for name in spec.names)] for key, variants in found.items()]
    typer.echo("\n".join(text_table(("user", *spec.names), rows, left=1 + len(spec.names))))


@ab_app.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(help="Experiments file.", show_default=False)], *, as_json_: _Json = False
) -> None:
    """Check an experiments file, and show what it declares.

    Example: infnet ab check experiments.yaml
    """
    spec = load_experiments(file)
    if as_json_:
        typer.echo(spec.model_dump_json(by_alias=True))
        return
    rows = [
        [
            e.name,
            e.layer,
            f"{e.range[0]:g} to {e.range[1]:g}",
            ", ".join(f"{v} {e.weights[v]:.1%}" for v in sorted(e.weights, key=lambda v: v != e.resolved_control)),
            ", ".join(m.name for m in e.metrics),
        ]
        for e in spec.experiments
    ]
    titles = ("experiment", "layer", "users", "variants, control first", "metrics")
    typer.echo(
        "\n".join(
            [
                f"{file}: {len(rows)} experiment{'' if len(rows) == 1 else 's'}",
                *(text_table(titles, rows, left=5) if rows else []),
            ]
        )
    )


def _declared(file: Path | None, name: str, control: str | None) -> Experiment | None:
    if file is None:
        return None
    if control is not None:
        raise SpecError(f"--control {control}: {file} says which variant is the control; give one of the two")
    try:
        return load_experiments(file).experiment(name)
    except SpecError as error:
        raise SpecError(str(error) if str(file) in str(error) else f"{file}: {error}") from error


def _declared_in(events: Path | None, name: str, control: str | None) -> Experiment | None:
    """As the service of an event log had it; None if it had no such experiment, or another control is wanted."""
    file = None if events is None else events / DECLARED
    if file is None or control is not None or not file.is_file():
        return None
    spec = load_experiments(file)
    return spec.experiment(name) if name in spec.names else None


def _is_table(events: Path | None, table: Path | None) -> bool:
    if (events is None) == (table is None):
        raise SpecError("give either --events DIRECTORY or --table FILE")
    return table is not None


def _given(path: Path | None) -> Path:
    return Path(os.curdir) if path is None else path


def _metrics(
    texts: Sequence[str] | None, experiment: Experiment | None, default: Sequence[MetricSpec]
) -> list[MetricSpec]:
    """Those named, those declared, or the default."""
    declared = {} if experiment is None else {m.name: m for m in experiment.metrics}
    chosen = [declared[text] if text in declared else parse_metric(text) for text in texts or []]
    chosen = chosen or list(declared.values()) or list(default)
    names = [m.name for m in chosen]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"two metrics are called '{name}'; give each its own name, as --metric NAME=...")
    return chosen


def _plan_json(plan_: dict[str, object], metric: MetricSpec) -> dict[str, object]:
    return plan_ | {"metric": metric.name}
