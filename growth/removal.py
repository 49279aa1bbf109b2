"""Removing channels: a narrower model, the reverse of ``growth.surgery``.

A channel that goes takes its rows in the producers and passengers and its columns in the consumers along.  What it adds to a consumer's
output on average can stay, as a constant: in the consumer's bias, or in the running mean of the norm behind it.  In train mode that
norm's batch statistics do the same by themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from costs.families import MIN_WIDTH
from growth.entries import owner, take_columns, take_entries, take_rows, tensor_of
from growth.fitting import check_group, features, shared_weights
from growth.groups import ChannelGraph, ChannelGroup, Place
from growth.offspring import check_parents
from growth.segments import norms_behind
from growth.surgery import Axes, ChannelMap, group_of


@dataclass(frozen=True, slots=True)
class Removal:
    """n channels of one group that go.

    ``left`` is empty, or has for each of the group's consumers [n, outputs]: the constant that stays of them in its output.
    """

    group: int
    channels: Tensor  # [n] int64
    left: tuple[Tensor, ...] = ()


def remove_channels(model: nn.Module, graph: ChannelGraph, removals: Sequence[Removal]) -> tuple[nn.Module, ChannelMap]:
    """A copy of ``model`` without these channels, and where its entries came from.  ``model`` is untouched.

    ValueError, with value, limit and remedy, for channels that don't exist or come twice, for a group that would be left with fewer than
    ``MIN_WIDTH`` of them, for constants with no place to go, and for a graph that does not fit the model; TypeError for a module that can't
    change its width.
    """
    _check(model, graph, removals)
    narrower, norms = copy.deepcopy(model), norms_behind(graph)
    for removal in removals:
        for place, left in zip(graph.groups[removal.group].consumers, removal.left, strict=False):  # empty: nothing stays
            _fold(narrower, norms.get(place.name), place.name, left.sum(0))
    sources: dict[str, Axes] = {}
    for name, cuts in _cuts(graph, removals, lambda group: group.rows).items():
        kept = _kept(features(narrower.get_submodule(name)), cuts)
        sources |= {f"{name}.{tensor}": (kept, None) for tensor in take_rows(narrower.get_submodule(name), kept)}
    for name, cuts in _cuts(graph, removals, lambda group: group.consumers).items():
        kept = _kept(tensor_of(narrower.get_submodule(name), "weight").shape[1], cuts)
        take_columns(narrower.get_submodule(name), kept)
        sources[f"{name}.weight"] = (sources.get(f"{name}.weight", (None, None))[0], kept)
    for name, cuts in _cuts(graph, removals, lambda group: group.scales).items():
        module, attribute = owner(narrower, name)
        axis = cuts[0][0].axis
        kept = _kept(tensor_of(module, attribute).shape[axis], cuts)
        take_entries(narrower, name, axis, kept)
        sources[name] = (kept, None) if axis == 0 else (None, kept)
    return narrower, ChannelMap(sources)


def absorbs(model: nn.Module, graph: ChannelGraph, consumer: str) -> bool:
    """Whether a constant in a consumer's output can be folded away: into its bias, or the statistics of the norm behind it."""
    return _absorber(model, norms_behind(graph).get(consumer), consumer) is not None


def _absorber(model: nn.Module, norm: str | None, consumer: str) -> tuple[Tensor, float] | None:
    """The tensor that takes up a constant of the consumer's output, and with which sign."""
    module = model.get_submodule(consumer)
    if module.bias is not None:
        return tensor_of(module, "bias").detach(), 1.0
    mean = None if norm is None else cast(Tensor | None, model.get_submodule(norm).running_mean)
    return None if mean is None else (mean, -1.0)


def _fold(model: nn.Module, norm: str | None, consumer: str, constant: Tensor) -> None:
    """Add a constant [outputs] to a consumer's output, in place."""
    if not constant.any():
        return
    if (absorber := _absorber(model, norm, consumer)) is None:
        raise ValueError(f"{consumer} has neither a bias nor a batch norm behind it to take up a constant; leave nothing there")
    tensor, sign = absorber
    tensor.add_(constant.to(tensor), alpha=sign)


_Cuts = list[tuple[Place, Tensor]]


def _cuts(graph: ChannelGraph, removals: Sequence[Removal], places: Callable[[ChannelGroup], Sequence[Place]]) -> dict[str, _Cuts]:
    """By module (or parameter), where channels go."""
    found: dict[str, _Cuts] = {}
    for removal in removals:
        for place in places(graph.groups[removal.group]):
            found.setdefault(place.name, []).append((place, removal.channels))
    return found


def _kept(size: int, cuts: _Cuts) -> Tensor:
    """The entries of an axis that stay."""
    stays = torch.ones(size, dtype=torch.bool)
    for place, channels in cuts:
        stays[place.entries(channels.cpu())] = False
    return stays.nonzero().flatten()


def _check(model: nn.Module, graph: ChannelGraph, removals: Sequence[Removal]) -> None:
    shared = shared_weights(model)
    for number in dict.fromkeys(removal.group for removal in removals):
        group, own = group_of(graph, number), [removal for removal in removals if removal.group == number]
        where = f"removal from channel group {number}"
        check_group(model, number, group, shared)
        for removal in own:
            check_parents(removal.channels, group.width, where)
            _check_left(model, removal, group, where)
        gone = torch.cat([removal.channels.cpu() for removal in own])
        check_parents(gone, group.width, where)
        if len(gone) and group.width - len(gone) < MIN_WIDTH:
            raise ValueError(f"{where}: {len(gone)} of {group.width} channels would leave fewer than {MIN_WIDTH}; remove fewer")


def _check_left(model: nn.Module, removal: Removal, group: ChannelGroup, where: str) -> None:
    expected = [(len(removal.channels), len(model.get_parameter(f"{place.name}.weight"))) for place in group.consumers]
    if removal.left and (found := [tuple(left.shape) for left in removal.left]) != expected:
        raise ValueError(f"{where}: what is left has shapes {found}; give {expected}, one per consumer, or none")
