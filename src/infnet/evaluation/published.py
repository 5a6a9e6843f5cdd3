"""What the paper reports, to stand beside what we measure (K. Li et al., INFNet, arXiv 2508.11565)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infnet.evaluation.markdown import TITLES, table
from infnet.evaluation.standings import Standings

__all__ = ["PAPER", "REMARK", "beside_published", "is_kuairand_pure"]

PAPER = "INFNet, arXiv 2508.11565"

REMARK = (
    f"Published figures are of {PAPER}: KuaiRand-Pure as a whole, with a split of its own. Ours are of the dataset and "
    "split named here, so theirs are for orientation only."
)


@dataclass(frozen=True)
class _Published:
    auc: float
    gauc: float | None = None


_KUAIRAND_PURE: Mapping[str, Mapping[str, _Published]] = {
    "infnet": {
        "click": _Published(0.7736, 0.6757),
        "like": _Published(0.8960, 0.6464),
        "long_view": _Published(0.7727, 0.6784),
    },
    "stem": {
        "click": _Published(0.7714, 0.6728),
        "like": _Published(0.8898, 0.6437),
        "long_view": _Published(0.7700, 0.6763),
    },
    "fm": {"click": _Published(0.7206)},
    "din": {"click": _Published(0.7526)},
    "dien": {"click": _Published(0.7252)},
    "dcnv2": {"click": _Published(0.7649)},
    "mmoe": {"click": _Published(0.7639)},
    "ple": {"click": _Published(0.7648)},
}
"""Test metrics by model and task."""


def is_kuairand_pure(dataset: str) -> bool:
    """Whether a dataset of this name is the one that the paper's tables are about."""
    return dataset.removesuffix("-nostats") == "kuairand-pure"


def beside_published(standings: Standings) -> str:
    """A Markdown section with the paper's figures beside ours; empty if none of its models is there."""
    rows = []
    for name in standings.ranked("auc"):
        for task, published in _KUAIRAND_PURE.get(name, {}).items():
            if task in standings.tasks:
                row = [name, task]
                for metric, theirs in (("auc", published.auc), ("gauc", published.gauc)):
                    row += [f"{standings.mean(name, task, metric):.4f}", "" if theirs is None else f"{theirs:.4f}"]
                rows.append(row)
    if not rows:
        return ""
    header = ["model", "task", *(f"{TITLES[m]}, {whose}" for m in ("auc", "gauc") for whose in ("here", "published"))]
    return f"## Beside the paper\n\n{REMARK}\n\n{table(header, rows, left=2)}\n"
