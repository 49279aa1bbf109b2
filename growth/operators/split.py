"""Splitting in two: the parent moves along its splitting direction, its offspring against it, each is read by half.

The scorer has found direction and index: the loss changes by step^2 / 2 times the relative index (Liu, Wu, Wang, arXiv 1910.02366).
"""

from __future__ import annotations

import torch

from growth.offspring import Split, apart
from growth.operators.base import Candidates, Evidence, Passes, in_nats


class InTwo:
    """An operator."""

    claims_gain = True
    uses_scores = True
    adds = 1

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]:  # noqa: ARG002  # nothing left to chance
        return [
            Candidates(
                "split",
                apart(evidence.model, group, Split(number, torch.arange(group.width), score.direction), step),
                -0.5 * step**2 * in_nats(score.relative_index),
            )
            for number, (group, score) in enumerate(zip(evidence.graph.groups, evidence.scores, strict=True))
        ]

    def passes(self, fan_in: int) -> Passes:  # noqa: ARG002  # the scorer is charged already
        return Passes(0, 3 + 2)
