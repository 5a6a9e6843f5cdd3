"""``infnet update``."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infnet.data.sources.files import read_table
from infnet.errors import DataError, SpecError
from infnet.export.bundle import Bundle
from infnet.schema import load_spec
from infnet.serving.label_join import Delayed, join_labels
from infnet.serving.publication import ModelDirectory
from infnet.updating.follow import Follower, Round, bundle_at
from infnet.updating.guard import GuardError, GuardSettings, Judgement, Unsure, Verdict
from infnet.updating.samples import count_new
from infnet.updating.update import UpdateReport, UpdateSettings, update_bundle

__all__ = ["update_command"]


def update_command(
    bundle: Annotated[
        Path, typer.Argument(help="A bundle, or a directory of versions: then its current one.", show_default=False)
    ],
    events: Annotated[Path, typer.Option(help="Event log of the service.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Bundle to make; an older one there is replaced.", show_default=False)
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Directory of versions to publish to, instead of --out.", show_default=False)
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Where joined samples are kept.  [default: EVENTS/samples]", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on for ever; with --to.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds from one round to the next; with --follow.")] = 30.0,
    min_samples: Annotated[int, typer.Option(min=1, help="New samples that a round waits for; with --follow.")] = 500,
    delayed: Annotated[
        Delayed,
        typer.Option(help="Labels that come late: wait for them, or count negatives first and correct them later."),
    ] = "wait",
    holdout: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of requests that is never learnt from, to judge by.")
    ] = 0.05,
    evict_after_days: Annotated[
        float | None, typer.Option(min=0, help="Forget values that nothing has named for so long.", show_default=False)
    ] = None,
    unsure: Annotated[
        Unsure, typer.Option(help="With too few held-out rows to judge by: refuse what looks worse, accept, or refuse.")
    ] = "careful",
    as_of: Annotated[
        datetime | None,
        typer.Option(
            help="Join labels as of then, UTC, where the log is a replay's.  [default: now]", show_default=False
        ),
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="Raw features of new or changed users (Parquet, CSV).", show_default=False)
    ] = None,
    items: Annotated[
        Path | None, typer.Option(help="Raw features of new or changed items (Parquet, CSV).", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --follow, a line a round.")] = False,
) -> None:
    """Go on training a bundle with what its service has logged, and make the next one if it is no worse.

    Example: infnet update bundle --events events --out bundle-2

    Example: infnet update bundle --events events --to live --follow --every 30
    """
    if (out is None) == (to is None):
        raise SpecError("give either --out BUNDLE or --to DIRECTORY")
    settings = UpdateSettings(
        holdout=holdout,
        evict_after_days=evict_after_days,
        delayed=delayed,
        guard=GuardSettings(when_unsure=unsure),
    )
    kept = samples or events / "samples"
    if follow:
        if to is None or users is not None or items is not None or as_of is not None:
            raise SpecError("--follow publishes to --to DIRECTORY, and takes neither --users, --items nor --as-of")
        _follow(Follower(bundle, events, kept, to, settings, min_samples=min_samples), every, as_json=as_json)
        return
    parent = Bundle.open(bundle_at(bundle))
    now_ms = None if as_of is None else round(1000 * as_of.replace(tzinfo=UTC).timestamp())
    join_labels(events, kept, load_spec(parent.path / "spec.yaml"), now_ms=now_ms, delayed=delayed)
    if not count_new(kept, parent.manifest.lineage.samples_part):
        raise DataError(f"{kept}: holds nothing that {parent.path} has not learnt from; wait for labels to be due")
    given = ("users", users), ("items", items)
    tables = {name: None if file is None else read_table(file, f"the table of {name}") for name, file in given}
    with tempfile.TemporaryDirectory(prefix="infnet-update-") as work, Console(stderr=True).status("") as status:
        made = out or Path(work) / "bundle"
        try:
            report = update_bundle(parent.path, kept, made, settings, on_stage=status.update, **tables)
        except GuardError as error:
            if as_json:
                typer.echo(json.dumps({"guard": error.verdict.as_json()}))
            raise
        if to is not None:
            ModelDirectory(to).publish(made)
    typer.echo(json.dumps(report.as_json()) if as_json else _summary(report, out or to))


def _follow(follower: Follower, every_s: float, *, as_json: bool) -> None:
    def tell(turn: Round) -> None:
        typer.echo(json.dumps(turn.as_json()) if as_json else _line(turn))

    before = {number: signal.signal(number, lambda *_: follower.stop.set()) for number in _SIGNALS}
    try:
        follower.run(every_s, tell)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _line(turn: Round) -> str:
    now = datetime.now().strftime("%H:%M:%S")
    what = f"{now} {turn.outcome}: {turn.version} serves, newest event in its weights {_age(turn.freshness_s)} old"
    if turn.report is not None:
        return f"{what}; learnt from {turn.report.rows:,} rows in {turn.seconds:.1f} s; {_judged(turn.report.verdict)}"
    return f"{what}; {turn.reason or f'{turn.new_samples:,} new samples'}"


def _summary(report: UpdateReport, where: Path | None) -> str:
    added = ", ".join(f"{number:,} of {name}" for name, number in report.added.items()) or "none"
    gone = ", ".join(f"{number:,} of {name}" for name, number in report.forgotten.items()) or "none"
    total = sum(report.seconds.values())
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    lines = [
        f"{where}: version {report.version}, update {report.updates}, after {report.parent}",
        f"Learnt from {report.rows:,} rows in {total:.1f} s ({stages})",
        f"New users {report.new_users:,}, new items {report.new_items:,}; values with a new row: {added}; "
        f"values forgotten: {gone}",
        f"Newest event in the weights: {_age(time.time() - report.newest_ms / 1000)} old",
        f"Guard: {_judged(report.verdict)}",
        *(f"  {_task(judgement)}" for judgement in report.verdict.tasks),
    ]
    return "\n".join(lines)


def _judged(verdict: Verdict) -> str:
    sure = "" if verdict.is_sure else ", too few to be sure"
    return f"no worse on {verdict.rows:,} held-out rows{sure}"


def _task(judgement: Judgement) -> str:
    parts = [f"loss {judgement.loss.live:.4f} -> {judgement.loss.candidate:.4f} (error {judgement.loss.error:.4f})"]
    if judgement.auc is not None:
        parts.append(f"AUC {judgement.auc.live:.4f} -> {judgement.auc.candidate:.4f} (error {judgement.auc.error:.4f})")
    if judgement.calibration is not None:
        parts.append(f"calibration {judgement.calibration.live:.3f} -> {judgement.calibration.candidate:.3f}")
    return f"{judgement.task}: {', '.join(parts)}"


def _age(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
