"""What adding offspring will do to the loss on images that they were not fitted to, whatever operators proposed them.

Between the model at rest (all offspring there, computing what the present model computes) and the grown one lies a straight way, and

    change = <dL/dW half-way, W grown - W at rest>

up to the third order of the step: the second-order law of splits, and the first-order law of new channels with its curvature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.offspring import Offspring
from growth.splitting import Batch, Loss
from growth.surgery import add_channels
from growth.tracing import evaluating


def forecast(model: nn.Module, graph: ChannelGraph, offspring: Sequence[Offspring], batches: Sequence[Batch], loss: Loss) -> Tensor:
    """The predicted change of the loss (nats) on each batch, [batches] float64 on the CPU, in eval mode."""
    grown, _ = add_channels(model, graph, offspring)
    resting, _ = add_channels(model, graph, [at_rest(one) for one in offspring])
    ways = {}
    for (name, end), start in zip(grown.named_parameters(), resting.parameters(), strict=True):
        way = (end - start).detach()
        if way.any():
            ways[name] = way
    with torch.no_grad():
        for name, way in ways.items():
            grown.get_parameter(name).sub_(way, alpha=0.5)
    weights = [grown.get_parameter(name).requires_grad_() for name in ways]
    return torch.tensor([_along(grown, weights, list(ways.values()), batch, loss) for batch in batches], dtype=torch.float64)


def at_rest(offspring: Offspring) -> Offspring:
    """The offspring before they do anything: those that have a share in their parent's place, new ones unread."""
    unread = offspring.shares == 0
    return replace(offspring, moves=offspring.moves * unread.unsqueeze(2), reads=())


def _along(model: nn.Module, weights: Sequence[Tensor], ways: Sequence[Tensor], batch: Batch, loss: Loss) -> float:
    if not weights:
        return 0.0
    images, target = batch
    with torch.enable_grad(), evaluating(model):
        slopes = torch.autograd.grad(loss(model(images), target), weights)
    return sum(float((slope.double() * way.double()).sum()) for slope, way in zip(slopes, ways, strict=True))
