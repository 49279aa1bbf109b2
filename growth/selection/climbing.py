"""Good choices that fit, quickly, and what they rule out.  Everything that is proven is proven against the best of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from growth.selection.bounds import LAST_SWEEPS, Bound, best_bound, relaxed
from growth.selection.problem import TOLERANCE, Floats, Positions, Problem
from growth.selection.tree import Tree

_ENTRIES = 500_000  # of all pair tables: where trying prices on all of them begins to take long


def not_ruled_out(problem: Problem, tree: Tree | None, known: Positions) -> tuple[Problem, Positions, float]:
    """The problem without the candidates that can't be part of a choice better than the best known one; that one, and the bound."""
    bound, choices = _bound(problem, tree, known)
    best = best_known(problem, [known, *choices])
    counts, left = problem.counts(best), problem.copy()
    for group, each in enumerate(bound.each):
        kept = each >= problem.gain_of(best) - TOLERANCE
        kept[best[group]] = True
        left.keep(group, kept)
    return left, left.positions(counts), bound.value


def _bound(problem: Problem, tree: Tree | None, known: Positions) -> tuple[Bound, list[Positions]]:
    """The best bound; of many candidates, at the prices that are best for an even choice of them."""
    entries = sum(len(problem.added[g]) * len(problem.added[h]) for g, h in problem.pairs)
    every = int((entries / _ENTRIES) ** 0.5)
    if every < 2:
        return best_bound(problem, tree, known)
    few = problem.copy()
    for group, added in enumerate(problem.added):
        few.keep(group, (np.arange(len(added)) % every == 0) | (np.arange(len(added)) == known[group]))
    bound, choices = best_bound(few, tree, few.positions(problem.counts(known)))
    exact = relaxed(problem, bound.prices, tree, sweeps=LAST_SWEEPS)
    return exact, [exact.choice, *(problem.positions(few.counts(choice)) for choice in choices)]


def best_known(problem: Problem, choices: Sequence[Positions], tried: int = 4) -> Positions:
    """The best of the ``choices`` that fit, each widened by one group after the other while that fits; the present widths fit."""
    fitting = [choice for choice in choices if problem.allows(choice)]
    fitting.sort(key=problem.gain_of)
    return max([climbed(problem, choice) for choice in fitting[-tried:]], key=problem.gain_of, default=problem.present)


def climbed(problem: Problem, choice: Positions) -> Positions:
    """While some group can gain more within the limits, the one that gains most does."""
    choice, neighbours = choice.copy(), problem.neighbours()
    while True:
        left = problem.room - problem.cost_of(choice)
        moves = [_move(problem, choice, left, group, neighbours[group]) for group in range(len(choice))]
        gain, group, to = max((gain, group, to) for group, (gain, to) in enumerate(moves))
        changed = choice.copy()
        changed[group] = to
        if gain <= TOLERANCE or not problem.allows(changed):
            return choice
        choice = changed


def _move(problem: Problem, choice: Positions, left: Floats, group: int, neighbours: Sequence[int]) -> tuple[float, int]:
    """The largest gain of changing one group alone, and its candidate."""
    cost = problem.unary[group].copy()
    for other in neighbours:
        cost += problem.pair(group, other)[:, choice[other]]
    affordable = np.flatnonzero((cost - cost[choice[group]] <= left).all(axis=1))
    best = int(affordable[-1]) if len(affordable) else int(choice[group])
    return float(problem.gain[group][best] - problem.gain[group][choice[group]]), best
