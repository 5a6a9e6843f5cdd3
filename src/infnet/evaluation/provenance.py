"""Provenance: what a table of results was made from, and by which command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from infnet.data.dataset import Dataset
from infnet.evaluation.series import RunResult

__all__ = ["Provenance"]

_SHOWN_VERSIONS = ("infnet", "python", "torch", "numpy", "polars", "platform", "threads", "cpus")


@dataclass(frozen=True)
class Provenance:
    """Of a series of runs."""

    dataset: Dataset
    split: str
    seeds: int
    command: tuple[str, ...]
    """Words that repeat it in a shell."""

    @property
    def title(self) -> str:
        """Dataset and split."""
        return f"{self.dataset.manifest.name}, split {self.split}"

    def as_markdown(self, results: Sequence[RunResult]) -> str:
        """Dataset, fingerprint, rows, seeds, versions and command, as a list."""
        manifest = self.dataset.manifest
        rows = ", ".join(f"{rows:,} {split}" for split, rows in manifest.splits.items())
        seeds = ", ".join(str(seed) for seed in range(self.seeds))
        lines = [
            f"- dataset {manifest.name}, prepared by version {manifest.package_version}, fingerprint "
            f"`{manifest.fingerprint}`; rows: {rows}",
            f"- seeds {seeds}; judged on split {self.split}, by the checkpoint that was best on split valid",
        ]
        made_with = dict.fromkeys(_versions(result) for result in results)
        lines += [f"- made with {versions}" for versions in made_with]
        lines.append(f"- made by `{shlex.join(self.command)}`")
        return "\n".join(lines) + "\n"


def _versions(result: RunResult) -> str:
    return ", ".join(f"{name} {result.versions[name]}" for name in _SHOWN_VERSIONS if name in result.versions)
