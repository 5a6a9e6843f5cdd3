"""The training log: JSON lines and TensorBoard events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infnet.training.checkpoint import write_atomically

__all__ = ["Journal", "without_nan"]


class Journal:
    """Appends to a run's ``metrics.jsonl`` and its TensorBoard event files.

    Args:
        path: The JSON lines file.
        events: TensorBoard's directory, or None for none.
        after_step: Lines of later steps are removed first: a resumed run writes them again.
    """

    def __init__(self, path: Path, events: Path | None, after_step: int = 0) -> None:
        self._path = path
        self._writer: Any = None
        if path.exists():
            write_atomically(path, "".join(_lines_until(path, after_step)))
        if events is not None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._writer = SummaryWriter(str(events), purge_step=after_step + 1 if after_step else None)

    def write(self, kind: str, step: int, entry: Mapping[str, Any], curves: Mapping[str, float]) -> None:
        """Add one line (``kind``, ``step``, then ``entry``) and a point to each curve."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan({"kind": kind, "step": step, **entry}), allow_nan=False) + "\n")
        if self._writer is not None:
            for name, value in curves.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Write what TensorBoard still holds."""
        if self._writer is not None:
            self._writer.close()


def _lines_until(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break  # cut off when the process died
        kept.append(line if line.endswith("\n") else f"{line}\n")
    return kept


def without_nan(value: Any) -> Any:
    """NaN and infinities, which JSON has not, become null."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
