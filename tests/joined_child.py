"""Joins a log again and again, each time as of a second later, until it is killed."""

from pathlib import Path

from infnet.schema import DatasetSpec
from infnet.serving.label_join import join_labels


def main(spec: str, log: str, out: str, start: str) -> None:
    declared = DatasetSpec.model_validate_json(Path(spec).read_text())
    for second in range(60, 85):
        join_labels(Path(log), Path(out), declared, now_ms=int(start) + 1000 * second)
        print(second, flush=True)
