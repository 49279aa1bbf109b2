"""New channels: rows drawn by chance, not read yet, with running statistics of their own.

They take biases and the other entries of passengers (scales, depthwise kernels) from a parent; only their row and what follows from
it, mean and variance in the norms they pass, are new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from growth import distributed
from growth.fitting import NORMS
from growth.groups import ChannelGraph, ChannelGroup, Place, find_groups
from growth.offspring import Offspring, theta
from growth.operators.base import Evidence
from growth.splitting import Batch
from growth.surgery import add_channels
from growth.tracing import evaluating


def newborn(evidence: Evidence, generator: torch.Generator) -> list[Offspring]:
    """For every group, one new channel beside each parent, without statistics of its own yet."""
    return [_newborn(evidence.model, number, group, generator) for number, group in enumerate(evidence.graph.groups)]


def _newborn(model: nn.Module, number: int, group: ChannelGroup, generator: torch.Generator) -> Offspring:
    rows = theta(model, group)
    pieces = torch.split(rows, [model.get_parameter(f"{name}.weight")[0].numel() for name in group.producers], dim=1)
    drawn = [torch.randn(piece.shape, generator=generator, dtype=torch.float64, device=generator.device).to(piece) for piece in pieces]
    scaled = [new * piece.square().mean().sqrt() for new, piece in zip(drawn, pieces, strict=True)]  # each producer keeps its scale
    moves = torch.stack([torch.zeros_like(rows), torch.cat(scaled, 1) - rows], 1)
    shares = torch.tensor([1.0, 0.0]).to(rows).expand(len(rows), 2)
    return Offspring(number, torch.arange(len(rows)), moves, shares)


def with_statistics(evidence: Evidence, offspring: Sequence[Offspring]) -> list[Offspring]:
    """One Offspring per group, in order, with the mean and variance of its appended channels at every norm they pass.

    They are those over the scoring images (for several batches: the mean over batches), with all other statistics as they are.
    """
    wider, _ = add_channels(evidence.model, evidence.graph, offspring)
    graph = find_groups(wider, evidence.batches[0][0][:2])
    settle_appended(wider, evidence.graph, graph, evidence.batches)
    return [
        replace(one, statistics=tuple(_statistics(wider, place, group.width, one) for place in grown.passengers))
        for one, group, grown in zip(offspring, evidence.graph.groups, graph.groups, strict=True)
    ]


def appended(place: Place, old: int, new: int) -> slice:
    """The entries of a grown axis that hold a group's appended channels; ``place`` is in that axis, the widths are the group's."""
    return slice(place.offset + old * place.columns, place.offset + new * place.columns)


def _statistics(wider: nn.Module, place: Place, width: int, one: Offspring) -> tuple[Tensor, Tensor] | None:
    module = wider.get_submodule(place.name)
    if not isinstance(module, NORMS):
        return None
    entries = appended(place, width, width + len(one.parents) * one.added)
    mean, variance = distributed.from_first([cast(Tensor, statistic)[entries] for statistic in (module.running_mean, module.running_var)])
    shape = (len(one.parents), one.added, place.columns)
    return mean.view(shape), variance.view(shape)


@torch.no_grad()
def settle_appended(wider: nn.Module, before: ChannelGraph, graph: ChannelGraph, batches: Sequence[Batch]) -> None:
    """Set the running statistics of appended channels to their mean over these batches, in eval mode, in place.

    Unbiased variances, as norms keep them.  A norm behind another sees what that one makes of the statistics so far.
    """
    with evaluating(wider), _watching(wider, before, graph) as count:
        for images, _ in batches:
            if len(images) > 1:  # one image may be one value per channel, which has no variance
                count[0] += 1
                wider(images)


@contextmanager
def _watching(wider: nn.Module, before: ChannelGraph, graph: ChannelGraph) -> Iterator[list[int]]:
    """Inside, norms take the statistics of appended channels from what they read, batch number ``count[0]``, before they use them."""
    count, hooks = [0], []
    for old, new in zip(before.groups, graph.groups, strict=True):
        for place in new.passengers:
            module = wider.get_submodule(place.name)
            if isinstance(module, NORMS) and new.width > old.width:
                hook = partial(_take_statistics, appended(place, old.width, new.width), count)
                hooks.append(module.register_forward_pre_hook(hook))
    try:
        yield count
    finally:
        for handle in hooks:
            handle.remove()


def _take_statistics(entries: slice, count: list[int], norm: nn.Module, arguments: tuple[Any, ...]) -> None:
    x: Tensor = arguments[0]
    values = x[:, entries].transpose(0, 1).flatten(1)  # [entries, samples]
    for name, value in (("running_mean", values.mean(1)), ("running_var", values.var(1))):
        running = cast(Tensor, getattr(norm, name))[entries]
        running += (value.to(running) - running) / count[0]
