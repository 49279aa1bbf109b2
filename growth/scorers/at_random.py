"""The control: channels and directions by chance, so that what scoring adds can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.pointwise import SOFTPLUS, Curvature
from growth.scorers.base import GroupScore, parents
from growth.splitting import Batch, Loss


@dataclass(frozen=True, slots=True)
class AtRandom:
    """A scorer whose relative index, by which channels are ranked, is minus a random number in (0, 1]; residuals are NaN."""

    claims_gain: bool = False

    def products(self, fan_in: int) -> int:  # noqa: ARG002 - a scorer, if one that looks at nothing
        """None."""
        return 0

    def __call__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        batches: Sequence[Batch],  # noqa: ARG002
        loss: Loss,  # noqa: ARG002
        generator: torch.Generator,
        curvature: Curvature = SOFTPLUS,  # noqa: ARG002
    ) -> list[GroupScore]:
        return [_score(theta, generator) for theta in parents(model, graph)]


def _score(theta: Tensor, generator: torch.Generator) -> GroupScore:
    relative = torch.rand(len(theta), generator=generator, device=generator.device).to(theta) - 1
    drawn = torch.randn(theta.shape, generator=generator, device=generator.device).to(theta)
    norm = theta.norm(dim=1)
    index = relative / norm.square().clamp_min(torch.finfo(theta.dtype).tiny)  # a channel of zeros gains nothing: a step of 0 * norm
    return GroupScore(index, drawn / drawn.norm(dim=1, keepdim=True), torch.full_like(index, torch.nan), norm)
