"""One ranking over all operators: for each group, the largest total gain for every number of added channels, and who makes it up.

A parent is taken at most once, by whichever of its candidates.  Candidates add one channel or more, so the best set for n channels is a
knapsack over parents, solved exactly by dynamic programming; where every candidate adds one, it is the n best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from growth.operators.base import Candidates, in_nats
from growth.scorers import GroupScore

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Option:
    """One candidate: what it gains, the channels it adds, and where it is found."""

    gain: float
    added: int
    source: int  # which of the group's ``Candidates``
    row: int


@dataclass(frozen=True, slots=True)
class Menu:
    """What one group can gain.

    ``totals[n]`` is the largest total gain (nats) with at most n added channels, so it never falls; ``totals[0]`` is 0.  Candidates
    that gain nothing are left out.
    """

    totals: Floats
    _candidates: tuple[Candidates, ...]
    _options: tuple[tuple[_Option, ...], ...]  # by parent
    _picks: NDArray[np.int16]  # [parents, totals]: which option of the parent, counted from 1, or 0

    def chosen(self, count: int) -> list[Candidates]:
        """The candidates that make up ``totals[count]`` (with fewer channels, where more gain nothing), best first for each operator."""
        taken: list[_Option] = []
        for options, picks in zip(reversed(self._options), reversed(self._picks), strict=True):
            if pick := picks[count]:
                taken.append(options[pick - 1])
                count -= taken[-1].added
        taken.sort(key=lambda option: (-option.gain, option.source, option.row))
        return [_subset(self._candidates[source], taken, source) for source in dict.fromkeys(option.source for option in taken)]


def menus(candidates: Sequence[Candidates], widths: Sequence[int], largest: Sequence[int]) -> list[Menu]:
    """One for each group, from the candidates of all operators for all groups; ``largest`` bounds the groups' ``widths``."""
    return [
        menu([one for one in candidates if one.offspring.group == group], most - width)
        for group, (width, most) in enumerate(zip(widths, largest, strict=True))
    ]


def channels_added(chosen: Sequence[Candidates], groups: int) -> list[int]:
    """By group."""
    counts = [0] * groups
    for one in chosen:
        counts[one.offspring.group] += len(one.offspring.parents) * one.offspring.added
    return counts


def ranked_by_index(candidates: Sequence[Candidates], scores: Sequence[GroupScore], step: float) -> list[Candidates]:
    """The same candidates with the gains that splits of their parents would have, per added channel.

    For operators without a gain of their own (twins, zero_output), on their own: the widths that the index finds, filled another way.
    """
    gains = [-0.5 * step**2 * in_nats(score.relative_index) for score in scores]
    return [replace(one, gain=one.offspring.added * gains[one.offspring.group][one.offspring.parents.cpu()]) for one in candidates]


def menu(candidates: Sequence[Candidates], most: int) -> Menu:
    """For the candidates of one group, of all operators, that may add at most ``most`` channels.

    ValueError for candidates whose gain is unknown, or not finite.
    """
    options = _by_parent(candidates)
    totals = np.zeros(max(0, min(most, sum(max(option.added for option in own) for own in options))) + 1)
    picks = np.zeros((len(options), len(totals)), dtype=np.int16)
    for own, picked in zip(options, picks, strict=True):
        before = totals.copy()
        for number, option in enumerate(own, 1):
            reached = before[: max(0, len(totals) - option.added)] + option.gain
            better = reached > totals[option.added :]
            totals[option.added :][better] = reached[better]
            picked[option.added :][better] = number
    return Menu(totals, tuple(candidates), tuple(options), picks)


def _by_parent(candidates: Sequence[Candidates]) -> list[tuple[_Option, ...]]:
    """The options that gain something, by parent; those of the best gains first, then in channel order."""
    found: dict[int, list[_Option]] = {}
    for source, one in enumerate(candidates):
        if one.gain is None:
            raise ValueError(f"the gain of {one.operator} is unknown, so it can't be ranked; choose its channels by a score instead")
        if not one.gain.isfinite().all():
            raise ValueError("a predicted gain is not finite; scores must be finite: lower the learning rate or the split step")
        for row, (parent, gain) in enumerate(zip(one.offspring.parents.tolist(), one.gain.tolist(), strict=True)):
            if gain > 0:
                found.setdefault(parent, []).append(_Option(gain, one.offspring.added, source, row))
    best = sorted(found, key=lambda parent: (-max(option.gain for option in found[parent]), parent))
    return [tuple(found[parent]) for parent in best]


def _subset(candidates: Candidates, taken: Sequence[_Option], source: int) -> Candidates:
    rows = torch.tensor([option.row for option in taken if option.source == source])
    assert candidates.gain is not None
    return Candidates(candidates.operator, candidates.offspring.take(rows), candidates.gain[rows])
