"""How many channels to add to each group: the largest predicted gain that a cost limit allows, by mixed-integer programming.

How a group adds ``n`` channels is settled beforehand, by what gains most (``growth.operators.choice``), so the choice is one width per
group.  Cost models are additive over layers, and a layer touches at most two groups (the one it reads, the one it writes), hence

    maximise  sum_g gain_g(w_g)   subject to   constant + sum_g unary_g(w_g) + sum_(g,h) pair_gh(w_g, w_h) <= limit

which is exact for every cost table, staircases included: no cost per channel is assumed.  Written for HiGHS with one binary per
(group, width), and one continuous variable per pair of widths whose margins equal those binaries.

A width is dropped beforehand when another width of its group gains at least as much and costs at most as much whatever its
neighbours' widths (exact; on a staircase only the edges survive).  Two limits make the result near-exact for wide groups: beyond
``MAX_TABULATED`` widths a group is first reduced with its neighbours at their present widths, and at most ``MAX_CHOICES`` widths of
a group, evenly spread with both ends, go to the solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from costs.model import Cost, CostModel
from costs.shapes import Unit, Wiring
from costs.table import NoCost

Floats = NDArray[np.float64]
Rows = tuple[sparse.coo_array, Floats, Floats]  # matrix, lower and upper bound of each row

MAX_TABULATED = 64
MAX_CHOICES = 24
_CUTS = 20  # solutions that only rounding lets pass the limit, before giving up
_SCALE = 1e3  # the solver's tolerances are absolute, 1e-6: 1e-9 of the whole
_TOLERANCE = 1e-6
_INFEASIBLE = 2  # status code of scipy.optimize.milp


@dataclass(frozen=True, slots=True)
class Selection:
    """How many channels each group adds.  ``gap`` is the relative optimality gap that the solver proved (0: none of the widths that went
    to the solver is better).
    """

    counts: tuple[int, ...]
    widths: tuple[int, ...]
    gain: float
    cost: Cost
    gap: float


class SelectionError(RuntimeError):
    """The solver gave no answer."""


def select(totals: Sequence[Floats], wiring: Wiring, cost_model: CostModel, limit: float, seconds: float = 600.0) -> Selection:
    """The widths of largest total gain whose network costs at most ``limit``; among equal gains, the cheapest.

    ``totals[g][n]`` is the largest gain (loss units) of adding at most ``n`` channels to group ``g``: 0 at first, never falling.  A
    number that gains no more than the one before it is no candidate, nor is a width without a cost.  ``seconds`` bounds the solver;
    when it runs out, the best widths found come back with the gap proven so far (mobilenet_v2 at full width takes 4 s; a result that
    hangs on the clock is not repeatable).

    ValueError: the present network costs more than ``limit``.  NoCost: the present network has no cost.  SelectionError: no answer.
    """
    present = cost_model.network(wiring.shapes())
    if present.value > limit:
        raise ValueError(
            f"the network costs {present.value:.6g} {present.unit} at widths {wiring.widths}, more than the limit of {limit:.6g}; "
            "raise the limit or start from a smaller network"
        )
    problem = _tabulate(totals, wiring, cost_model)
    problem.drop_dominated()
    problem.thin(MAX_CHOICES)
    added, gap = _solve(problem, wiring, cost_model, limit, seconds)
    widths = tuple(width + more for width, more in zip(wiring.widths, added, strict=True))
    gain = sum(float(problem.totals[group][more]) for group, more in enumerate(added))
    return Selection(added, widths, gain, cost_model.network(wiring.shapes(widths)), gap)


def fits(widths: Sequence[int], wiring: Wiring, cost_model: CostModel, limit: float) -> bool:
    """Whether the network at these widths has a cost, of at most ``limit``."""
    try:
        return cost_model.network(wiring.shapes(widths)).value <= limit
    except NoCost:
        return False


@dataclass(slots=True)
class _Problem:
    """Gains and costs by candidate.  A candidate of a group is a number of added channels; a cost that is refused is infinite."""

    totals: Sequence[Floats]  # [channels that may be added + 1], by channels added
    candidates: list[NDArray[np.int64]]  # channels added
    constant: float = 0.0
    unary: list[Floats] = field(default_factory=list)  # [candidates of g]
    pairs: dict[tuple[int, int], Floats] = field(default_factory=dict)  # g < h: [candidates of g, candidates of h]

    def keep(self, group: int, chosen: NDArray[np.int64]) -> None:
        """Keep only these candidates (positions) of a group."""
        self.candidates[group] = self.candidates[group][chosen]
        self.unary[group] = self.unary[group][chosen]
        for g, h in self.pairs:
            if group in (g, h):
                self.pairs[g, h] = self.pairs[g, h].take(chosen, axis=0 if group == g else 1)

    def drop_dominated(self) -> None:
        """Drop dominated candidates until none is left; a group that got smaller can make its neighbours' candidates dominated."""
        size = -1
        while size != (size := sum(map(len, self.candidates))):
            for group in range(len(self.candidates)):
                self.keep(group, self._undominated(group))

    def _undominated(self, group: int) -> NDArray[np.int64]:
        """Positions of the candidates that no larger one can replace at no extra cost (a larger one always gains more)."""
        kept: list[int] = []
        for small in reversed(range(len(self.candidates[group]))):
            possible = np.isfinite(self.unary[group][small]) and all(np.isfinite(rows[small]).any() for rows in self._rows(group))
            if possible and not (kept and (self._extra(group, small, np.array(kept)) <= 0).any()):
                kept.append(small)
        return np.array(kept[::-1])

    def _extra(self, group: int, small: int, large: NDArray[np.int64]) -> Floats:
        """Largest extra cost, over the neighbours' widths, of the candidates ``large`` instead of ``small``."""
        extra: Floats = self.unary[group][large] - self.unary[group][small]
        for rows in self._rows(group):
            possible = np.isfinite(rows[small])
            extra = extra + (rows[large][:, possible] - rows[small][possible]).max(axis=1)
        return extra

    def _rows(self, group: int) -> list[Floats]:
        """The pair costs of a group, its candidates along the rows."""
        return [cost if group == g else cost.T for (g, h), cost in self.pairs.items() if group in (g, h)]

    def thin(self, most: int) -> None:
        """Keep at most ``most`` candidates per group, evenly spread, both ends among them."""
        for group, candidates in enumerate(self.candidates):
            if len(candidates) > most:
                self.keep(group, np.unique(np.linspace(0, len(candidates) - 1, most).round().astype(np.int64)))


def _tabulate(totals: Sequence[Floats], wiring: Wiring, cost_model: CostModel) -> _Problem:
    """Evaluate the cost model at every width of every unit that is still a candidate."""
    candidates = [_worth_tabulating(group, total, wiring, cost_model) for group, total in enumerate(totals)]
    problem = _Problem(totals, candidates, cost_model.network(()).value)
    problem.unary = [np.zeros(len(added)) for added in candidates]
    for unit in wiring.units:
        groups = sorted({group for group in (unit.input, unit.output) if group is not None})
        if not groups:
            problem.constant += cost_model.layer(unit.shape).value
        elif len(groups) == 1:
            problem.unary[groups[0]] += [_unit_cost(unit, wiring, {groups[0]: int(a)}, cost_model) for a in candidates[groups[0]]]
        else:
            g, h = groups
            cost = np.array([[_unit_cost(unit, wiring, {g: int(a), h: int(b)}, cost_model) for b in candidates[h]] for a in candidates[g]])
            problem.pairs[g, h] = problem.pairs.get((g, h), 0.0) + cost
    return problem


def _worth_tabulating(group: int, total: Floats, wiring: Wiring, cost_model: CostModel) -> NDArray[np.int64]:
    """Candidates of a group: all that gain more than fewer, or for a wide group those that pay off at its neighbours' present widths,
    thinned.
    """
    added = np.flatnonzero(np.diff(total, prepend=-np.inf) > 0)
    if len(added) <= MAX_TABULATED:
        return added
    alone = np.zeros(len(added))
    for unit in wiring.units:
        if group in (unit.input, unit.output):
            alone += [_unit_cost(unit, wiring, {group: int(more)}, cost_model) for more in added]
    # A width pays off when every larger one costs more.
    cheapest_above = np.append(np.minimum.accumulate(alone[::-1])[::-1][1:], np.inf)
    edges = np.union1d([0], added[(alone < cheapest_above) & np.isfinite(alone)])
    return edges[np.unique(np.linspace(0, len(edges) - 1, MAX_TABULATED).round().astype(np.int64))]


def _unit_cost(unit: Unit, wiring: Wiring, added: Mapping[int, int], cost_model: CostModel) -> float:
    """Cost of a unit with ``added`` channels in some groups; infinite where the cost model has no answer."""
    widths = list(wiring.widths)
    for group, more in added.items():
        widths[group] += more
    try:
        return cost_model.layer(unit.at(widths)).value
    except NoCost:
        return np.inf


def _solve(problem: _Problem, wiring: Wiring, cost_model: CostModel, limit: float, seconds: float) -> tuple[tuple[int, ...], float]:
    """Channels added per group, and the proven gap."""
    nothing = (0,) * len(problem.candidates)
    if not any(total[-1] > 0 for total in problem.totals):
        return nothing, 0.0
    program = _Program.of(problem, limit, seconds)
    for _ in range(_CUTS):
        best = program.minimise(-program.gain)
        if best.status == _INFEASIBLE:  # the present widths, if they are no candidate, fit all the same
            return nothing, 0.0
        if best.x is None:
            raise SelectionError(f"the solver found no widths in {seconds:g} s ({best.message}); allow more seconds")
        cheapest = program.minimise(program.cost, at_least=float(program.gain @ best.x) - _TOLERANCE)
        added = program.read(best if cheapest.x is None else cheapest)
        if cost_model.network(wiring.shapes([width + more for width, more in zip(wiring.widths, added, strict=True)])).value <= limit:
            return added, float(best.mip_gap) if best.fun else 0.0
        program.forbid(added)
    raise SelectionError(f"{_CUTS} solutions in a row exceed the limit of {limit:.6g} by rounding; change the limit a little")


@dataclass(slots=True)
class _Program:
    """The mixed-integer program.  Variables: the choices of all groups one after the other, then the pair variables, row by row."""

    problem: _Problem
    gain: Floats  # [variables], all gain that there is = _SCALE
    cost: Floats  # [variables], the limit (less the constant) = _SCALE
    free: Floats  # [variables], upper bound: 0 where a pair of widths has no cost, 1 elsewhere
    rows: list[Rows]
    seconds: float

    @classmethod
    def of(cls, problem: _Problem, limit: float, seconds: float) -> _Program:
        gain = np.concatenate([total[added] for total, added in zip(problem.totals, problem.candidates, strict=True)])
        cost = np.concatenate([*problem.unary, *(pair.ravel() for pair in problem.pairs.values())])
        gain = np.append(gain, np.zeros(len(cost) - len(gain)))
        free = np.isfinite(cost).astype(np.float64)
        cost = np.where(np.isfinite(cost), cost, 0.0)
        largest_gain = sum(total[added].max() for total, added in zip(problem.totals, problem.candidates, strict=True))
        budget = max(limit - problem.constant, np.finfo(np.float64).tiny)
        scaled_gain, scaled_cost = gain * (_SCALE / largest_gain), cost * (_SCALE / budget)
        rows = [_consistency(problem), _row(scaled_cost, -np.inf, _SCALE)]
        return cls(problem, scaled_gain, scaled_cost, free, rows, seconds)

    def minimise(self, objective: Floats, at_least: float | None = None) -> OptimizeResult:
        """Solve, with the gain ``at_least`` this.  ``x`` of the result is None when nothing was found."""
        rows = self.rows if at_least is None else [*self.rows, _row(self.gain, at_least, np.inf)]
        matrix = sparse.vstack([matrix for matrix, _, _ in rows], format="csr")
        low, high = (np.concatenate([row[side] for row in rows]) for side in (1, 2))
        choices = sum(map(len, self.problem.candidates))
        return milp(
            objective,
            integrality=(np.arange(len(objective)) < choices).astype(np.int64),
            bounds=Bounds(np.zeros(len(objective)), self.free),
            constraints=LinearConstraint(matrix, low, high),
            options={"mip_rel_gap": 1e-9, "time_limit": self.seconds},
        )

    def read(self, result: OptimizeResult) -> tuple[int, ...]:
        """The channels added per group in a solution."""
        starts = np.cumsum([0, *map(len, self.problem.candidates)])
        return tuple(
            int(added[result.x[start : start + len(added)].argmax()])
            for start, added in zip(starts[:-1], self.problem.candidates, strict=True)
        )

    def forbid(self, added: Sequence[int]) -> None:
        """Cut off one choice of widths: not all of its binaries together."""
        chosen = np.concatenate([candidates == more for candidates, more in zip(self.problem.candidates, added, strict=True)])
        row = np.append(chosen.astype(np.float64), np.zeros(len(self.gain) - len(chosen)))
        self.rows.append(_row(row, -np.inf, len(added) - 1.0))


def _row(coefficients: Floats, low: float, high: float) -> Rows:
    return sparse.coo_array(coefficients[None, :]), np.array([low]), np.array([high])


def _consistency(problem: _Problem) -> Rows:
    """One width per group; the margins of every pair variable are the choices of its two groups."""
    sizes = [len(candidates) for candidates in problem.candidates]
    starts = np.cumsum([0, *sizes])
    blocks: list[sparse.coo_array] = []
    column, columns = int(starts[-1]), int(starts[-1]) + sum(pair.size for pair in problem.pairs.values())

    def block(rows: int, *parts: tuple[NDArray[np.int64], NDArray[np.int64], float]) -> None:
        at, to, value = (np.concatenate(x) for x in zip(*((r, c, np.full(len(r), v)) for r, c, v in parts), strict=True))
        blocks.append(sparse.coo_array((value, (at, to)), shape=(rows, columns)))

    for start, size in zip(starts[:-1], sizes, strict=True):
        block(1, (np.zeros(size, dtype=np.int64), start + np.arange(size), 1.0))
    for (g, h), pair in problem.pairs.items():
        variables = column + np.arange(pair.size).reshape(pair.shape)
        row, col = np.indices(pair.shape)
        for group, margin in ((g, row), (h, col)):
            own = np.arange(sizes[group])
            block(sizes[group], (own, starts[group] + own, -1.0), (margin.ravel(), variables.ravel(), 1.0))
        column += pair.size
    right = np.append(np.ones(len(sizes)), np.zeros(sum(b.shape[0] for b in blocks) - len(sizes)))
    return sparse.vstack(blocks, format="coo"), right, right
