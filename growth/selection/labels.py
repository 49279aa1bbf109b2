"""The exact method for chains and trees of groups: labels, pruned by dominance and by a Lagrangian bound.

A label is a choice for the groups of a part of the tree: its gain, its cost in every budget, and the candidate of the group where the
part hangs on the rest.  Of two labels of one candidate, the one that gains no more and costs no less is dropped, and so is any label
that can't reach the best known choice, whatever the rest does: gain - mu . cost + (best rest at prices mu) is too little.

Parts meet from the leaves to the root.  At most ``cap`` labels of a part are kept, those of the best bounds; the best bound of what
was dropped then says how far from the optimum the answer may be.  Caps rise until nothing is dropped, with the candidates that a better
choice has ruled out gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from growth.selection.bounds import Bound, best_bound, priced
from growth.selection.climbing import not_ruled_out
from growth.selection.problem import TOLERANCE, Answer, Floats, Positions, Problem
from growth.selection.tree import Tree, rooted

Index = NDArray[np.int64]

CAPS = (1_000, 20_000, 300_000)
_PRODUCT = 4_000_000  # labels formed at once
_NEARBY = 16  # with several budgets: how many cheaper labels each is compared with
_ROUNDING = 1e-12  # of a limit: costs are added in another order than a cost model adds them


def by_labels(problem: Problem, seconds: float) -> Answer:  # noqa: ARG001 - bounded by the caps; a clock would not repeat
    """The best choice for groups tied to no cycle."""
    whole, tree = rooted(problem)
    best, bound = whole.present, np.inf
    for cap in CAPS:
        left, best_left, _ = not_ruled_out(whole, tree, best)
        search = _Search(left, tree, best_bound(left, tree, best_left)[0], left.gain_of(best_left), cap)
        best = whole.positions(left.counts(search.best(best_left)))
        bound = min(bound, max(whole.gain_of(best), search.dropped))
        if bound <= whole.gain_of(best) + TOLERANCE:
            break
    return Answer(best[:-1], bound)


@dataclass(frozen=True, slots=True)
class _Labels:
    """Labels of a part of the tree that hangs on ``group``.  ``left`` and ``right`` are the labels each was made from."""

    group: int
    state: Index  # [labels]: the candidate of the group
    gain: Floats  # [labels]
    cost: Floats  # [labels, budgets]
    rest: Floats  # [candidates of the group]: the best that all else can add, at the bound's prices
    left: tuple[_Labels, Index] | None = None
    right: tuple[_Labels, Index] | None = None

    def __len__(self) -> int:
        return len(self.state)

    def take(self, chosen: NDArray[np.bool_] | Index) -> _Labels:
        left, right = (None if part is None else (part[0], part[1][chosen]) for part in (self.left, self.right))
        return replace(self, state=self.state[chosen], gain=self.gain[chosen], cost=self.cost[chosen], left=left, right=right)

    def read(self, at: int, choice: Positions) -> None:
        """Write the candidates that a label stands for."""
        choice[self.group] = self.state[at]
        for part in (self.left, self.right):
            if part is not None:
                part[0].read(int(part[1][at]), choice)


@dataclass(slots=True)
class _Search:
    problem: Problem
    tree: Tree
    bound: Bound
    known: float  # gain of the best known choice
    cap: int
    dropped: float = -np.inf  # the best bound of the labels that the cap dropped

    def best(self, known: Positions) -> Positions:
        """The choice of largest gain, and of those the cheapest by the first budget; ``known`` if there is none as good."""
        labels = self._part(self.tree.order[0])
        order = np.argsort(-labels.gain)
        while len(order):
            top = order[labels.gain[order] >= labels.gain[order[0]] - TOLERANCE]
            for at in top[np.argsort(labels.cost[top, 0], kind="stable")]:
                choice = self.problem.present
                labels.read(int(at), choice)
                if self.problem.allows(choice):
                    return choice
            self.dropped = max(self.dropped, float(labels.gain[top[0]]))  # too dear by rounding alone, so nothing is proven
            order = order[len(top) :]
        return known

    def _part(self, root: int) -> _Labels:
        """All labels of the tree, its parts joined in the order in which a walk leaves them."""
        done: dict[int, _Labels] = {}
        for group in reversed(self.tree.order):
            labels = self._alone(group)
            for child in self.tree.children[group]:
                labels = self._joined(labels, self._hung(done.pop(child), group))
            done[group] = labels
        return done[root]

    def _alone(self, group: int) -> _Labels:
        """One label per candidate."""
        gain, cost = self.problem.gain[group], self.problem.unary[group]
        rest = self.bound.each[group] - (gain - priced(cost, self.bound.prices))
        return self._pruned(_Labels(group, np.arange(len(gain)), gain, cost, rest))

    def _hung(self, child: _Labels, group: int) -> _Labels:
        """The labels of a child's part with every candidate of its parent, which counts for the layers between them alone."""
        pair, rest = self.problem.pair(child.group, group), self.bound.each[group] - self.bound.messages[child.group, group]
        value = child.gain - priced(child.cost, self.bound.prices)
        price, least = priced(pair, self.bound.prices), self.known - TOLERANCE
        rows = max(1, _PRODUCT // pair.shape[1])
        parts = []
        for start in range(0, max(1, len(child)), rows):
            states = child.state[start : start + rows]
            at, state = np.nonzero(value[start : start + rows, None] - price[states] + rest >= least)
            at = at + start
            cost = child.cost[at] + pair[child.state[at], state]
            parts.append(self._pruned(_Labels(group, state, child.gain[at], cost, rest, (child, at))))
        return self._pruned(_stacked(parts)) if len(parts) > 1 else parts[0]

    def _joined(self, labels: _Labels, more: _Labels) -> _Labels:
        """Every label with every one of another part that has the same candidate."""
        rest = labels.rest + more.rest - self.bound.each[labels.group]
        sizes = np.bincount(more.state, minlength=len(rest))
        order = np.argsort(more.state, kind="stable")
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        parts = []
        for chosen in _chunks(sizes[labels.state]):
            repeats = sizes[labels.state[chosen]]
            left = np.repeat(chosen, repeats)
            within = np.arange(len(left)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            right = order[first[labels.state[left]] + within]
            gain, cost = labels.gain[left] + more.gain[right], labels.cost[left] + more.cost[right]
            parts.append(self._pruned(_Labels(labels.group, labels.state[left], gain, cost, rest, (labels, left), (more, right))))
        return self._pruned(_stacked(parts)) if len(parts) > 1 else parts[0]

    def _pruned(self, labels: _Labels) -> _Labels:
        """Without those that can't fit, can't reach the best known choice or are dominated; at most ``cap``."""
        bound = labels.gain - priced(labels.cost, self.bound.prices) + labels.rest[labels.state]
        kept = (bound >= self.known - TOLERANCE) & (labels.cost <= self.problem.room + _ROUNDING).all(axis=1)
        labels, bound = labels.take(kept), bound[kept]
        order = _undominated(labels)
        labels, bound = labels.take(order), bound[order]
        if len(labels) > self.cap:
            ranked = np.argpartition(-bound, self.cap)
            self.dropped = max(self.dropped, float(bound[ranked[self.cap :]].max()))
            labels = labels.take(ranked[: self.cap])
        return labels


def _stacked(parts: list[_Labels]) -> _Labels:
    """Labels made in runs from the same ones, as one."""
    state, gain, cost = (np.concatenate([getattr(part, name) for part in parts]) for name in ("state", "gain", "cost"))
    left, right = _sources([part.left for part in parts]), _sources([part.right for part in parts])
    return replace(parts[0], state=state, gain=gain, cost=cost, left=left, right=right)


def _sources(parts: list[tuple[_Labels, Index] | None]) -> tuple[_Labels, Index] | None:
    known = [part for part in parts if part is not None]
    return (known[0][0], np.concatenate([index for _, index in known])) if known else None


def _chunks(sizes: Index) -> list[Index]:
    """Labels in runs that make about ``_PRODUCT`` new ones each."""
    run = np.cumsum(sizes) // _PRODUCT
    return np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(run)) + 1)


def _undominated(labels: _Labels) -> Index:
    """With one budget all that none dominates; with several, all that none of the labels next to them in cost does."""
    if labels.cost.shape[1] == 1:
        order = np.lexsort((-labels.gain, labels.cost[:, 0], labels.state))
        state, gain = labels.state[order], labels.gain[order]
        # A running maximum that starts anew at each state: gains lie in [0, 1].
        best = np.maximum.accumulate(gain + 2.0 * state)
        new = np.ones(len(order), dtype=np.bool_)
        new[1:] = (gain[1:] + 2.0 * state[1:] > best[:-1] + _ROUNDING) | (state[1:] != state[:-1])
        return order[new]
    order = np.lexsort((-labels.gain, labels.cost.sum(axis=1), labels.state))
    for _ in range(2):
        for step in range(1, min(_NEARBY, len(order) - 1) + 1):
            behind, before = order[step:], order[:-step]
            worse = (labels.state[behind] == labels.state[before]) & (labels.gain[behind] <= labels.gain[before])
            worse &= (labels.cost[behind] >= labels.cost[before]).all(axis=1)
            order = np.append(order[:step], behind[~worse])
    return order
