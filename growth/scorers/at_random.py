"""The control: channels and directions by chance, so that what scoring adds can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.pointwise import Curvature, Softplus
from growth.scorers.base import GroupScore, check_fresh, fresh_quotients, parents
from growth.splitting import Batch, Loss


@dataclass(frozen=True, slots=True)
class AtRandom:
    """A scorer whose index is minus a random number in (0, 1], and whose residual is NaN; fresh quotients are measured."""

    curvature: Curvature = field(default_factory=Softplus)

    def __call__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        batches: Sequence[Batch],  # noqa: ARG002  # a scorer, if one that looks at nothing
        fresh_batches: Sequence[Batch],
        loss: Loss,
        generator: torch.Generator,
    ) -> list[GroupScore]:
        check_fresh(fresh_batches)
        thetas = parents(model, graph)
        indices = [torch.rand(len(theta), generator=generator, device=generator.device).to(theta) - 1 for theta in thetas]
        directions = [_unit(theta, generator) for theta in thetas]
        fresh = fresh_quotients(model, graph, fresh_batches, loss, self.curvature, directions)
        return [
            GroupScore(index, v, torch.full_like(index, torch.nan), theta.norm(dim=1), *checked)
            for index, v, theta, checked in zip(indices, directions, thetas, fresh, strict=True)
        ]


def _unit(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator, device=generator.device).to(like)
    unit: Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return unit
