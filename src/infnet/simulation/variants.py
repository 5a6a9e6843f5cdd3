"""What an experiment of a simulation compares: runs, bundles or policies, made ready to be served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from infnet.errors import SpecError
from infnet.experiments.metrics import MetricSpec, parse_metric
from infnet.experiments.spec import Experiment, ExperimentsSpec, Variant
from infnet.export.bundle import MANIFEST
from infnet.export.exporter import export_run
from infnet.serving.publication import ModelDirectory
from infnet.training.checkpoint import write_atomically
from infnet.training.run import Run

__all__ = ["METRICS", "ReadyExperiment", "Wanted"]

METRICS: tuple[MetricSpec, ...] = (
    parse_metric("ctr=click/impressions"),
    parse_metric("watch_time=watch_time.value"),
    parse_metric("revenue=revenue.value"),
    parse_metric("return_next_day=returned_next_day/active_days"),
    parse_metric("satisfaction=long_view/impressions"),
    parse_metric("hides=hate/impressions").model_copy(update={"better": "lower", "is_guardrail": True, "margin": 0.2}),
    parse_metric("latency=latency_ms/requests").model_copy(
        update={"better": "lower", "is_guardrail": True, "margin": 0.2}
    ),
    parse_metric("degraded=degraded/requests").model_copy(update={"better": "lower", "is_guardrail": True}),
)
"""What is compared: clicks per impression, seconds watched and money spent per user, days on which users came that they
came after as well, long views per impression; and what must not be harmed."""


@dataclass(frozen=True)
class Wanted:
    """An experiment as it is asked for."""

    name: str
    variants: Mapping[str, Path]
    """The control first. Each a run, a bundle, a directory of versions, or a policy file."""

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """From ``NAME:VARIANT=PATH,VARIANT=PATH``.

        Raises:
            SpecError: It is no such thing, or a path is nothing that can be served.
        """
        name, colon, rest = text.partition(":")
        pairs = [part.partition("=") for part in rest.split(",")]
        variants = {variant.strip(): Path(path.strip()) for variant, _, path in pairs}
        if not colon or not name.strip() or not all(v.strip() and p.strip() for v, _, p in pairs) or len(pairs) < 2:
            raise SpecError(
                f"--experiment {text}: wanted NAME:VARIANT=PATH,VARIANT=PATH, such as ranker:old=runA,new=runB"
            )
        if len(variants) < len(pairs):
            raise SpecError(f"--experiment {text}: two variants have one name; give each its own")
        for variant, path in variants.items():
            if not (_is_policy(path) or Run.exists(path) or _is_bundle(path) or ModelDirectory.is_one(path)):
                raise SpecError(
                    f"--experiment {text}: {path} of '{variant}' is no run, no bundle and no policy file (.yaml)"
                )
        return cls(name.strip(), variants)

    @property
    def has_models(self) -> bool:
        """Whether any variant is one."""
        return not all(map(_is_policy, self.variants.values()))


@dataclass(frozen=True)
class ReadyExperiment:
    """An experiment that can be served."""

    file: Path
    """That declares it."""
    models: Mapping[str, Path]
    """Directory of versions by variant, of those that have a model of their own."""

    @classmethod
    def make(
        cls, wanted: Wanted, out: Path, start_ms: int, on_stage: Callable[[str], None] = lambda stage: None
    ) -> ReadyExperiment:
        """Export runs, publish each model to a directory of versions of its own, and declare the experiment.

        Args:
            wanted: What is to be compared.
            out: Directory for all of it.
            start_ms: Of the experiment, since 1970.
            on_stage: Told what is done.

        Raises:
            InfnetError: A run cannot be exported, or a name is none.
        """
        out.mkdir(parents=True, exist_ok=True)
        models: dict[str, Path] = {}
        for variant, path in wanted.variants.items():
            if _is_policy(path):
                continue
            bundle = path
            if Run.exists(path):
                on_stage(f"export {variant}")
                bundle = export_run(Run.load(path), out / "bundles" / variant).path
            elif ModelDirectory.is_one(path):
                bundle = ModelDirectory(path).bundle_path(ModelDirectory(path).publication().version)
            models[variant] = out / "live" / variant
            ModelDirectory(models[variant]).publish(bundle)
        variants = [
            {"name": variant, "bundle": str(models[variant].resolve())}
            if variant in models
            else {"name": variant, "policy": str(path.resolve())}
            for variant, path in wanted.variants.items()
        ]
        try:
            spec = Experiment(
                name=wanted.name,
                variants=tuple(Variant.model_validate(variant) for variant in variants),
                start=datetime.fromtimestamp(start_ms / 1000, UTC),
                metrics=METRICS,
            )
        except ValueError as error:
            raise SpecError(f"--experiment {wanted.name}: {' '.join(str(error).split())}") from error
        file = out / "experiments.yaml"
        document = ExperimentsSpec(experiments=(spec,)).model_dump(mode="json", by_alias=True, exclude_defaults=True)
        write_atomically(file, yaml.safe_dump(document, sort_keys=False))
        return cls(file, models)


def _is_policy(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") and path.is_file()


def _is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()
