"""The null control: every channel and an exact copy of it, each read by half.

Width without a direction.  Both see the same gradient and stay twins, so no capacity is gained: the gain is 0, and an operator that
does no better than this does nothing but change how training scales.
"""

from __future__ import annotations

import torch

from growth.offspring import Offspring, theta
from growth.operators.base import Candidates, Evidence


class Twins:
    """An operator."""

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]:  # noqa: ARG002  # there is no move
        candidates = []
        for number, group in enumerate(evidence.graph.groups):
            rows = theta(evidence.model, group)
            moves, shares = rows.new_zeros(len(rows), 2, rows.shape[1]), rows.new_full((len(rows), 2), 0.5)
            offspring = Offspring(number, torch.arange(len(rows)), moves, shares)
            candidates.append(Candidates("twins", offspring, torch.zeros(len(rows), dtype=torch.float64)))
        return candidates

    def passes(self, fan_in: int) -> int:  # noqa: ARG002
        return 0
