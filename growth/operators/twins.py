"""The null control: every channel and an exact copy of it, each read by half.

Width without a direction.  Both see the same gradient and stay twins, so no capacity is gained: the gain is 0, and an operator that
does no better than this does nothing but change how training scales.
"""

from __future__ import annotations

import torch

from growth.offspring import doubled
from growth.operators.base import Candidates, Evidence


class Twins:
    """An operator."""

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]:  # noqa: ARG002  # there is no move
        return [
            Candidates(
                "twins", doubled(evidence.model, group, number, torch.arange(group.width)), torch.zeros(group.width, dtype=torch.float64)
            )
            for number, group in enumerate(evidence.graph.groups)
        ]

    def passes(self, fan_in: int) -> int:  # noqa: ARG002
        return 0
