"""What an operator is: a way to add channels, with the gain that it predicts for each.

All gains are in one currency, the predicted decrease of the loss in nats at the operator's own step, so that one selection can choose
among all operators (``growth.operators.choice``).  The price of a candidate is the width that it adds to its group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.offspring import Offspring
from growth.pointwise import SOFTPLUS, Curvature
from growth.scorers import GroupScore
from growth.splitting import Batch, Loss


@dataclass(frozen=True, slots=True)
class Evidence:
    """What operators judge by: the model and its graph, the scoring images, and by group what a scorer found on them.

    Operators that don't ``use_scores`` need none.
    """

    model: nn.Module
    graph: ChannelGraph
    batches: Sequence[Batch]
    loss: Loss
    scores: Sequence[GroupScore] = ()
    curvature: Curvature = SOFTPLUS


@dataclass(frozen=True, slots=True)
class Candidates:
    """n ways to widen one group, each by ``offspring.added`` channels, one per parent; at most one of a parent's can be taken.

    The offspring of a set are all moved apart (they have shares, and no reads) or all new (no shares, and reads): the loss changes by
    another law in each case (``growth.operators.law``).  ``gain`` [n] float64 on the CPU is in nats: its order counts, its size is
    optimistic (the candidates were fitted to the scoring images).  None from an operator that claims no gain.
    """

    operator: str
    offspring: Offspring
    gain: Tensor | None

    @property
    def channels(self) -> int:
        """That all of them together add."""
        return len(self.offspring.parents) * self.offspring.added

    def take(self, rows: Tensor) -> Candidates:
        """Some of them, by position."""
        return Candidates(self.operator, self.offspring.take(rows), None if self.gain is None else self.gain[rows])


class Passes(NamedTuple):
    """Compute charged per image, in units of the network's MACs (upper bounds): for ``scoring`` images beside what the scorer is
    charged, and for ``fresh`` images on which the candidates' gains are measured.
    """

    scoring: int
    fresh: int


class Operator(Protocol):
    """Proposes candidates for every group, in the order of the graph; ``step`` is how far they go, in units of the parent's norm."""

    @property
    def claims_gain(self) -> bool:
        """Whether its candidates can be ranked.  Without, it fills the widths that splits in two would be given."""

    @property
    def uses_scores(self) -> bool:
        """Whether it needs a scorer's directions."""

    @property
    def adds(self) -> int:
        """Channels that a candidate adds, at most."""

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]: ...

    def passes(self, fan_in: int) -> Passes:
        """For channels of this many weights."""


def in_nats(gain: Tensor) -> Tensor:
    """As ``Candidates`` keeps it."""
    return gain.detach().to("cpu", torch.float64)
