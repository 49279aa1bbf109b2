"""The null control: every channel and an exact copy of it, each read by half.

Width without a direction.  Both see the same gradient and stay twins, so no capacity is gained: the gain is 0, and an operator that
does no better than this does nothing but change how training scales.
"""

from __future__ import annotations

import torch

from growth.offspring import doubled
from growth.operators.base import Candidates, Evidence, Passes


class Twins:
    """An operator."""

    claims_gain = False
    uses_scores = True
    adds = 1

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]:  # noqa: ARG002  # there is no move
        return [
            Candidates("twins", doubled(evidence.model, group, number, torch.arange(group.width)), None)
            for number, group in enumerate(evidence.graph.groups)
        ]

    def passes(self, fan_in: int) -> Passes:  # noqa: ARG002
        return Passes(0, 0)
