"""``infnet simulate``."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from infnet.data.sources.exposure import DAY_MS
from infnet.data.sources.synthetic import load_world
from infnet.errors import DataError, SpecError

__all__ = ["simulate_command"]


def simulate_command(
    *,
    world: Annotated[
        Path, typer.Option(help="Directory of 'infnet data synthesize'; its days go on.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="Directory of the event log; must not exist or be empty.", show_default=False)
    ],
    experiment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:VARIANT=PATH,..",
            help="Compare runs, bundles or policies, the control first, behind a service of its own.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Instead: a service that runs already, with --replay.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="With --experiment: bundle of variants that are policies.", show_default=False)
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="With --experiment: policy of variants that are none.", show_default=False)
    ] = None,
    users: Annotated[
        int | None, typer.Option(min=1, help="The world's first so many; all by default.", show_default=False)
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days to simulate.")] = 14,
    candidates: Annotated[int, typer.Option(min=1, max=10_000, help="Items that a request chooses from.")] = 100,
    update_every: Annotated[
        int, typer.Option(min=0, help="With --experiment: days from one 'infnet update' to the next; 0 for none.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Requests that travel together.")] = 16,
    connections: Annotated[int, typer.Option(min=1, max=64, help="To the service, at once.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same visits and candidates.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let the synthetic world's users live with a real service over HTTP: pages, clicks, money, and who comes back.

    Beside the event log, OUT/simulation holds the truth (truth.parquet), the summary, bundles and the service's log.

    Example: infnet simulate --world raw --experiment ranker:baseline=runs/a,infnet=runs/b --days 14 --out events

    Example: infnet simulate --world raw --url http://127.0.0.1:8000 --days 1 --out simulated
    """
    from infnet.simulation.client import ServiceClient
    from infnet.simulation.local_experiment import LocalExperiment
    from infnet.simulation.report import as_text, summary
    from infnet.simulation.settings import SimulationSettings
    from infnet.simulation.simulator import Simulator
    from infnet.simulation.variants import Wanted
    from infnet.training.checkpoint import write_atomically

    if (experiment is None) == (url is None):
        raise SpecError("give either --experiment NAME:VARIANT=PATH,.. or --url http://HOST:PORT")
    for name, value in (("--model", model), ("--policy", policy), ("--update-every", update_every or None)):
        if url is not None and value is not None:
            raise SpecError(f"{name} goes with --experiment; of --url, the service itself has it")
    wanted = None if experiment is None else Wanted.parse(experiment)
    its = load_world(world)
    if users is not None and users > its.config.num_users:
        raise SpecError(f"--users {users}: {world} has {its.config.num_users:,}; give at most so many")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty directory; give another --out or remove it")
    settings = SimulationSettings(
        num_users=users, num_days=days, num_candidates=candidates, seed=seed, batch=batch, connections=connections
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"), TimeElapsedColumn())
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        task = bar.add_task("days", total=days, facts="")
        local = wanted and stack.enter_context(
            LocalExperiment(
                wanted,
                out,
                its.first_ms() + its.config.num_days * DAY_MS,
                model=model,
                policy=policy,
                on_stage=lambda stage: bar.update(task, facts=stage),
            )
        )
        client = stack.enter_context(
            ServiceClient(
                local.url if local else str(url), token=os.environ.get("INFNET_TOKEN"), connections=connections
            )
        )

        def on_day(done: int, ends_ms: int) -> None:
            if local and update_every and done % update_every == 0 and done < days:
                local.update(ends_ms)
            bar.update(task, completed=done, facts="")

        simulator = Simulator(its, client, settings, experiment=wanted.name if wanted else None, on_day=on_day)
        began = time.perf_counter()
        simulator.run()
        seconds = time.perf_counter() - began
    told = summary(
        simulator,
        [*wanted.variants] if wanted else [],
        seconds - (local.update_s if local else 0.0),
        local.updates if local else [],
    )
    work = out / "simulation"
    work.mkdir(parents=True, exist_ok=True)
    simulator.ledger.table().write_parquet(work / "truth.parquet")
    record = {"settings": settings.model_dump(), "experiment": experiment, **told}
    write_atomically(work / "simulation.json", json.dumps(record, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(told))
        return
    typer.echo(as_text(told))
    if wanted is not None:
        typer.echo(f"Next: infnet ab report --events {out} --experiment {wanted.name}")
