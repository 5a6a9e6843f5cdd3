"""OMoE: experts that all tasks share, weighted for all tasks by one gate.

The one-gate mixture that J. Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018, compare MMoE with.
"""

from __future__ import annotations

from infnet.data.layout import Layout
from infnet.models.base import register_model
from infnet.models.mmoe import MMoE

__all__ = ["OMoE"]


@register_model("omoe")
class OMoE(MMoE):
    """MMoE with one gate; its settings are MMoE's."""

    @classmethod
    def num_gates(cls, layout: Layout) -> int:
        """One for all tasks."""
        return 1
