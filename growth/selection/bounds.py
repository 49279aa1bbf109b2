"""Upper bounds on the gain within the limits, for all choices and for each candidate: Lagrangian relaxation, solved by messages.

With a price ``mu`` per budget instead of a limit, a choice is worth a sum over groups and pairs,

    sum_g own_g + sum_(g,h) pair_gh + mu . room      with own_g = gain_g - mu . unary_g and pair_gh = - mu . cost_gh

whose maximum bounds the best gain for any mu.  The belief of a group is its own worth and all messages into it.

On a tree, a message is the best of all that lies behind it, and a belief the best of all with that candidate: dynamic programming.

On other graphs, sequential reweighted messages (TRW-S: Kolmogorov 2006, "Convergent tree-reweighted message passing for energy
minimization") bound the maximum by that of a sum over chains that run along an order of the groups.  A group lies on as many chains as
it has neighbours before it, or after it, whichever is more, and shares its belief among them.  After a sweep along the order, only
shares of groups where chains end count; and a candidate loses, of the bound before a sweep, what its belief lacks when its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog

from growth.selection.problem import TOLERANCE, Floats, Positions, Problem
from growth.selection.tree import Tree

_PRICES = 40  # prices tried
_SWEEPS, LAST_SWEEPS = 3, 25  # through a graph with cycles: at each price, and at the best
_LARGEST_PRICE = 1e4  # total gains per limit

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
    cuts, best, messages = [_cut(problem, known, problem.gain_of(known), np.zeros_like(problem.room))], None, None
    choices = [known]
    for _ in range(_PRICES):
        prices, promised = _cheapest_prices(cuts)
        bound = relaxed(problem, prices, tree, messages, _SWEEPS)
        best = bound if best is None or bound.value < best.value else best
        cut = _cut(problem, bound.choice, bound.value, prices)
        if best.value <= promised + TOLERANCE or any((cut == known).all() for known in cuts):
            break
        cuts.append(cut)
        choices.append(bound.choice)
        messages = None if tree else bound.messages
    assert best is not None
    return (best if tree else relaxed(problem, best.prices, None, best.messages, LAST_SWEEPS)), choices


def relaxed(problem: Problem, prices: Floats, tree: Tree | None, messages: Messages | None = None, sweeps: int = 1) -> Bound:
    """The bound at these prices; ``messages`` from earlier prices are a start."""
    own = [gain - priced(unary, prices) for gain, unary in zip(problem.gain, problem.unary, strict=True)]
    pairs = {edge: priced(pair, -prices) for edge, pair in problem.pairs.items()}
    graph = _Graph(own, pairs, tree.order if tree else range(len(own)), bool(tree))
    messages = graph.start() if messages is None else dict(messages)
    for _ in range(1 if tree else sweeps):
        graph.sweep(messages)
    constant = float(prices @ problem.room)
    if tree:
        beliefs = [graph.belief(group, messages) for group in range(len(own))]
        value, each = float(beliefs[tree.order[0]].max()), beliefs
    else:
        value = graph.ends(messages)
        beliefs = graph.sweep_back(dict(messages))
        each = [value + belief - belief.max() for belief in beliefs]
    return Bound(value + constant, [one + constant for one in each], graph.decode(messages), prices, messages)


def priced(cost: Floats, prices: Floats) -> Floats:
    """[..., budgets] -> [...]; a matrix product over so short an axis is five times as slow."""
    total: Floats = cost[..., 0] * prices[0]
    for budget in range(1, len(prices)):
        total += cost[..., budget] * prices[budget]
    return total


@dataclass(slots=True)
class _Graph:
    """Profits at fixed prices, and the messages along them."""

    own: list[Floats]
    pairs: dict[tuple[int, int], Floats]
    order: Sequence[int]
    exact: bool  # a tree: a message then says all that lies behind it
    earlier: list[list[int]] = field(init=False)  # neighbours of each group before it in the order
    later: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        place = {group: at for at, group in enumerate(self.order)}
        self.earlier, self.later = [[] for _ in self.own], [[] for _ in self.own]
        for edge in self.pairs:
            first, last = sorted(edge, key=place.__getitem__)
            self.later[first].append(last)
            self.earlier[last].append(first)

    def start(self) -> Messages:
        return {edge: np.zeros(len(self.own[edge[1]])) for g, h in self.pairs for edge in ((g, h), (h, g))}

    def pair(self, group: int, other: int) -> Floats:
        return self.pairs[group, other] if group < other else self.pairs[other, group].T

    def belief(self, group: int, messages: Messages) -> Floats:
        total: Floats = np.sum([self.own[group], *(messages[other, group] for other in self.earlier[group] + self.later[group])], axis=0)
        return total

    def sweep(self, messages: Messages) -> None:
        """From the last group of the order to the first, and back."""
        self.sweep_back(messages)
        for group in self.order:
            self._send(group, self.later[group], messages)

    def sweep_back(self, messages: Messages) -> list[Floats]:
        """From the last group of the order to the first; the belief of each when its turn comes."""
        beliefs = [self.own[0]] * len(self.own)
        for group in reversed(self.order):
            beliefs[group] = self._send(group, self.earlier[group], messages)
        return beliefs

    def _send(self, group: int, to: list[int], messages: Messages) -> Floats:
        """Messages from the group; its belief."""
        belief = self.belief(group, messages)
        share = belief if self.exact else belief / self._chains(group)
        for other in to:
            messages[group, other] = ((share - messages[other, group])[:, None] + self.pair(group, other)).max(axis=0)
        return belief

    def _chains(self, group: int) -> int:
        return max(1, len(self.earlier[group]), len(self.later[group]))

    def ends(self, messages: Messages) -> float:
        """The bound after a sweep."""
        found = 0.0
        for group in self.order:
            ending = 1 - len(self.later[group]) / self._chains(group)
            found += ending * float(self.belief(group, messages).max()) if ending else 0.0
        return found

    def decode(self, messages: Messages) -> Positions:
        """The best candidate of each group in order, given those before it, by what messages say of those after it."""
        choice = np.zeros(len(self.own), dtype=np.int64)
        for group in self.order:
            given = [self.pair(group, other)[:, choice[other]] for other in self.earlier[group]]
            choice[group] = np.sum([self.own[group], *given, *(messages[other, group] for other in self.later[group])], axis=0).argmax()
        return choice


def _cut(problem: Problem, choice: Positions, value: float, prices: Floats) -> Floats:
    """A line below the bound as a function of the prices: its value without any, and its slope.  (Below on a tree, where the choice
    reaches the bound; on other graphs its slope is a guess, and only the next prices to try hang on it.)
    """
    left = problem.room - problem.cost_of(choice)
    return np.append(value - prices @ left, left)


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
    assert result.x is not None  # bounded: the first cut alone bounds it
    return result.x[:-1], float(result.x[-1])
