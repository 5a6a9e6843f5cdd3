"""Raw logs -> a prepared dataset, the directory that :class:`infnet.data.layout.Manifest` describes."""

from __future__ import annotations

import hashlib
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

import infnet
from infnet.data.encoders import Encoder
from infnet.data.entities import Entities, find_entities, read_side
from infnet.data.layout import FORMAT_VERSION, BehaviourLayout, Layout, Manifest
from infnet.data.log import Log, read_log
from infnet.data.partitions import Partitions, partition_rows
from infnet.data.report import PrepareReport
from infnet.data.rows import WrittenRows, write_rows
from infnet.data.seeds import Seeds, no_seeds, read_seeds
from infnet.data.splits import SPLITS, SplitRule, day_of
from infnet.data.summary import describe_tasks, entity_rows, summarise_splits
from infnet.data.tables import fit_entities, fit_requests, write_entities, write_item_values, write_requests
from infnet.data.workspace import replacing
from infnet.errors import DataError
from infnet.schema import DatasetSpec

__all__ = ["Progress", "fingerprint_of", "prepare"]

Progress = Callable[[str, float], None]
"""Called with the stage and the share of it that is done."""

_ROWS_PER_PARTITION = 1_000_000


def prepare(
    spec: DatasetSpec,
    raw: Path,
    out: Path,
    *,
    history: Path | None = None,
    progress: Progress | None = None,
    rows_per_partition: int = _ROWS_PER_PARTITION,
) -> PrepareReport:
    """Prepare a dataset; ``out`` appears whole, replacing an earlier prepared dataset, or not at all.

    Everything that is learnt (vocabularies, bucket edges, means) is learnt from the training split alone.

    Args:
        raw: Directory below which the spec's file patterns are looked up.
        history: Events from before the log; see :func:`infnet.data.seeds.read_seeds`.
        rows_per_partition: Log rows held in memory at a time; any number gives the same dataset.

    Raises:
        SpecError: The spec does not fit the files' columns.
        DataError: A file or a value is not what the spec declares, a split is empty, or ``out`` cannot be written.
    """
    with replacing(Path(out), "encoders.json") as directory:  # a run has a manifest.json, too
        return _Preparation(spec, Path(raw), directory, progress, rows_per_partition).run(history)


class _Preparation:
    def __init__(
        self, spec: DatasetSpec, raw: Path, out: Path, progress: Progress | None, rows_per_partition: int
    ) -> None:
        self._spec, self._raw, self._out = spec, raw, out
        self._staging = out / ".staging"
        self._progress = progress or (lambda stage, share: None)
        self._rows_per_partition = rows_per_partition
        self._seconds: dict[str, float] = {}

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._progress(name, 0.0)
        started = time.perf_counter()
        yield
        self._seconds[name] = round(time.perf_counter() - started, 3)
        self._progress(name, 1.0)

    def run(self, history: Path | None) -> PrepareReport:
        spec, out, staging = self._spec, self._out, self._staging
        with self._stage("read"):
            log = read_log(spec, self._raw, staging / "log", out / "quarantine.parquet")
            user_parts = read_side(spec, "user", self._raw, staging / "users", log)
            item_parts = read_side(spec, "item", self._raw, staging / "items", log)
        with self._stage("index"):
            users, dropped_users = find_entities(spec, "user", user_parts, log)
            items, dropped_items = find_entities(spec, "item", item_parts, log)
            seeds = no_seeds(items.num)
            if history is not None:
                seeds = read_seeds(spec, Path(history), users, items, staging / "seeds")
        with self._stage("partition"):
            partitions = partition_rows(
                spec, log, users, items, staging / "rows", rows_per_partition=self._rows_per_partition
            )
            rule = SplitRule(spec.split, spec.timezone, partitions.ordinary_times)
        log.report.dropped.update(dropped_users)
        if dropped_items:
            # Of a row with both keys unknown, the user is the reason.
            log.report.dropped["item not in its table"] = log.report.rows_kept - partitions.num_rows
        with self._stage("rows"):
            written = write_rows(
                spec,
                partitions,
                rule,
                seeds,
                num_users=users.num,
                out=out,
                staging=staging / "values",
                progress=lambda share: self._progress("rows", share),
            )
            splits = _present_splits(spec, rule, written, out, log)
        with self._stage("fit"):
            encoder = self._fit(users, items, seeds, partitions, written)
        with self._stage("encode"):
            write_entities(encoder, users, out / "users", spec.timezone)
            write_entities(encoder, items, out / "items", spec.timezone)
            write_item_values(items, spec.features, out / "items", spec.timezone)
            write_requests(encoder, {name: written.values[name] for name in splits}, out)
            encoder.save(out)
        shutil.rmtree(staging)
        log.report.repeated = written.repeated
        with self._stage("describe"):
            layout = _layout(spec, encoder, out)
            report = PrepareReport(
                name=spec.name,
                log=log.report,
                seeds=seeds.report,
                splits=summarise_splits(out, layout, list(splits), users.num, items.num),
                empty_splits=[name for name in rule.names if name not in splits],
                users=users.num - 1,
                items=items.num - 1,
                vocabularies={v.name: v.size for v in layout.vocabularies},
                events=written.num_events,
                seconds=self._seconds,
                peak_rss_mb=_peak_rss_mb(),
            )
            self._finish(layout, splits, users, items)
        report.seconds = self._seconds
        (out / "report.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
        return report

    def _fit(
        self, users: Entities, items: Entities, seeds: Seeds, partitions: Partitions, written: WrittenRows
    ) -> Encoder:
        features, timezone = self._spec.features, self._spec.timezone
        user_rows, item_rows = entity_rows(self._out / "train", users.num, items.num)
        fits = fit_entities(features, users, user_rows, timezone)
        fits |= fit_entities(features, items, item_rows + seeds.item_counts, timezone)
        fits |= fit_requests(partitions.features, written.values["train"])
        return Encoder.build(features, fits, timezone)

    def _finish(self, layout: Layout, splits: dict[str, int], users: Entities, items: Entities) -> None:
        text = yaml.safe_dump(self._spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (self._out / "spec.yaml").write_text(text, encoding="utf-8")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            package_version=infnet.__version__,
            name=self._spec.name,
            layout=layout,
            num_users=users.num,
            num_items=items.num,
            splits=splits,
            fingerprint=fingerprint_of(self._out),
        )
        (self._out / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _present_splits(spec: DatasetSpec, rule: SplitRule, written: WrittenRows, out: Path, log: Log) -> dict[str, int]:
    """Rows of each split that has any; an extra one may be empty, the ordinary ones may not."""
    for name in SPLITS:
        if written.split_rows[name]:
            continue
        first, last = day_of(log.first_ms, spec.timezone), day_of(log.last_ms, spec.timezone)
        covered = f"the log covers {first} to {last} ({spec.timezone})"
        if spec.log.time is None:
            covered = f"the log has {sum(written.split_rows.values())} rows"
        asked = f"fractions {spec.split.fractions}"
        if spec.split.fractions is None:
            asked = f"valid_from {spec.split.valid_from} and test_from {spec.split.test_from}"
        raise DataError(f"{spec.name}: split '{name}' has no rows: {covered}, the spec asks for {asked}; choose others")
    for name in rule.names:
        if not written.split_rows[name]:
            shutil.rmtree(out / name)
    return {name: count for name, count in written.split_rows.items() if count}


def _layout(spec: DatasetSpec, encoder: Encoder, out: Path) -> Layout:
    return Layout(
        fields=encoder.fields(),
        vocabularies=encoder.vocabularies,
        behaviours=tuple(
            BehaviourLayout(
                name=b.name, length=b.length, fields=tuple(spec.behaviour_fields(b)), gap=b.gap, position=b.position
            )
            for b in spec.behaviours
        ),
        tasks=describe_tasks(spec, out / "train"),
        num_rows=encoder.num_rows,
    )


def fingerprint_of(directory: Path) -> str:
    """SHA-256 over names and contents of all files but the report, which holds times."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "report.json"):
        digest.update(f"{path.relative_to(directory).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
