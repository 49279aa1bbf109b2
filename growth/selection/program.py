"""The method for groups tied to cycles, by residual sums or concatenation: a mixed-integer program for HiGHS.

One binary per (group, candidate), and one continuous variable per pair of candidates, whose margins equal those binaries.  It is
small because a Lagrangian bound rules most candidates out first: those whose bound lies below what a first program reaches, over the few
candidates of each group that have the best bounds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from growth.selection.bounds import best_bound
from growth.selection.climbing import not_ruled_out
from growth.selection.problem import FAR, TOLERANCE, Answer, Floats, Positions, Problem

Rows = tuple[sparse.coo_array, Floats, Floats]  # matrix, lower and upper bound of each row

_FEW = 4  # candidates of a group in the first program
_CUTS = 20  # solutions that only rounding lets pass the limit, before giving up
_SCALE = 1e3  # the solver's tolerances are absolute, 1e-6: 1e-9 of the whole
_INFEASIBLE = 2  # status code of scipy.optimize.milp


class SelectionError(RuntimeError):
    """The solver gave no answer."""


def by_program(problem: Problem, seconds: float) -> Answer:
    """The best choice for any graph of groups, or the best found in about so many seconds."""
    deadline = time.monotonic() + seconds
    left, known, bound = not_ruled_out(problem, None, problem.present)
    few, known_few = _likeliest(left, known)
    known = left.positions(few.counts(_solved(few, known_few, deadline).positions))
    left, known, _ = not_ruled_out(left, None, known)
    last = _solved(left, known, deadline)
    return Answer(problem.positions(left.counts(last.positions)), min(bound, last.bound))


def _likeliest(problem: Problem, known: Positions) -> tuple[Problem, Positions]:
    """Of each group only the candidates of the best bounds, and the known one."""
    few, bound = problem.copy(), best_bound(problem, None, known)[0]
    for group, each in enumerate(bound.each):
        kept = np.zeros(len(each), dtype=np.bool_)
        kept[np.append(np.argsort(-each)[:_FEW], known[group])] = True
        few.keep(group, kept)
    return few, few.positions(problem.counts(known))


def _solved(problem: Problem, known: Positions, deadline: float) -> Answer:
    """The best choice by HiGHS, of those the cheapest by the first budget; at least as good as the known one."""
    program = _Program.of(problem, deadline)
    least = problem.gain_of(known)
    for _ in range(_CUTS):
        best = program.minimise(-program.gain, at_least=least - TOLERANCE)
        if best.x is None:  # out of time, or the known one is the best that is not cut off
            return Answer(known, least if best.status == _INFEASIBLE else np.inf)
        cheapest = program.minimise(program.cost[0], at_least=float(program.gain @ best.x) / _SCALE - TOLERANCE)
        positions = program.read(best if cheapest.x is None else cheapest)
        if problem.allows(positions):
            return Answer(positions, max(problem.gain_of(positions), -float(best.mip_dual_bound) / _SCALE))
        program.forbid(positions)
    raise SelectionError(f"{_CUTS} solutions in a row exceed a limit by rounding alone; change the limits a little")


@dataclass(slots=True)
class _Program:
    """The mixed-integer program.  Variables: the choices of all groups one after the other, then the pair variables, row by row."""

    sizes: list[int]  # candidates of each group
    gain: Floats  # [variables], all gain that there is = _SCALE
    cost: Floats  # [budgets, variables], a limit = _SCALE
    free: Floats  # [variables], upper bound: 0 where a layer has no cost, 1 elsewhere
    rows: list[Rows]
    deadline: float

    @classmethod
    def of(cls, problem: Problem, deadline: float) -> _Program:
        folded = problem.copy()
        folded.fold()
        budgets = len(problem.room)
        cost = np.concatenate([*folded.unary, *(pair.reshape(-1, budgets) for pair in folded.pairs.values())])
        gain = np.concatenate(folded.gain)
        gain = np.append(gain, np.zeros(len(cost) - len(gain)))
        free = (cost[:, 0] < FAR / 2).astype(np.float64)
        cost = _SCALE * np.where(free[:, None] > 0, cost, 0.0).T
        limits = [_row(row, -np.inf, _SCALE * room) for row, room in zip(cost, problem.room, strict=True)]
        return cls([len(one) for one in folded.added], _SCALE * gain, cost, free, [_consistency(folded), *limits], deadline)

    def minimise(self, objective: Floats, at_least: float) -> OptimizeResult:
        """Solve, with the scaled gain ``at_least`` this.  ``x`` of the result is None when nothing was found."""
        rows = [*self.rows, _row(self.gain, _SCALE * at_least, np.inf)]
        matrix = sparse.vstack([matrix for matrix, _, _ in rows], format="csr")
        low, high = (np.concatenate([row[side] for row in rows]) for side in (1, 2))
        return milp(
            objective,
            integrality=(np.arange(len(objective)) < sum(self.sizes)).astype(np.int64),
            bounds=Bounds(np.zeros(len(objective)), self.free),
            constraints=LinearConstraint(matrix, low, high),
            options={"mip_rel_gap": 1e-9, "time_limit": max(1.0, self.deadline - time.monotonic())},
        )

    def read(self, result: OptimizeResult) -> Positions:
        """The candidate of each group in a solution."""
        starts = np.cumsum([0, *self.sizes])
        return np.array([result.x[start : start + size].argmax() for start, size in zip(starts[:-1], self.sizes, strict=True)])

    def forbid(self, positions: Positions) -> None:
        """Cut off one choice: not all of its binaries together."""
        row = np.zeros(len(self.gain))
        row[np.cumsum([0, *self.sizes[:-1]]) + positions] = 1
        self.rows.append(_row(row, -np.inf, len(positions) - 1.0))


def _row(coefficients: Floats, low: float, high: float) -> Rows:
    return sparse.coo_array(coefficients[None, :]), np.array([low]), np.array([high])


def _consistency(problem: Problem) -> Rows:
    """One candidate per group; the margins of every pair variable are the choices of its two groups."""
    sizes = [len(added) for added in problem.added]
    starts = np.cumsum([0, *sizes])
    shapes = {edge: pair.shape[:2] for edge, pair in problem.pairs.items()}
    blocks: list[sparse.coo_array] = []
    column, columns = int(starts[-1]), int(starts[-1]) + sum(rows * across for rows, across in shapes.values())

    def block(rows: int, *parts: tuple[NDArray[np.int64], NDArray[np.int64], float]) -> None:
        at, to, value = (np.concatenate(x) for x in zip(*((r, c, np.full(len(r), v)) for r, c, v in parts), strict=True))
        blocks.append(sparse.coo_array((value, (at, to)), shape=(rows, columns)))

    for start, size in zip(starts[:-1], sizes, strict=True):
        block(1, (np.zeros(size, dtype=np.int64), start + np.arange(size), 1.0))
    for (g, h), shape in shapes.items():
        variables = column + np.arange(shape[0] * shape[1]).reshape(shape)
        row, col = np.indices(shape)
        for group, margin in ((g, row), (h, col)):
            own = np.arange(sizes[group])
            block(sizes[group], (own, starts[group] + own, -1.0), (margin.ravel(), variables.ravel(), 1.0))
        column += variables.size
    right = np.append(np.ones(len(sizes)), np.zeros(sum(b.shape[0] for b in blocks) - len(sizes)))
    return sparse.vstack(blocks, format="coo"), right, right
