"""What a scorer returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.offspring import theta
from growth.pointwise import SOFTPLUS, Curvature
from growth.splitting import Batch, Loss


@dataclass(frozen=True, slots=True)
class GroupScore:
    """Scores of the C channels of one group.  A negative index predicts a gain.

    Splitting channel k into theta_k +- eps * direction_k changes the loss by eps^2 / 2 * index_k.  On the images that the direction was
    fitted to, which is where a scorer looks, the index is optimistic: ``growth.reliability`` measures it on others.
    """

    index: Tensor  # [C]
    direction: Tensor  # [C, d], unit rows
    residual: Tensor  # [C], ||S v - index v||; NaN where no product was made
    parent_norm: Tensor  # [C], ||theta_k||

    @property
    def relative_index(self) -> Tensor:
        """For a step in units of the parent's norm: comparable between layers, and unchanged when a normalised layer is rescaled."""
        return self.index * self.parent_norm**2


class Scorer(Protocol):
    """Scores every channel of every group.  ``generator`` draws whatever is left to chance, ``curvature`` stands in for ReLU's."""

    @property
    def claims_gain(self) -> bool:
        """Whether an index says what a split gains.  Such a claim is held against fresh images; a ranking without one is taken as it is."""

    def products(self, fan_in: int) -> int:
        """How many products S v with the scoring images it makes, at most, for channels of this many weights."""

    def __call__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        batches: Sequence[Batch],
        loss: Loss,
        generator: torch.Generator,
        curvature: Curvature = SOFTPLUS,
    ) -> list[GroupScore]: ...


def parents(model: nn.Module, graph: ChannelGraph) -> list[Tensor]:
    """theta, one [C, d] per group."""
    return [theta(model, group) for group in graph.groups]
