"""Splitting channels: a wider model that computes the same function at step 0.

Splitting channel k with weights theta_k (its rows in every producer of its group, one after the other) along a unit direction v:

    parent     theta_k + step * ||theta_k|| * v      stays at position k
    offspring  theta_k - step * ||theta_k|| * v      appended at the end of its group

Passengers (norms, depthwise convolutions) copy the parent's row.  Consumers read both with half the parent's weight each, so the
sum at the merge point is unchanged at step 0 and changes by O(step^2) otherwise (Liu, Wu, Wang, arXiv 1910.02366).

Rows are moved before columns are shared: where a producer also reads a split group, the direction is halved on its duplicated
inputs together with the weights it moved.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from growth.groups import ChannelGraph, ChannelGroup, Place

UNIT_NORM_TOLERANCE = 1e-3
_Sources = dict[str, tuple[Tensor | None, Tensor | None]]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True)
class Split:
    """Channels of one group to split: ``channels`` [n] int64, each once; ``directions`` [n, d] unit rows.

    d is the number of weights of one channel: its rows in the group's producers, flattened and concatenated in their order, no bias.
    """

    group: int
    channels: Tensor
    directions: Tensor


@dataclass(frozen=True, slots=True)
class ChannelMap:
    """Where the entries of a wider model come from.

    ``sources`` holds, by state-dict name, the index of the old tensor's row (and column) for each row (and column) of the new one;
    None for an axis that did not change.  A name that is absent did not change at all.
    """

    sources: Mapping[str, tuple[Tensor | None, Tensor | None]]

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of ``tensor``, laid out like the old entry ``name``, with rows and columns laid out like the new one."""
        rows, columns = self.sources.get(name, (None, None))
        taken = tensor.clone() if rows is None else tensor.index_select(0, rows.to(tensor.device))
        return taken if columns is None else taken.index_select(1, columns.to(tensor.device))


def widen(model: nn.Module, graph: ChannelGraph, splits: Sequence[Split], step: float) -> tuple[nn.Module, ChannelMap]:
    """A copy of ``model`` with the channels of ``splits`` split by ``step`` times their parent's norm, and where its entries came from.

    ``model`` is untouched.  ValueError, with value, limit and remedy, for a split that does not fit the graph or a graph that does
    not fit the model; TypeError for a module that can't be widened.
    """
    _check(model, graph, splits, step)
    wider = copy.deepcopy(model)
    rows, columns, scales = _copies(graph, splits)
    sources: _Sources = {}
    for name, copies in rows.items():
        _take_rows(wider.get_submodule(name), name, copies, sources)
    for name, copies in scales.items():
        _take_entries(wider, name, copies, sources)
    for split in splits:
        _move_apart(wider, model, graph.groups[split.group], split, step)
    for name, copies in columns.items():
        _share_columns(wider.get_submodule(name), name, copies, sources)
    return wider, ChannelMap(sources)


@dataclass(frozen=True, slots=True)
class _Copied:
    """Channels of one place in a module's axis that are split."""

    place: Place
    width: int
    channels: Tensor  # [n]


_Copies = dict[str, list[_Copied]]


def _copies(graph: ChannelGraph, splits: Sequence[Split]) -> tuple[_Copies, _Copies, _Copies]:
    """By module, what is copied among its rows, and what among its columns; by parameter, what is copied in a scale."""
    copies: tuple[_Copies, _Copies, _Copies] = ({}, {}, {})
    for split in splits:
        group, channels = graph.groups[split.group], split.channels.cpu()
        written = (*map(Place, group.producers), *group.passengers)
        for found, places in zip(copies, (written, group.consumers, group.scales), strict=True):
            for place in places:
                found.setdefault(place.name, []).append(_Copied(place, group.width, channels))
    return copies


def _spread(size: int, copies: Sequence[_Copied]) -> Tensor:
    """The old index of each entry of the new axis: the offspring's entries come right after those of their own group."""
    pieces, start = [], 0
    for copied in sorted(copies, key=lambda copied: copied.place.offset):
        columns, offset = copied.place.columns, copied.place.offset
        end = offset + copied.width * columns
        offspring = offset + copied.channels.unsqueeze(1) * columns + torch.arange(columns)
        pieces += [torch.arange(start, end), offspring.flatten()]
        start = end
    return torch.cat([*pieces, torch.arange(start, size)])


def _take_rows(module: nn.Module, path: str, copies: Sequence[_Copied], sources: _Sources) -> None:
    """Copy the split channels' entries in every per-channel tensor of ``module``."""
    rows = _spread(_features(module), copies)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, name, None) is None:
            continue
        old = _tensor(module, name)
        _replace(module, name, old.detach()[rows.to(old.device)])
        sources[f"{path}.{name}"] = (rows, None)
    width = len(rows)
    if isinstance(module, _CONVOLUTIONS):
        module.out_channels = width
        if module.groups > 1:  # depthwise
            module.in_channels = module.groups = width
    elif isinstance(module, nn.Linear):
        module.out_features = width
    elif isinstance(module, _NORMS):
        module.num_features = width


def _take_entries(model: nn.Module, name: str, copies: Sequence[_Copied], sources: _Sources) -> None:
    """Copy the split channels' entries of a scale."""
    path, _, attribute = name.rpartition(".")
    module, axis = model.get_submodule(path), copies[0].place.axis
    old = _tensor(module, attribute).detach()
    entries = _spread(old.shape[axis], copies)
    _replace(module, attribute, old.index_select(axis, entries.to(old.device)))
    sources[name] = (entries, None) if axis == 0 else (None, entries)


def _move_apart(wider: nn.Module, model: nn.Module, group: ChannelGroup, split: Split, step: float) -> None:
    """Move the parents' rows one way, and the offspring's, at the end, the other way."""
    parents = split.channels
    weights = [_tensor(model.get_submodule(name), "weight").detach() for name in group.producers]
    theta = torch.cat([weight[parents.to(weight.device)].flatten(1) for weight in weights], 1)  # [n, d]
    move = step * theta.norm(dim=1, keepdim=True) * split.directions.to(theta)
    pieces = move.split([weight[0].numel() for weight in weights], 1)
    for name, piece in zip(group.producers, pieces, strict=True):
        weight = _tensor(wider.get_submodule(name), "weight").detach()
        moved = piece.view(-1, *weight.shape[1:])
        weight[parents.to(weight.device)] += moved
        weight[group.width :] -= moved


def _share_columns(module: nn.Module, name: str, copies: Sequence[_Copied], sources: _Sources) -> None:
    """Let a consumer read parent and offspring with half the parent's weights each."""
    old = _tensor(module, "weight").detach()
    columns = _spread(old.shape[1], copies)
    shares = 1 / torch.bincount(columns)[columns].to(old)
    _replace(module, "weight", old[:, columns.to(old.device)] * shares.view(1, -1, *[1] * (old.dim() - 2)))
    name = f"{name}.weight"
    sources[name] = (sources.get(name, (None, None))[0], columns)
    if isinstance(module, _CONVOLUTIONS):
        module.in_channels = len(columns)
    else:
        cast(nn.Linear, module).in_features = len(columns)


def _features(module: nn.Module) -> int:
    """Entries of a module's output axis."""
    if isinstance(module, _NORMS):
        return module.num_features
    return len(_tensor(module, "weight"))


def _tensor(module: nn.Module, name: str) -> Tensor:
    return cast(Tensor, getattr(module, name))


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    old = _tensor(module, name)
    setattr(module, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


def _check(model: nn.Module, graph: ChannelGraph, splits: Sequence[Split], step: float) -> None:
    if not 0 <= step < float("inf"):
        raise ValueError(f"split step is {step}; it must be finite and at least 0")
    for group, count in Counter(split.group for split in splits).items():
        if not 0 <= group < len(graph.groups):
            raise ValueError(f"channel group is {group}; the graph has groups 0 to {len(graph.groups) - 1}")
        if count > 1:
            raise ValueError(f"channel group {group} is split {count} times in one call; give all its channels in one Split")
    names = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    uses = Counter(names.values())
    shared = {name for name, key in names.items() if uses[key] > 1}
    for split in splits:
        fan_in = _check_group(model, split.group, graph.groups[split.group], shared)
        _check_split(split, graph.groups[split.group].width, fan_in)


def _check_group(model: nn.Module, number: int, group: ChannelGroup, shared: set[str]) -> int:
    """The number of weights of one channel of ``group``, once every module of it is found fit to be widened."""
    fan_in = 0
    for name in group.producers:
        weight = _check_module(model, name, (*_CONVOLUTIONS, nn.Linear), shared)
        _check_width(number, name, "outputs", len(weight), group.width)
        if getattr(model.get_submodule(name), "groups", 1) != 1:
            raise TypeError(f"{name} is a grouped convolution and produces channels; only convolutions with groups=1 can be split")
        fan_in += weight[0].numel()
    for place in group.passengers:
        _check_module(model, place.name, (*_NORMS, *_CONVOLUTIONS), shared)
        module = model.get_submodule(place.name)
        _check_width(number, place.name, "channels", _features(module), group.width * place.columns + place.beside)
        if isinstance(module, _CONVOLUTIONS) and not module.out_channels == module.in_channels == module.groups:
            raise TypeError(
                f"{place.name} makes {module.out_channels} channels of {module.groups}; a depthwise passenger must keep the number"
            )
    for place in group.consumers:
        weight = _check_module(model, place.name, (*_CONVOLUTIONS, nn.Linear), shared)
        _check_width(number, place.name, "inputs", weight.shape[1], group.width * place.columns + place.beside)
    for place in group.scales:
        path, _, attribute = place.name.rpartition(".")
        scale = _tensor(model.get_submodule(path), attribute)
        _check_width(number, place.name, "entries", scale.shape[place.axis], group.width * place.columns + place.beside)
    return fan_in


def _check_module(model: nn.Module, name: str, types: tuple[type[nn.Module], ...], shared: set[str]) -> Tensor:
    module = model.get_submodule(name)
    if not isinstance(module, types) or is_parametrized(module):
        kind = "parametrised " * is_parametrized(module) + type(module).__name__
        raise TypeError(f"{name} is a {kind}; here only {', '.join(t.__name__ for t in types)} can be widened: replace or freeze it")
    if f"{name}.weight" in shared:
        raise TypeError(f"{name} shares its weight with another module; give each its own weight before splitting")
    return _tensor(module, "weight")


def _check_width(number: int, name: str, what: str, width: int, expected: int) -> None:
    if width != expected:
        raise ValueError(
            f"{name} has {width} {what}, but channel group {number} of the graph wants {expected}; trace the model again (find_groups)"
        )


def _check_split(split: Split, width: int, fan_in: int) -> None:
    where = f"split of channel group {split.group}"
    channels = split.channels.tolist()
    if split.channels.dtype != torch.int64 or split.channels.dim() != 1:
        raise ValueError(f"{where}: channels are {split.channels.dtype} of shape {list(split.channels.shape)}; give int64 of shape [n]")
    for channel, count in Counter(channels).items():
        if not 0 <= channel < width:
            raise ValueError(f"{where}: channel {channel} does not exist; the group has channels 0 to {width - 1}")
        if count > 1:
            raise ValueError(
                f"{where}: channel {channel} comes {count} times; a channel splits once per call, call again to split it further"
            )
    if split.directions.shape != (len(channels), fan_in):
        raise ValueError(f"{where}: directions have shape {list(split.directions.shape)}; give one row of {fan_in} weights per channel")
    if not split.directions.isfinite().all():
        raise ValueError(f"{where}: a direction holds NaN or infinity; score the channels again, or leave them out")
    norms = split.directions.norm(dim=1)
    if len(norms) and (worst := (norms - 1).abs().max().item()) > UNIT_NORM_TOLERANCE:
        raise ValueError(f"{where}: the length of a direction is {worst:.3g} away from 1; divide each by its length")
