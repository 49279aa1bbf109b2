"""One ranking over all operators: for each group, the largest total gain for every number of added channels, and who makes it up.

A parent is taken at most once, by whichever of its candidates.  Candidates add one channel or more, so the best set for n channels is a
knapsack over parents, solved exactly by dynamic programming; where every candidate adds one, it is the n best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growth.operators.base import Candidates

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pick:
    """Candidates of one set that were chosen: ``source`` is the set's place among all sets, ``rows`` [n] are theirs in it."""

    source: int
    rows: Tensor


@dataclass(frozen=True, slots=True)
class _Option:
    """One candidate: what it gains, the channels it adds, and where it is found."""

    gain: float
    added: int
    source: int
    row: int


@dataclass(frozen=True, slots=True)
class Menu:
    """What one group can gain.

    ``totals[n]`` is the largest total gain (nats) with at most n added channels, so it never falls; ``totals[0]`` is 0.  Candidates
    that gain nothing are left out.
    """

    totals: Floats
    _options: tuple[tuple[_Option, ...], ...]  # by parent
    _picks: NDArray[np.int16]  # [parents, totals]: which option of the parent, counted from 1, or 0

    def chosen(self, count: int) -> list[Pick]:
        """The candidates that make up ``totals[count]`` (with fewer channels, where more gain nothing), best first in each set."""
        taken: list[_Option] = []
        for options, picks in zip(reversed(self._options), reversed(self._picks), strict=True):
            if pick := picks[count]:
                taken.append(options[pick - 1])
                count -= taken[-1].added
        taken.sort(key=lambda option: (-option.gain, option.source, option.row))
        sources = dict.fromkeys(option.source for option in taken)
        return [Pick(source, torch.tensor([option.row for option in taken if option.source == source])) for source in sources]


def menus(candidates: Sequence[Candidates], widths: Sequence[int], largest: Sequence[int]) -> list[Menu]:
    """One for each group, from the candidates of all operators for all groups; ``largest`` bounds the groups' ``widths``.

    ValueError for candidates whose gain is unknown, or not finite.
    """
    return [_menu(_by_parent(candidates, group), most - width) for group, (width, most) in enumerate(zip(widths, largest, strict=True))]


def picked(candidates: Sequence[Candidates], picks: Sequence[Pick]) -> list[Candidates]:
    """Those of ``candidates``."""
    return [candidates[pick.source].take(pick.rows) for pick in picks]


def channels_added(chosen: Sequence[Candidates], groups: int) -> tuple[int, ...]:
    """By group."""
    counts = [0] * groups
    for one in chosen:
        counts[one.offspring.group] += one.channels
    return tuple(counts)


def _menu(options: Sequence[tuple[_Option, ...]], most: int) -> Menu:
    """For the options of one group, which may add at most ``most`` channels."""
    totals = np.zeros(max(0, min(most, sum(max(option.added for option in own) for own in options))) + 1)
    picks = np.zeros((len(options), len(totals)), dtype=np.int16)
    for own, picked in zip(options, picks, strict=True):
        before = totals.copy()
        for number, option in enumerate(own, 1):
            reached = before[: max(0, len(totals) - option.added)] + option.gain
            better = reached > totals[option.added :]
            totals[option.added :][better] = reached[better]
            picked[option.added :][better] = number
    return Menu(totals, tuple(options), picks)


def _by_parent(candidates: Sequence[Candidates], group: int) -> list[tuple[_Option, ...]]:
    """The options of a group that gain something, by parent; those of the best gains first, then in channel order."""
    found: dict[int, list[_Option]] = {}
    for source, one in enumerate(candidates):
        if one.offspring.group != group:
            continue
        if one.gain is None:
            raise ValueError(f"{one.operator} claims no gain, so it can't be ranked; name it alone")
        if not one.gain.isfinite().all():
            raise ValueError("a predicted gain is not finite; scores must be finite: lower the learning rate or the split step")
        for row, (parent, gain) in enumerate(zip(one.offspring.parents.tolist(), one.gain.tolist(), strict=True)):
            if gain > 0:
                found.setdefault(parent, []).append(_Option(gain, one.offspring.added, source, row))
    best = sorted(found, key=lambda parent: (-max(option.gain for option in found[parent]), parent))
    return [tuple(found[parent]) for parent in best]
