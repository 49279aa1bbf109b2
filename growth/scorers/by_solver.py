"""Scores by the splitting matrix: an eigensolver finds index and direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from growth.groups import ChannelGraph
from growth.pointwise import SOFTPLUS, Curvature
from growth.scorers.base import GroupScore, parents
from growth.solvers import Solver
from growth.splitting import Batch, Loss, SplittingProduct


@dataclass(frozen=True, slots=True)
class BySolver:
    """A scorer.  ``most_products`` tells from a channel's number of weights how many products the solver makes at most."""

    solver: Solver
    most_products: Callable[[int], int]
    claims_gain: bool = True

    def products(self, fan_in: int) -> int:
        return self.most_products(fan_in)

    def __call__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        batches: Sequence[Batch],
        loss: Loss,
        generator: torch.Generator,
        curvature: Curvature = SOFTPLUS,
    ) -> list[GroupScore]:
        found = self.solver(SplittingProduct(model, graph, batches, loss, curvature), generator)
        return [
            GroupScore(pairs.index, pairs.direction, pairs.residual, theta.norm(dim=1))
            for pairs, theta in zip(found, parents(model, graph), strict=True)
        ]
