"""Growing to widths that were fixed beforehand: what "inherited" means for widths that no score has found.

A scorer, so that the product's own loop does the growing.  It claims no gain: the channels that it wants come first, by chance which,
and the others are said to lose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growth.controls import Widths
from growth.groups import ChannelGraph
from growth.pointwise import SOFTPLUS, Curvature
from growth.scorers import SCORERS, GroupScore
from growth.scorers.base import parents
from growth.splitting import Batch, Loss

NAME = "toward"


@dataclass(frozen=True, slots=True)
class Toward:
    """``path``: the seed's widths, then those after each round."""

    path: Sequence[Widths]
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
        present = graph.wiring.widths
        target = next((to for to in self.path if any(a > b for a, b in zip(to, present, strict=True))), present)
        return [
            _wanted(theta, max(0, more - width), generator)
            for theta, width, more in zip(parents(model, graph), present, target, strict=True)
        ]


def register(start: Widths, widths: Widths, rounds: int) -> str:
    """The name of a scorer that leads from ``start`` to ``widths`` in so many rounds; a later one replaces it."""
    SCORERS[NAME] = Toward(even_path(start, widths, rounds))
    return NAME


def even_path(start: Widths, widths: Widths, rounds: int) -> list[Widths]:
    """Equal factors per round, rounded down: by Hoelder's inequality no round then takes more than its share of the MACs."""

    def at(low: int, high: int, number: int) -> int:
        return math.floor(low * math.pow(high / low, number / rounds) + 1e-9)

    return [start, *(tuple(at(low, high, number) for low, high in zip(start, widths, strict=True)) for number in range(1, rounds + 1))]


def _wanted(theta: Tensor, count: int, generator: torch.Generator) -> GroupScore:
    """``count`` channels by chance gain, in random directions."""
    index = torch.ones(len(theta))
    index[torch.randperm(len(theta), generator=generator)[:count]] = -1
    drawn = torch.randn(theta.shape, generator=generator)
    norm = theta.norm(dim=1)
    return GroupScore(
        index / norm.square().clamp_min(1e-12), drawn / drawn.norm(dim=1, keepdim=True), torch.full_like(index, torch.nan), norm
    )
