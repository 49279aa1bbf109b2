"""What an operator is: a way to add channels, with the gain that it predicts for each.

All gains are in one currency, the predicted decrease of the loss in nats at the operator's own step, so that one selection can choose
among all operators (``growth.operators.choice``).  The price of a candidate is the width that it adds to its group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.offspring import Offspring
from growth.pointwise import SOFTPLUS, Curvature
from growth.scorers import GroupScore
from growth.splitting import Batch, Loss


@dataclass(frozen=True, slots=True)
class Evidence:
    """What operators judge by: the model and its graph, the scoring images, and what a scorer found on them, by group."""

    model: nn.Module
    graph: ChannelGraph
    batches: Sequence[Batch]
    loss: Loss
    scores: Sequence[GroupScore]
    curvature: Curvature = SOFTPLUS


@dataclass(frozen=True, slots=True)
class Candidates:
    """n ways to widen one group, each by ``offspring.added`` channels, one per parent; at most one of a parent's can be taken.

    ``gain`` [n] float64 on the CPU is in nats: its order counts, its size is optimistic (the candidates were fitted to the scoring
    images).  None: unknown, so they can't be ranked, only chosen by another rule.
    """

    operator: str
    offspring: Offspring
    gain: Tensor | None


class Operator(Protocol):
    """Proposes candidates for every group, in the order of the graph; ``step`` is how far they go, in units of the parent's norm."""

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]: ...

    def passes(self, fan_in: int) -> int:
        """Compute charged per scoring image beside the scorer's, in units of the network's MACs (an upper bound)."""
        ...


def in_nats(gain: Tensor) -> Tensor:
    """As ``Candidates`` keeps it."""
    return gain.detach().to("cpu", torch.float64)
