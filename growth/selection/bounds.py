"""Upper bounds on the gain within the limits, for all choices and for each candidate: Lagrangian relaxation, solved by messages.

With a price ``mu`` per budget instead of a limit, the best choice is a sum over groups and pairs, which messages along the pairs solve:
exactly on a forest (dynamic programming), and as a bound on any graph (sequential reweighted messages, Kolmogorov 2006, "Convergent
tree-reweighted message passing").  For any prices and any messages

    best gain  <=  sum_g max belief_g  +  sum_(g,h) max slack_gh  +  mu . room

with belief_g = gain_g - mu . unary_g + messages into g, and slack_gh = - mu . pair_gh - both messages along the pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from growth.selection.problem import TOLERANCE, Floats, Positions, Problem
from growth.selection.tree import Tree

_PRICES = 40  # prices tried
_SWEEPS, _LAST_SWEEPS = 3, 25  # through a graph with cycles: at each price, and at the best
_LARGEST_PRICE = 1e4  # total gains per limit
_ROUNDING = 1e-12

Messages = dict[tuple[int, int], Floats]  # from, to: [candidates of to]


@dataclass(frozen=True, slots=True)
class Bound:
    """``each`` bounds the gain of all choices with that candidate.  ``choice`` is what the relaxation likes best: it may not fit."""

    value: float
    each: list[Floats]  # [candidates of g]
    choice: Positions
    prices: Floats  # [budgets]
    messages: Messages


def best_bound(problem: Problem, tree: Tree | None, known: Positions) -> tuple[Bound, list[Positions]]:
    """The bound at the best prices found, and all choices that the prices led to.  ``known`` is one that fits."""
    cuts, best, messages = [_cut(problem, known)], None, None
    choices = [known]
    for _ in range(_PRICES):
        prices, promised = _cheapest_prices(cuts)
        bound = relaxed(problem, prices, tree, messages, _SWEEPS)
        best = bound if best is None or bound.value < best.value else best
        cut = _cut(problem, bound.choice)
        if best.value <= promised + TOLERANCE or any((cut == known).all() for known in cuts):
            break
        cuts.append(cut)
        choices.append(bound.choice)
        messages = None if tree else bound.messages
    assert best is not None
    return (best if tree else relaxed(problem, best.prices, None, best.messages, _LAST_SWEEPS)), choices


def relaxed(problem: Problem, prices: Floats, tree: Tree | None, messages: Messages | None = None, sweeps: int = 1) -> Bound:
    """The bound at these prices; ``messages`` from earlier prices are a start."""
    own = [gain - unary @ prices for gain, unary in zip(problem.gain, problem.unary, strict=True)]
    pairs = {edge: -(pair @ prices) for edge, pair in problem.pairs.items()}
    graph = _Graph(own, pairs, tree.order if tree else range(len(own)), bool(tree))
    messages = graph.start() if messages is None else dict(messages)
    for _ in range(1 if tree else sweeps):
        graph.sweep(messages)
    beliefs = [graph.belief(group, messages) for group in range(len(own))]
    constant = float(prices @ problem.room)
    if tree:
        return Bound(float(beliefs[tree.order[0]].max()) + constant, [b + constant for b in beliefs], graph.decode(messages), prices, messages)
    value, each = graph.loose(beliefs, messages)
    return Bound(value + constant, [one + constant for one in each], graph.decode(messages), prices, messages)


@dataclass(slots=True)
class _Graph:
    """Profits at fixed prices, and the messages along them."""

    own: list[Floats]
    pairs: dict[tuple[int, int], Floats]
    order: Sequence[int]
    exact: bool  # a tree: a message then says all that lies behind it
    _place: list[int] = None  # type: ignore[assignment]
    _near: list[list[int]] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self._place = [0] * len(self.own)
        for place, group in enumerate(self.order):
            self._place[group] = place
        self._near = [[] for _ in self.own]
        for g, h in self.pairs:
            self._near[g].append(h)
            self._near[h].append(g)

    def start(self) -> Messages:
        return {edge: np.zeros(len(self.own[edge[1]])) for g, h in self.pairs for edge in ((g, h), (h, g))}

    def pair(self, group: int, other: int) -> Floats:
        return self.pairs[group, other] if group < other else self.pairs[other, group].T

    def belief(self, group: int, messages: Messages) -> Floats:
        total = self.own[group].copy()
        for other in self._near[group]:
            total += messages[other, group]
        return total

    def sweep(self, messages: Messages) -> None:
        """From the last group of the order to the first, and back."""
        for earlier in (True, False):
            for group in reversed(self.order) if earlier else self.order:
                later = [(self._place[other] < self._place[group]) == earlier for other in self._near[group]]
                weight = 1.0 if self.exact else 1 / max(1, sum(later), len(later) - sum(later))
                share = weight * self.belief(group, messages)
                for other, forward in zip(self._near[group], later, strict=True):
                    if forward:
                        messages[group, other] = ((share - messages[other, group])[:, None] + self.pair(group, other)).max(axis=0)

    def decode(self, messages: Messages) -> Positions:
        """The best candidate of each group in order, given those before it, by what messages say of those after it."""
        choice = np.zeros(len(self.own), dtype=np.int64)
        for group in self.order:
            score = self.own[group].copy()
            for other in self._near[group]:
                before = self._place[other] < self._place[group]
                score += self.pair(group, other)[:, choice[other]] if before else messages[other, group]
            choice[group] = score.argmax()
        return choice

    def loose(self, beliefs: list[Floats], messages: Messages) -> tuple[float, list[Floats]]:
        """The sum of all maxima, and for each candidate the sum with its own parts in place of their maxima."""
        value = sum(float(belief.max()) for belief in beliefs)
        lost = [belief.max() - belief for belief in beliefs]
        for g, h in self.pairs:
            slack = self.pairs[g, h] - messages[h, g][:, None] - messages[g, h]
            top = float(slack.max())
            value += top
            lost[g] += top - slack.max(axis=1)
            lost[h] += top - slack.max(axis=0)
        return value, [value - one for one in lost]


def _cut(problem: Problem, choice: Positions) -> Floats:
    """What the choice proves of the bound as a function of the prices: gain, and what is left of each room."""
    return np.array([problem.gain_of(choice), *(problem.room - problem.cost_of(choice))])


def _cheapest_prices(cuts: Sequence[Floats]) -> tuple[Floats, float]:
    """The prices where the largest of all cuts is lowest, and how low that is."""
    known = np.array(cuts)
    budgets = known.shape[1] - 1
    result = linprog(
        np.append(np.zeros(budgets), 1.0),
        A_ub=np.column_stack([known[:, 1:], -np.ones(len(known))]),
        b_ub=-known[:, 0],
        bounds=[(0, _LARGEST_PRICE)] * budgets + [(None, None)],
    )
    return result.x[:-1], float(result.x[-1])
