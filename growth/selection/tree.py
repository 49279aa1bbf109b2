"""Groups as a rooted tree, where layers tie them to no cycle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from growth.selection.problem import Problem


@dataclass(frozen=True, slots=True)
class Tree:
    """``order`` begins with the root; ``parent`` of the root is itself; ``children``, those with the most below them first."""

    order: list[int]
    parent: list[int]
    children: list[list[int]]


def rooted(problem: Problem) -> tuple[Problem, Tree]:
    """The tree of a forest, under one more group, with a single candidate that costs nothing, which ties its parts together.

    ValueError for groups tied to a cycle.
    """
    tied = replace(problem.copy(), fits=lambda counts: problem.fits(counts[:-1]))
    root, budgets = len(problem.added), len(problem.room)
    tied.added.append(np.zeros(1, dtype=np.int64))
    tied.gain.append(np.zeros(1))
    tied.unary.append(np.zeros((1, budgets)))
    neighbours = problem.neighbours()
    order, parent = [root], [-1] * root + [root]
    for end in sorted(range(root), key=lambda group: len(neighbours[group])):  # an end of a chain before its middle
        if parent[end] < 0:
            parent[end] = root
            tied.pairs[end, root] = np.zeros((len(problem.added[end]), 1, budgets))
            _walk(end, neighbours, order, parent)
    return tied, Tree(order, parent, _children(order, parent))


def is_forest(problem: Problem) -> bool:
    """Whether no layers tie groups to a cycle."""
    try:
        rooted(problem)
    except ValueError:
        return False
    return True


def _walk(start: int, neighbours: list[list[int]], order: list[int], parent: list[int]) -> None:
    """Everything that can be reached, parents before their children."""
    waiting = [start]
    while waiting:
        group = waiting.pop()
        order.append(group)
        for other in neighbours[group]:
            if other == parent[group]:
                continue
            if parent[other] >= 0:
                raise ValueError(f"groups {group} and {other} lie on a cycle")
            parent[other] = group
            waiting.append(other)


def _children(order: list[int], parent: list[int]) -> list[list[int]]:
    below = [1] * len(parent)
    for group in order[:0:-1]:
        below[parent[group]] += below[group]
    children: list[list[int]] = [[] for _ in parent]
    for group in sorted(order[1:], key=lambda group: -below[group]):
        children[parent[group]].append(group)
    return children
