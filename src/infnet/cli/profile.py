"""``infnet profile``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from infnet.data.dataset import Dataset
from infnet.errors import SpecError, did_you_mean
from infnet.evaluation.cost_figures import cost_figure, growth_figure
from infnet.evaluation.figures import check_figures, save_figure
from infnet.evaluation.growth import Growth, measure_growth
from infnet.evaluation.profile import Profile, profile_models
from infnet.export.bundle import Bundle
from infnet.models.base import model_names
from infnet.serving.profile import profile_bundle, profile_table
from infnet.training.checkpoint import write_atomically
from infnet.training.config import TrainConfig, load_config

__all__ = ["profile_command"]


def profile_command(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Directory that 'infnet export --out' wrote, to measure its requests.", show_default=False),
    ] = None,
    *,
    dataset: Annotated[
        Path | None, typer.Option(help="Directory that 'infnet prepare --out' wrote.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="all, or names with commas; the configuration's model or all by default.", show_default=False
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with model and train.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="model.SETTING=VALUE or train.SETTING=VALUE; repeatable."),
    ] = None,
    candidates: Annotated[str, typer.Option(help="Of a request; of a bundle's, several with commas.")] = "500",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Same as --set train.batch_size=N.", show_default=False)
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(help="CPU threads; of a bundle's requests, several with commas.", show_default=False),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement; shown is the median.")] = 5,
    growth: Annotated[
        bool, typer.Option("--growth", help="How INFNet's cost grows with events and fields; needs no dataset.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory for profile.md, profile.json and figures.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what a bundle's requests cost, or what models do: parameters, operations, times, memory.

    Example: infnet profile bundle --candidates 100,500,2000 --threads 1,2

    Example: infnet profile --model infnet,shared_bottom --dataset data/kuairand --out profiles/kuairand
    """
    sizes = _counts("--candidates", candidates)
    num_threads = None if threads is None else _counts("--threads", threads)
    if bundle is not None:
        _profile_bundle(bundle, sizes, num_threads or [1], dataset is not None or growth or out is not None, as_json)
        return
    if len(sizes) > 1 or len(num_threads or [1]) > 1:
        raise SpecError("profile: several --candidates or --threads go with a bundle; give one of each")
    one_thread = num_threads[0] if num_threads else None
    if dataset is None and not growth:
        raise SpecError("profile: nothing to measure; give --dataset DIR, --growth, or both")
    if out is not None:
        check_figures()
    costs = None
    if dataset is not None:
        configs = _configs(model, config, settings or [], batch_size, one_thread)
        with Console(stderr=True).status("") as status:
            costs = profile_models(
                Dataset.open(dataset),
                configs,
                num_candidates=sizes[0],
                repeats=repeats,
                on_model=lambda name: status.update(f"measuring {name}"),
            )
    curves = _growth(one_thread, repeats) if growth else None
    if out is not None:
        _write(out, costs, curves)
    if as_json:
        typer.echo(json.dumps(_document(costs, curves)))
        return
    if costs is not None:
        Console().print(costs.as_table())
    if curves is not None:
        typer.echo(curves.as_markdown())


def _counts(option: str, text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise SpecError(f"{option}: found '{text}', wanted numbers from 1 on with commas, such as 100,500")
    return counts


def _profile_bundle(bundle: Path, sizes: list[int], threads: list[int], has_more: bool, as_json: bool) -> None:
    if has_more:
        raise SpecError("profile: a bundle is measured by itself; leave out --dataset, --growth and --out")
    manifest = Bundle.open(bundle).manifest
    with Console(stderr=True).status("measuring requests"):
        rows = profile_bundle(bundle, candidates=sizes, threads=threads)
    if as_json:
        typer.echo(json.dumps([row.model_dump() for row in rows]))
        return
    layout = manifest.layout
    title = (
        f"{manifest.name}, {manifest.model}, {manifest.backend}, {manifest.precision}: {layout.num_fields} fields, "
        f"up to {layout.seq_len} events, {len(layout.tasks)} tasks"
    )
    Console().print(profile_table(title, rows))


def _configs(
    models: str | None, file: Path | None, overrides: list[str], batch_size: int | None, threads: int | None
) -> dict[str, TrainConfig]:
    """By model."""
    if models is None and file is not None:
        names = [load_config(file, overrides).model]
    elif models in (None, "all"):
        names = model_names()
    else:
        names = [name.strip() for name in models.split(",")]
    for name in names:
        if name not in model_names():
            raise SpecError(f"--model: unknown model '{name}'{did_you_mean(name, model_names())}")
    given: dict[str, Any] = {"batch_size": batch_size, "threads": threads}
    return {name: load_config(file, overrides, model=name, **given) for name in names}


def _growth(threads: int | None, repeats: int) -> Growth:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with Console(stderr=True).status("measuring growth"):
            return measure_growth(repeats=repeats)
    finally:
        torch.set_num_threads(before)


def _document(costs: Profile | None, curves: Growth | None) -> dict[str, Any]:
    parts = {} if costs is None else costs.as_json()
    return parts if curves is None else {**parts, "growth": curves.as_json()}


def _write(out: Path, costs: Profile | None, curves: Growth | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = ["# Cost"]
    if costs is not None:
        save_figure(cost_figure(costs), out / "cost.png")
        text += [costs.as_markdown(), "![Cost per model](cost.png)"]
    if curves is not None:
        save_figure(growth_figure(curves), out / "growth.png")
        text += ["## Growth", curves.as_markdown(), "![Cost over the number of tokens](growth.png)"]
    write_atomically(out / "profile.md", "\n\n".join(part.rstrip("\n") for part in text) + "\n")
    write_atomically(out / "profile.json", json.dumps(_document(costs, curves), indent=1) + "\n")
