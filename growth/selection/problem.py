"""The choice of widths as numbers: what every candidate gains, and what it costs in every budget.

A candidate of a group is a number of added channels.  Gains are divided by the largest total, costs by their limits, so that one
tolerance fits all.  A layer that a cost model refuses costs ``FAR``: more than any limit allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]  # [groups]: which candidate of each group

FAR = 100.0  # in limits
TOLERANCE = 1e-9  # of the largest total gain: what counts as equal
_REACH = (1, 2, 4, 8)  # how many candidates further a dominating one is looked for


@dataclass(frozen=True, slots=True)
class Answer:
    """A choice that fits, and a proven upper bound on the scaled gain of any."""

    positions: Positions
    bound: float


@dataclass(slots=True)
class Problem:
    """Maximise the summed gains within the ``room`` of every budget.  The first candidate of a group is its present width."""

    added: list[NDArray[np.int64]]  # [candidates of g]: channels added, rising from 0
    gain: list[Floats]  # [candidates of g], rising
    unary: list[Floats]  # [candidates of g, budgets]
    pairs: dict[tuple[int, int], Floats]  # g < h: [candidates of g, candidates of h, budgets]
    room: Floats  # [budgets]: the limits, less what no width changes
    fits: Callable[[Sequence[int]], bool]  # whether a network with so many channels added meets every limit, exactly

    @property
    def present(self) -> Positions:
        return np.zeros(len(self.added), dtype=np.int64)

    def counts(self, positions: Positions) -> tuple[int, ...]:
        """Channels added per group."""
        return tuple(int(added[at]) for added, at in zip(self.added, positions, strict=True))

    def positions(self, counts: Sequence[int]) -> Positions:
        """The candidates that add so many channels."""
        return np.array([np.searchsorted(added, count) for added, count in zip(self.added, counts, strict=True)])

    def allows(self, positions: Positions) -> bool:
        """Whether this choice meets every limit."""
        return self.fits(self.counts(positions))

    def gain_of(self, positions: Positions) -> float:
        return float(sum(gain[at] for gain, at in zip(self.gain, positions, strict=True)))

    def cost_of(self, positions: Positions) -> Floats:
        """[budgets]"""
        cost: Floats = np.sum([unary[at] for unary, at in zip(self.unary, positions, strict=True)], axis=0)
        for (g, h), pair in self.pairs.items():
            cost = cost + pair[positions[g], positions[h]]
        return cost

    def neighbours(self) -> list[list[int]]:
        """Of each group: the groups that share a layer with it."""
        found: list[list[int]] = [[] for _ in self.added]
        for g, h in self.pairs:
            found[g].append(h)
            found[h].append(g)
        return found

    def pair(self, group: int, other: int) -> Floats:
        """Their costs, the candidates of ``group`` along the first axis."""
        return self.pairs[group, other] if group < other else self.pairs[other, group].swapaxes(0, 1)

    def copy(self) -> Problem:
        """One whose candidates can be dropped without touching these."""
        return Problem(list(self.added), list(self.gain), list(self.unary), dict(self.pairs), self.room, self.fits)

    def keep(self, group: int, chosen: NDArray[np.bool_]) -> None:
        """Drop the other candidates of a group."""
        if chosen.all():
            return
        self.added[group], self.gain[group], self.unary[group] = (
            self.added[group][chosen],
            self.gain[group][chosen],
            self.unary[group][chosen],
        )
        for g, h in self.pairs:
            if group in (g, h):
                self.pairs[g, h] = np.compress(chosen, self.pairs[g, h], axis=0 if group == g else 1)

    def drop_dominated(self) -> None:
        """Drop candidates that a larger one of the group can replace at no extra cost, whatever its neighbours' widths; the present
        width stays.  A group that got smaller can make its neighbours' candidates dominated.
        """
        neighbours, size = self.neighbours(), -1
        while size != (size := sum(map(len, self.added))):
            for group in range(len(self.added)):
                for reach in _REACH:
                    self.keep(group, self._undominated(group, neighbours[group], reach))

    def _undominated(self, group: int, neighbours: Sequence[int], reach: int) -> NDArray[np.bool_]:
        """Which candidates cost less, somewhere, than the one ``reach`` further."""
        kept: NDArray[np.bool_] = np.less(self.unary[group][:, 0], FAR / 2)
        kept[0] = True
        if len(kept) > reach:
            extra = self.unary[group][reach:] - self.unary[group][:-reach]
            for other in neighbours:
                pair = self.pair(group, other)
                extra = extra + (pair[reach:] - pair[:-reach]).max(axis=1)
            kept[1:-reach] &= np.greater(extra.max(axis=1), 0)[1:]
        return kept

    def fold(self) -> None:
        """Count a pair whose one group has a single candidate left as a cost of the other group."""
        for g, h in list(self.pairs):
            if 1 in (len(self.added[g]), len(self.added[h])):
                pair, to, axis = self.pairs.pop((g, h)), *((h, 0) if len(self.added[g]) == 1 else (g, 1))
                self.unary[to] = self.unary[to] + pair.take(0, axis=axis)
