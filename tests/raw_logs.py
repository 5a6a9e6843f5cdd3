"""Small raw logs on disk, their specs, and what a prepared dataset says of them in plain values."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from infnet.data.prepare import prepare
from infnet.data.report import PrepareReport
from infnet.schema import DatasetSpec

DAY_MS = 86_400_000
MAY_1 = 1_651_363_200_000  # 2022-05-01 00:00 UTC

BASE: dict[str, Any] = {
    "name": "small",
    "log": {"files": ["log*"], "user": "user", "item": "item", "time": "time_ms"},
    "features": [{"kind": "id", "name": "user", "side": "user"}, {"kind": "id", "name": "item", "side": "item"}],
    "behaviours": [{"name": "click", "filter": "click == 1", "length": 3}],
    "tasks": [{"name": "click", "label": "click"}],
    "split": {"valid_from": "2022-05-02", "test_from": "2022-05-03"},
}


def make_spec(**changes: Any) -> DatasetSpec:
    """The base spec with top-level entries replaced."""
    return DatasetSpec.model_validate(copy.deepcopy(BASE) | changes)


def make_log(rows: list[dict[str, Any]] | None = None) -> pl.DataFrame:
    """A log of three days, two users and three items, or one with the given rows."""
    if rows is None:
        rows = [
            {"user": user, "item": 10 + (user + step) % 3, "time_ms": MAY_1 + step * DAY_MS // 4, "click": step % 2}
            for user in (1, 2)
            for step in range(12)
        ]
    return pl.DataFrame(rows)


def write(frame: pl.DataFrame, path: Path) -> None:
    """CSV or Parquet, by suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path)


def prepare_frames(
    spec: DatasetSpec, directory: Path, frames: dict[str, pl.DataFrame], **options: Any
) -> tuple[Prepared, PrepareReport]:
    """Write the frames by file name below ``directory``/raw and prepare them into ``directory``/out."""
    for name, frame in frames.items():
        write(frame, directory / "raw" / name)
    report = prepare(spec, directory / "raw", directory / "out", **options)
    return Prepared(directory / "out"), report


class Prepared:
    """A prepared directory, with indices turned back into keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users = ["?", *pl.read_parquet(path / "users/keys.parquet")["key"]]
        self.items = ["?", *pl.read_parquet(path / "items/keys.parquet")["key"]]

    def array(self, name: str) -> np.ndarray:
        return np.load(self.path / f"{name}.npy")

    def rows(self, split: str) -> list[tuple[str, str, int]]:
        """User, item and time of every row, in order."""
        columns = (self.array(f"{split}/{name}") for name in ("user", "item", "time"))
        return [(self.users[u], self.items[i], int(t)) for u, i, t in zip(*columns, strict=True)]

    def histories(self, split: str, behaviours: list[str]) -> list[list[list[tuple[str, int]]]]:
        """Per row and behaviour all (item, time) before it, oldest first."""
        users, ends = self.array(f"{split}/user"), self.array(f"{split}/ends")
        result = []
        for column, name in enumerate(behaviours):
            starts, items, times = (self.array(f"history/{name}.{part}") for part in ("starts", "items", "times"))
            events = [(self.items[i], int(t)) for i, t in zip(items, times, strict=True)]
            result.append([events[starts[u] : end] for u, end in zip(users, ends[:, column], strict=True)])
        return [list(row) for row in zip(*result, strict=True)]

    def vocabulary(self, name: str) -> dict[str, int]:
        return dict(pl.read_parquet(self.path / f"vocabularies/{name}.parquet").iter_rows())

    def files(self) -> dict[str, bytes]:
        """Contents of every file."""
        found = (path for path in sorted(self.path.rglob("*")) if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in found}
