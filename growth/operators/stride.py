"""How far to go: one factor for all the moves and reads of some offspring, found on given images.

- ``line_search``: tries a few and takes the best.
- ``gauss_newton``: between two probes the network's outputs are taken as a quadratic in the factor s, f(s) = f + s a + s^2 b, and the
  loss to second order in the outputs, so that its change is a quartic whose lowest point is known (after Lawton et al., arXiv 2411.05855):

      change(s) = g.(s a + s^2 b) + 1/2 (s a + s^2 b)^T H (s a + s^2 b)

  For splits a is 0, and the best s^2 is -g.b / (b^T H b).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from growth import distributed
from growth.groups import ChannelGraph
from growth.offspring import Offspring
from growth.splitting import Batch, Loss
from growth.surgery import add_channels
from growth.tracing import evaluating

SHORTER = (1.0, 0.25, 0.0625, 0.0156, 0.0039)  # for new channels, which overshoot together
SCALES = (1.0, 2.0, 0.5, 0.25, 0.0625, 0.0156, 0.0039)
PROBES = (0.25, 0.5)
LONGEST = 2.0


@dataclass(frozen=True, slots=True)
class Stride:
    """A factor, and the change of the loss (nats) that was measured at it."""

    scale: float
    change: float


class StepRule(NamedTuple):
    """Finds a stride; ``passes`` forward passes of the grown network for each image, and one of the present network."""

    find: Callable[[nn.Module, ChannelGraph, Sequence[Offspring], Sequence[Batch], Loss], Stride]
    passes: int


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
    tried = [Stride(scale, mean_loss(_grown(model, graph, offspring, scale), batches, loss) - before) for scale in scales]
    return min(tried, key=lambda stride: stride.change)


def gauss_newton(model: nn.Module, graph: ChannelGraph, offspring: Sequence[Offspring], batches: Sequence[Batch], loss: Loss) -> Stride:
    """The lowest point of the quartic up to ``LONGEST``, on these images in eval mode, with the change that was measured there."""
    probes = [_grown(model, graph, offspring, scale) for scale in PROBES]
    share = sum((_quartic(model, probes, batch, loss) * len(batch[0]) for batch in distributed.mine(batches)), np.zeros(5))
    quartic = np.array(distributed.totals(*share.tolist()))
    turns = [root.real for root in np.roots(np.polyder(quartic)) if abs(root.imag) < 1e-9 and 0 < root.real < LONGEST]
    scale = min([*turns, LONGEST], key=lambda at: float(np.polyval(quartic, at)))
    before = mean_loss(model, batches, loss)
    return Stride(scale, mean_loss(_grown(model, graph, offspring, scale), batches, loss) - before)


def _quartic(model: nn.Module, probes: Sequence[nn.Module], batch: Batch, loss: Loss) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Coefficients of the change on one batch, the highest power first."""
    images, target = batch
    with torch.no_grad():
        output, *others = (_output(one, images).double() for one in (model, *probes))
    near, far = PROBES
    first, second = ((other - output) / scale for other, scale in zip(others, PROBES, strict=True))  # a + near b, a + far b
    b = (second - first) / (far - near)
    a = first - near * b
    with torch.enable_grad():
        output.requires_grad_()
        (slope,) = torch.autograd.grad(loss(output, target), output, create_graph=True)
        bent = [torch.autograd.grad(slope, output, way, retain_graph=True)[0] for way in (a, b)]  # H a, H b
    along = [float((slope.detach() * way).sum()) for way in (a, b)]
    aa, ab, bb = float((a * bent[0]).sum()), float((a * bent[1]).sum()), float((b * bent[1]).sum())
    return np.array([bb / 2, ab, along[1] + aa / 2, along[0], 0.0])


def _output(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model):
        output: Tensor = model(images)
    return output


def _grown(model: nn.Module, graph: ChannelGraph, offspring: Sequence[Offspring], scale: float) -> nn.Module:
    return add_channels(model, graph, [scaled(one, scale) for one in offspring])[0]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> float:
    """Over the images of these batches, in eval mode."""
    with evaluating(model):
        parts = [float(loss(model(images), target)) * len(images) for images, target in distributed.mine(batches)]
    return distributed.totals(sum(parts))[0] / sum(len(images) for images, _ in batches)


STEP_RULES: dict[str, StepRule] = {
    "line_search": StepRule(line_search, len(SCALES)),
    "gauss_newton": StepRule(gauss_newton, len(PROBES) + 1),
}
