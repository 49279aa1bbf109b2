"""Adding channels: a wider model, as offspring say (``growth.offspring``).

Rows are copied and moved before columns are shared: where a producer also reads a group that grows, a move is shared out on its
duplicated inputs together with the weights it moved.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from growth.entries import owner, take_columns, take_entries, take_rows, tensor_of
from growth.fitting import check_group, features, shared_weights
from growth.groups import ChannelGraph, ChannelGroup
from growth.layout import Axis, Family, Places
from growth.offspring import Offspring, Split, apart, check_offspring, check_split

__all__ = ["ChannelMap", "Offspring", "Split", "add_channels", "widen"]

Axes = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, slots=True)
class ChannelMap:
    """Where the entries of a wider (or narrower) model come from.

    ``sources`` holds, by state-dict name, the index of the old tensor's row (and column) for each row (and column) of the new one;
    None for an axis that did not change.  A name that is absent did not change at all.  ``unlike`` tells by the same names the rows
    (and columns) whose gradient is not like their source's: a row read by a share of 0 or less, a column with a share of 0.
    """

    sources: Mapping[str, Axes]
    unlike: Mapping[str, Axes] = field(default_factory=dict)

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of ``tensor``, laid out like the old entry ``name``, with rows and columns laid out like the new one."""
        rows, columns = self.sources.get(name, (None, None))
        taken = tensor.clone() if rows is None else tensor.index_select(0, rows.to(tensor.device))
        return taken if columns is None else taken.index_select(1, columns.to(tensor.device))

    def forget(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor``, laid out like the new entry, set to zero in place where it is unlike its source."""
        for axis, unlike in enumerate(self.unlike.get(name, ())):
            if unlike is not None and unlike.any():
                tensor.index_fill_(axis, unlike.nonzero().flatten().to(tensor.device), 0)
        return tensor


def widen(model: nn.Module, graph: ChannelGraph, splits: Sequence[Split], step: float) -> tuple[nn.Module, ChannelMap]:
    """A copy of ``model`` with the channels of ``splits`` split by ``step`` times their parent's norm, and where its entries came from.

    As ``add_channels``; also ValueError for a direction that is no unit vector.
    """
    for number, count in Counter(split.group for split in splits).items():
        if count > 1:
            raise ValueError(f"channel group {number} is split {count} times in one call; give all its channels in one Split")
    if not 0 <= step < float("inf"):
        raise ValueError(f"split step is {step}; it must be finite and at least 0")
    shared = shared_weights(model)
    for split in splits:
        group = group_of(graph, split.group)
        check_split(split, group, check_group(model, split.group, group, shared))
    return add_channels(model, graph, [apart(model, graph.groups[split.group], split, step) for split in splits])


def add_channels(model: nn.Module, graph: ChannelGraph, offspring: Sequence[Offspring]) -> tuple[nn.Module, ChannelMap]:
    """A copy of ``model`` with these offspring, and where its entries came from.

    A group may have several; each of its channels is a parent at most once.  ``model`` is untouched.  ValueError, with value, limit
    and remedy, for offspring that don't fit the graph or a graph that does not fit the model; TypeError for a module that can't be
    widened.
    """
    families = _families(model, graph, offspring)
    wider = copy.deepcopy(model)
    places = Places(graph, families)
    rows = {name: Axis.of(features(wider.get_submodule(name)), grown) for name, grown in places.rows.items()}
    columns = {name: Axis.of(tensor_of(wider.get_submodule(name), "weight").shape[1], grown) for name, grown in places.columns.items()}
    sources: dict[str, Axes] = {}
    unlike: dict[str, Axes] = {}
    for name, axis in rows.items():
        for tensor in take_rows(wider.get_submodule(name), axis.old):
            sources[f"{name}.{tensor}"], unlike[f"{name}.{tensor}"] = (axis.old, None), (axis.unlike_rows, None)
    for name, grown in places.scales.items():
        module, attribute = owner(wider, name)
        along = grown[0].place.axis
        axis, first = Axis.of(tensor_of(module, attribute).shape[along], grown), along == 0
        take_entries(wider, name, along, axis.old)
        sources[name] = (axis.old, None) if first else (None, axis.old)
        unlike[name] = (axis.unlike_rows, None) if first else (None, axis.unlike_rows)
    for family in families:
        _move_rows(wider, graph.groups[family.group], family)
        _set_statistics(wider, graph.groups[family.group], family, rows)
    for name, axis in columns.items():
        take_columns(wider.get_submodule(name), axis.old, axis.shares)
        key = f"{name}.weight"
        sources[key] = (sources.get(key, (None, None))[0], axis.old)
        unlike[key] = (unlike.get(key, (None, None))[0], axis.unlike_columns)
    for family in families:
        _add_reads(wider, graph.groups[family.group], family, rows, columns)
    return wider, ChannelMap(sources, unlike)


def _families(model: nn.Module, graph: ChannelGraph, offspring: Sequence[Offspring]) -> list[Family]:
    """Every offspring, checked, with its place behind those of its group that came before."""
    shared = shared_weights(model)
    families = []
    for number in dict.fromkeys(one.group for one in offspring):
        group, own = group_of(graph, number), [one for one in offspring if one.group == number]
        check_offspring(own, group, check_group(model, number, group, shared))
        end = group.width
        for one in own:
            appended = torch.arange(end, end := end + len(one.parents) * one.added).view(len(one.parents), one.added)
            families.append(Family(number, one, torch.cat([one.parents.cpu().unsqueeze(1), appended], 1)))
    return families


def group_of(graph: ChannelGraph, number: int) -> ChannelGroup:
    """ValueError if there is no such group."""
    if not 0 <= number < len(graph.groups):
        raise ValueError(f"channel group is {number}; the graph has groups 0 to {len(graph.groups) - 1}")
    return graph.groups[number]


def _move_rows(wider: nn.Module, group: ChannelGroup, family: Family) -> None:
    """Move every offspring's row away from its parent's."""
    weights = [tensor_of(wider.get_submodule(name), "weight").detach() for name in group.producers]
    pieces = torch.split(family.offspring.moves.flatten(0, 1), [weight[0].numel() for weight in weights], dim=1)
    for weight, piece in zip(weights, pieces, strict=True):
        weight[family.positions.flatten().to(weight.device)] += piece.to(weight).view(-1, *weight.shape[1:])


def _set_statistics(wider: nn.Module, group: ChannelGroup, family: Family, rows: Mapping[str, Axis]) -> None:
    for place, known in zip(group.passengers, family.offspring.statistics, strict=False):  # empty: all stay
        if known is not None:
            entries = rows[place.name].at(place, family.positions[:, 1:]).flatten()
            for name, value in zip(("running_mean", "running_var"), known, strict=True):
                buffer = tensor_of(wider.get_submodule(place.name), name)
                buffer[entries.to(buffer.device)] = value.flatten().to(buffer)


def _add_reads(wider: nn.Module, group: ChannelGroup, family: Family, rows: Mapping[str, Axis], columns: Mapping[str, Axis]) -> None:
    """Add what consumers read besides the shares; copies of a consumer's row read alike, but for new rows, which nothing reads yet."""
    for place, reads in zip(group.consumers, family.offspring.reads, strict=False):  # empty: nothing besides
        weight = tensor_of(wider.get_submodule(place.name), "weight").detach()
        added = reads.to(weight).movedim(2, 0).flatten(1, 3)  # [outputs, n * (m - 1) * columns, *kernel]
        if place.name in rows:
            axis = rows[place.name]
            added = added[axis.old.to(weight.device)]
            added[(axis.appended & (axis.shares == 0)).to(weight.device)] = 0
        weight[:, columns[place.name].at(place, family.positions[:, 1:]).flatten().to(weight.device)] += added
