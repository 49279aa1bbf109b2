"""Network slimming (Liu et al. 2017, arXiv 1708.06519): the pruning baseline.

While a larger network trains, an L1 penalty draws the scales of its batch norms towards zero (``growth.training.penalise``); then the
channels of smallest scales go, all groups compared by one threshold, and what is left is fine-tuned.  A channel's scale here is the mean
of |gamma| over the norms that it passes: a depthwise convolution or a residual sum gives it several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from costs.families import MIN_WIDTH
from costs.model import Budget
from growth.fitting import NORMS
from growth.groups import ChannelGraph, ChannelGroup
from growth.removal import Removal
from growth.selection import fits


def scales(model: nn.Module, graph: ChannelGraph) -> list[Tensor]:
    """By group, the scale of every channel, [C].  ValueError for a group that passes no norm with a scale."""
    return [_scales(model, number, group) for number, group in enumerate(graph.groups)]


def slimmest(model: nn.Module, graph: ChannelGraph, budgets: Sequence[Budget]) -> list[Removal]:
    """The channels of smallest scales, as few as bring the network within all budgets; ``MIN_WIDTH`` of each group stay.

    ValueError, with value and limits, if all that may go is not enough.
    """
    found = scales(model, graph)
    smallest_first = sorted((scale, group, channel) for group, one in enumerate(found) for channel, scale in enumerate(one.tolist()))
    widths, gone = list(graph.wiring.widths), dict[int, list[int]]()
    for _, group, channel in smallest_first:
        if fits(graph.wiring, widths, budgets):
            break
        if widths[group] > MIN_WIDTH:
            widths[group] -= 1
            gone.setdefault(group, []).append(channel)
    if not fits(graph.wiring, widths, budgets):
        limits = " and ".join(f"{budget.limit:.6g}" for budget in budgets)
        raise ValueError(f"at the narrowest, widths {widths}, the network still costs more than the limit of {limits}; raise the limit")
    return [Removal(group, torch.tensor(sorted(channels))) for group, channels in sorted(gone.items())]


def _scales(model: nn.Module, number: int, group: ChannelGroup) -> Tensor:
    found = [
        cast(Tensor, norm.weight).detach().abs()[place.entries(torch.arange(group.width))].mean(1)
        for place in group.passengers
        if isinstance(norm := model.get_submodule(place.name), NORMS) and norm.weight is not None
    ]
    if not found:
        producers = ", ".join(group.producers)
        raise ValueError(f"channel group {number} ({producers}) passes no batch norm with a scale to slim it by; use a network with norms")
    return torch.stack(found).mean(0)
