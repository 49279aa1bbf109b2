"""How far to go: one factor for all the moves and reads of some offspring, found by trying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.offspring import Offspring
from growth.splitting import Batch, Loss
from growth.surgery import add_channels
from growth.tracing import evaluating

SHORTER = (1.0, 0.25, 0.0625, 0.0156, 0.0039)  # for new channels, which overshoot together
SCALES = (1.0, 2.0, 0.5, 0.25, 0.0625, 0.0156, 0.0039)


@dataclass(frozen=True, slots=True)
class Stride:
    """The factor of the lowest loss, and the change of the loss (nats) that it makes."""

    scale: float
    change: float


def scaled(offspring: Offspring, scale: float) -> Offspring:
    """Going ``scale`` times as far: rows of offspring with a share, and reads.  New rows, which have none, stay."""
    factor: Tensor = torch.where(offspring.shares == 0, 1.0, scale).to(offspring.moves)
    reads = tuple(scale * read for read in offspring.reads)
    return replace(offspring, moves=offspring.moves * factor.unsqueeze(2), reads=reads)


def line_search(
    model: nn.Module,
    graph: ChannelGraph,
    offspring: Sequence[Offspring],
    batches: Sequence[Batch],
    loss: Loss,
    scales: Sequence[float] = SCALES,
) -> Stride:
    """The best of ``scales`` on these images, in eval mode; of equals the first.  Its change is above 0 where none lowers the loss."""
    before = mean_loss(model, batches, loss)
    tried = []
    for scale in scales:
        grown, _ = add_channels(model, graph, [scaled(one, scale) for one in offspring])
        tried.append(Stride(scale, mean_loss(grown, batches, loss) - before))
    return min(tried, key=lambda stride: stride.change)


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> float:
    """Over the images of these batches, in eval mode."""
    with evaluating(model):
        parts = [float(loss(model(images), target)) * len(images) for images, target in batches]
    return sum(parts) / sum(len(images) for images, _ in batches)
