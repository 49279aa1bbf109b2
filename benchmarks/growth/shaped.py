"""Scorers that were tried: the splitting index, smoothed within a group, and with a floor that leaves no budget unused.

The index of one channel is noisy, and where it promises nothing nothing is split, however much of the budget is left.  With a floor the
ranking goes over into that by cost alone.  Such a ranking claims no gain, so it is taken as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.pointwise import SOFTPLUS, Curvature
from growth.scorers import SCORERS, GroupScore
from growth.splitting import Batch, Loss

BASE = SCORERS["splitting"]


@dataclass(frozen=True, slots=True)
class Shaped:
    """``floor``: what every channel is taken to gain at least, in units of the mean gain; ``smooth``: channels get their group's mean;
    ``fading``: the best of C channels keeps its gain, the k-th after it a part C / (C + k)."""

    floor: float = 0.0
    smooth: bool = False
    fading: bool = False
    claims_gain: bool = False

    def products(self, fan_in: int) -> int:
        return BASE.products(fan_in)

    def __call__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        batches: Sequence[Batch],
        loss: Loss,
        generator: torch.Generator,
        curvature: Curvature = SOFTPLUS,
    ) -> list[GroupScore]:
        found = BASE(model, graph, batches, loss, generator, curvature)
        gains = [(-score.relative_index).clamp_min(0) for score in found]
        floor = self.floor * float(torch.cat(gains).mean())
        return [self._shaped(score, gain, floor) for score, gain in zip(found, gains, strict=True)]

    def _shaped(self, score: GroupScore, gain: Tensor, floor: float) -> GroupScore:
        if self.smooth:
            gain = torch.full_like(gain, float(gain.mean()))
        gain = gain.clamp_min(floor)
        if self.fading:
            rank = gain.argsort(descending=True).argsort()
            gain = gain * len(gain) / (len(gain) + rank)
        return replace(score, index=-gain / score.parent_norm.square().clamp_min(1e-12))


SHAPED = {
    "index with floor": Shaped(floor=0.3),
    "index with high floor": Shaped(floor=1.0),
    "group means": Shaped(smooth=True),
    "group means with floor": Shaped(smooth=True, floor=0.3),
    "group means, fading": Shaped(smooth=True, fading=True),
    "index with floor, fading": Shaped(floor=0.3, fading=True),
}


def register_shaped() -> None:
    """Make them scorers by name, for this process."""
    SCORERS.update(SHAPED)
