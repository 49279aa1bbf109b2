"""New channels that nothing reads yet: random rows of the group's scale, and zero outgoing weights.

The function does not change at all, whatever the step; what such a channel is worth shows in training alone.  A gradient at its
outgoing weights says nothing in the currency of the others: no loss falls when it is added, and every present weight has a gradient as
well.  So its gain is unknown, it can't be ranked, and widths for it come from another rule (``firefly`` takes the step that this one
leaves to training, and predicts it).
"""

from __future__ import annotations

import torch

from growth.operators.base import Candidates, Evidence, Passes
from growth.operators.newborn import newborn, with_statistics


class ZeroOutput:
    """An operator."""

    claims_gain = False
    uses_scores = True
    adds = 1

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]:  # noqa: ARG002  # nothing to scale
        return [Candidates("zero_output", one, None) for one in with_statistics(evidence, newborn(evidence, generator))]

    def passes(self, fan_in: int) -> Passes:  # noqa: ARG002
        return Passes(4, 0)  # one forward pass at twice the width
