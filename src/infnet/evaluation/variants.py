"""INFNet with something left out or changed: what an ablation compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infnet.errors import SpecError, did_you_mean

__all__ = ["FULL", "VARIANTS", "Variant", "chosen_variants"]

FULL = "full"
"""Name of the model that nothing was taken from."""


@dataclass(frozen=True)
class Variant:
    """INFNet with something left out or changed."""

    name: str
    group: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the model, over those of the full one."""
    history: float = 1.0
    """Share of every behaviour's declared length that is used, the latest events."""
    paper: str = ""
    """Click AUC on KuaiRand-Pure, or what else the paper says of it (arXiv 2508.11565)."""


_WITHOUT, _PROXIES, _SHARED = "left out, as in the paper", "proxies per row (m)", "shared task tokens (N_s)"
_STRUCTURE, _GATES, _HISTORY = "structure", "gates and residuals", "share of the history"
_WIDTH, _PROXY_WIDTH = "embedding width (d)", "width of proxies"

VARIANTS = (
    Variant(FULL, "", paper="0.7736"),
    # Without task tokens heads have the proxies alone to read.
    Variant("no-task-tokens", _WITHOUT, {"task_fusion": "none", "head_reads": "task+proxies"}, paper="0.7720"),
    Variant("no-gates", _WITHOUT, {"gate_with": "none"}, paper="0.7716"),
    Variant("no-cross-attention", _WITHOUT, {"attention": "mean"}, paper="0.7705"),
    Variant("all-tokens", _STRUCTURE, {"proxies": "all"}),
    Variant("late-fusion", _STRUCTURE, {"task_fusion": "late"}),
    Variant("pooled-history", _STRUCTURE, {"history": "pooled"}),
    Variant("proxies-1", _PROXIES, {"num_cat_proxies": 1}),
    Variant("proxies-2", _PROXIES, {"num_cat_proxies": 2}),
    Variant("proxies-4", _PROXIES, {"num_cat_proxies": 4}, paper="best of 2, 4, 8"),
    Variant("proxies-8", _PROXIES, {"num_cat_proxies": 8}),
    *(
        Variant(f"shared-{n}", _SHARED, {"num_shared_tasks": n}, paper="best of 1, 2, 3" if n == 2 else "")
        for n in range(5)
    ),
    Variant("gates-input", _GATES, {"gate_with": "input"}),
    Variant("gates-updated", _GATES, {"gate_with": "updated"}),
    Variant("proxy-residual", _GATES, {"proxy_residual": True}),
    Variant("no-proxy-residual", _GATES, {"proxy_residual": False}),
    Variant("token-residual", _GATES, {"token_residual": True}),
    Variant("no-token-residual", _GATES, {"token_residual": False}),
    Variant("proxy-norm", _GATES, {"proxy_norm": True}),
    Variant("no-proxy-norm", _GATES, {"proxy_norm": False}),
    *(Variant(f"embedding-{n}", _WIDTH, {"width": n}) for n in (8, 16, 32)),
    *(Variant(f"proxy-width-{n}", _PROXY_WIDTH, {"proxy_width": n}) for n in (16, 32, 64, 128)),
    Variant("eighth-history", _HISTORY, history=1 / 8),
    Variant("quarter-history", _HISTORY, history=1 / 4),
    Variant("half-history", _HISTORY, history=1 / 2),
    Variant("whole-history", _HISTORY),
)
"""All of them, in the order of the tables."""


def chosen_variants(only: str | Sequence[str] | None) -> tuple[Variant, ...]:
    """The full model, and variants by name, in their order; all if None.

    Raises:
        SpecError: One is unknown.
    """
    if only is None:
        return VARIANTS
    names = [name.strip() for name in only.split(",")] if isinstance(only, str) else list(only)
    known = [variant.name for variant in VARIANTS]
    for name in names:
        if name not in known:
            raise SpecError(f"--only: unknown variant '{name}'{did_you_mean(name, known)}")
    return tuple(variant for variant in VARIANTS if variant.name in (FULL, *names))
