"""Where the entries of growing axes come to lie: each group's appended channels come right after its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from growth.groups import ChannelGraph, Place
from growth.offspring import Offspring


@dataclass(frozen=True, slots=True)
class Family:
    """Offspring of one group with their positions in it."""

    group: int
    offspring: Offspring
    positions: Tensor  # [n, m] among the group's new channels


@dataclass(frozen=True, slots=True)
class Grown:
    """A place in a module's axis, the width of its group, and that group's families."""

    place: Place
    width: int
    families: list[Family]


class Places:
    """What grows: among the rows and among the columns of modules, by module, and in scales, by parameter."""

    def __init__(self, graph: ChannelGraph, families: Sequence[Family]) -> None:
        self.rows: dict[str, list[Grown]] = {}
        self.columns: dict[str, list[Grown]] = {}
        self.scales: dict[str, list[Grown]] = {}
        for number in dict.fromkeys(family.group for family in families):
            group, own = graph.groups[number], [family for family in families if family.group == number]
            for found, places in ((self.rows, group.rows), (self.columns, group.consumers), (self.scales, group.scales)):
                for place in places:
                    found.setdefault(place.name, []).append(Grown(place, group.width, own))


@dataclass(frozen=True, slots=True)
class Axis:
    """A module's axis after growth: each group's appended entries come right after its own."""

    old: Tensor  # [entries] int64, the old entry that each is a copy of
    shares: Tensor  # [entries] float64, 1 where nothing grew
    appended: Tensor  # [entries] bool
    starts: Mapping[Place, int]

    @classmethod
    def of(cls, size: int, grown: Sequence[Grown]) -> Axis:
        pieces, starts, start, end = [], {}, 0, 0
        for one in sorted(grown, key=lambda one: one.place.offset):
            place, columns = one.place, torch.arange(one.place.columns)
            pieces.append(torch.arange(start, place.offset))
            starts[place] = end = end + len(pieces[-1])
            parents = torch.cat([family.positions[:, :1].expand(-1, family.offspring.added).flatten() for family in one.families])
            start = place.offset + one.width * place.columns
            pieces += [torch.arange(place.offset, start), (place.offset + parents.unsqueeze(1) * place.columns + columns).flatten()]
            end += len(pieces[-2]) + len(pieces[-1])
        old = torch.cat([*pieces, torch.arange(start, size)])
        axis = cls(old, torch.ones(len(old), dtype=torch.float64), torch.zeros(len(old), dtype=torch.bool), starts)
        for one in grown:
            for family in one.families:
                axis.shares[axis.at(one.place, family.positions)] = family.offspring.shares.to("cpu", torch.float64).unsqueeze(2)
                axis.appended[axis.at(one.place, family.positions[:, 1:])] = True
        return axis

    def at(self, place: Place, positions: Tensor) -> Tensor:
        """Entries that hold the channels at these positions of the place's group, [*positions, columns]."""
        return self.starts[place] + positions.unsqueeze(-1) * place.columns + torch.arange(place.columns)

    @property
    def unlike_rows(self) -> Tensor:
        return self.appended & (self.shares <= 0)

    @property
    def unlike_columns(self) -> Tensor:
        return self.appended & (self.shares == 0)
