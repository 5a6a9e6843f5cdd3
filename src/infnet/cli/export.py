"""``infnet export``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infnet.errors import SpecError
from infnet.export.bundle import Bundle
from infnet.export.calibration import BundleCalibration, CalibrationSettings
from infnet.export.exporter import export_run
from infnet.training.run import Run

__all__ = ["export_command"]


class Quantize(StrEnum):
    """Of tables."""

    INT8 = "int8"
    BF16 = "bf16"


class Calibrate(StrEnum):
    """Curves of predictions."""

    ISOTONIC = "isotonic"
    PLATT = "platt"


def export_command(
    run: Annotated[Path, typer.Argument(help="Directory that 'infnet train --out' wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory to make; an older bundle is replaced.", show_default=False)],
    quantize: Annotated[
        Quantize | None,
        typer.Option(help="Keep tables in int8 with a scale per vector, or in bf16.", show_default=False),
    ] = None,
    int8_dense: Annotated[
        bool, typer.Option("--int8-dense", help="Turn products with weights into int8 ones, too.")
    ] = False,
    checkpoint: Annotated[
        bool,
        typer.Option("--checkpoint/--no-checkpoint", help="Carry along what 'infnet update' needs to go on training."),
    ] = True,
    calibrate: Annotated[
        Calibrate | None,
        typer.Option(help="Make predictions right as numbers, by a curve per task.", show_default=False),
    ] = None,
    calibrate_by: Annotated[
        str | None,
        typer.Option(help="Category of user or context whose values get their own curves.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the dataset is, if it has moved since training.", show_default=False)
    ] = None,
) -> None:
    """Turn a run into a bundle that ranks: tables of items, encoders, a graph, all checked against the model.

    Example: infnet export runs/first --out bundle
    """
    if calibrate_by is not None and calibrate is None:
        raise SpecError(f"--calibrate-by {calibrate_by}: goes with --calibrate isotonic or platt; give both")
    calibration = None if calibrate is None else CalibrationSettings(method=calibrate.value, by=calibrate_by)
    with Console(stderr=True).status("") as status:
        bundle = export_run(
            Run.load(run),
            out,
            precision="float32" if quantize is None else quantize.value,
            int8_dense=int8_dense,
            checkpoint=checkpoint,
            calibration=calibration,
            data=data,
            on_stage=status.update,
        )
    typer.echo(_summary(bundle))
    typer.echo(f"Next: infnet rank {out} --user ID --items FILE")


def _summary(bundle: Bundle) -> str:
    manifest = bundle.manifest
    size = sum(record.size for record in manifest.files.values())
    agreement = ", ".join(f"{name} {value:.1e}" for name, value in manifest.parity.items())
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in manifest.request_ms.items())
    what = f"{manifest.model}, version {manifest.version}, {size / 1e6:,.1f} MB, tables in {manifest.precision}"
    lines = [
        f"{bundle.path}: {what}",
        f"Largest difference to the model in float32, of the largest logit: {agreement}",
        f"One request of 500 candidates, one thread: {times}; {manifest.backend} is the default",
    ]
    if manifest.loss:
        costs = ", ".join(f"{task} {value:+.5f}" for task, value in manifest.loss.items())
        lines.append(f"Validation AUC that compression costs: {costs}")
    if bundle.calibration is not None:
        lines += _calibration_lines(bundle.calibration, bundle.layout.task_names)
    return "\n".join(lines)


def _calibration_lines(calibration: BundleCalibration, tasks: Sequence[str]) -> list[str]:
    method, by = calibration.settings.method, calibration.settings.by
    per = "" if by is None else f", per value of {by}"
    lines = [f"Calibrated ({method}{per}) on {calibration.rows:,} rows; cross-fitted:"]
    for task, found in calibration.quality.items():
        lines.append(
            f"  {task}: predicted over observed {found.pcoc_before:.3f} -> {found.pcoc_after:.3f}, "
            f"expected error {found.error_before:.4f} -> {found.error_after:.4f}"
        )
    return lines + [f"  {task}: left as it is, too few labels" for task in tasks if task not in calibration.tasks]
