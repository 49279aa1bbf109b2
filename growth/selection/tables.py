"""Pricing every candidate: the cost models asked at as few widths as possible, without thinning.

A measured table is constant between measured widths, so of all candidates between two of them only the largest matters.  Exact counts
are linear in the output channels, so two of them give all.  Any other cost model is asked about every pair of widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from costs.model import EXACT, Budget, CostModel, Stepped
from costs.shapes import Unit, Wiring
from costs.table import NoCost
from growth.selection.problem import FAR, Floats, Problem

Widths = NDArray[np.int64]
Edges = tuple[Sequence[int] | None, Sequence[int] | None]  # input and output widths where costs change; None: anywhere
Known = dict[tuple[object, ...], Floats]  # what was asked before


def tabulate(
    totals: Sequence[Floats], wiring: Wiring, budgets: Sequence[Budget], multiple_of: int, kept: Sequence[int] | None = None
) -> Problem:
    """Candidates with their gains, and their costs in every budget."""
    limits = np.array([budget.limit for budget in budgets])
    added = [_candidates(*one, multiple_of) for one in zip(totals, wiring.widths, kept or wiring.widths, strict=True)]
    added = _largest_of_each_step(added, wiring, budgets)
    largest = sum(float(total[-1]) for total in totals)
    problem = Problem(
        added,
        [np.asarray(total, dtype=np.float64)[counts] / largest for total, counts in zip(totals, added, strict=True)],
        [np.zeros((len(counts), len(budgets))) for counts in added],
        {},
        1 - np.array([budget.cost_model.network(()).value for budget in budgets]) / limits,
        lambda counts: fits(wiring, [w + c for w, c in zip(wiring.widths, counts, strict=True)], budgets),
    )
    known: Known = {}
    for unit in wiring.units:
        _add(problem, unit, wiring, budgets, limits, known)
    return problem


def fits(wiring: Wiring, widths: Sequence[int], budgets: Sequence[Budget]) -> bool:
    """Whether a network of these widths meets every limit."""
    try:
        return all(budget.cost_model.network(wiring.shapes(widths)).value <= budget.limit for budget in budgets)
    except NoCost:
        return False


def _candidates(total: Floats, width: int, kept: int, multiple_of: int) -> Widths:
    """The first width, and the allowed ones that gain more than any smaller width."""
    gaining = np.flatnonzero(np.diff(total, prepend=np.inf) > 0)
    reached = width + gaining
    return np.append([0], gaining[(reached % multiple_of == 0) | (reached == kept)]).astype(np.int64)


def _largest_of_each_step(added: list[Widths], wiring: Wiring, budgets: Sequence[Budget]) -> list[Widths]:
    """Of candidates that cost the same in every layer and budget, the largest; and the present width."""
    changes = [np.isin(np.arange(len(counts)), (0, len(counts) - 1)) for counts in added]  # whether the next may cost more or less
    for budget in budgets:
        for unit in wiring.units:
            for group, multiple, edges in zip(
                (unit.input, unit.output), (unit.in_multiple, 1), _edges(budget.cost_model, unit), strict=True
            ):
                if group is None:
                    continue
                widths = (wiring.widths[group] + added[group]) * multiple
                cells = widths if edges is None else np.searchsorted(edges, widths)
                changes[group][:-1] |= cells[1:] != cells[:-1]
    return [counts[change] for counts, change in zip(added, changes, strict=True)]


def _edges(model: CostModel, unit: Unit) -> Edges:
    return model.edges(unit.shape) if isinstance(model, Stepped) else (None, None)


def _add(problem: Problem, unit: Unit, wiring: Wiring, budgets: Sequence[Budget], limits: Floats, known: Known) -> None:
    """Count the costs of one unit."""
    groups = sorted({group for group in (unit.input, unit.output) if group is not None})
    if not groups:
        problem.room = problem.room - np.array([budget.cost_model.layer(unit.shape).value for budget in budgets]) / limits
        return
    axes = [wiring.widths[group] + problem.added[group] for group in groups]
    if len(groups) == 1:
        cost = np.stack([_along(unit, wiring, axes[0], budget.cost_model) for budget in budgets], axis=-1)
        problem.unary[groups[0]] = problem.unary[groups[0]] + np.minimum(cost / limits, FAR)
    else:
        cost = np.stack([_table(unit, wiring, (groups[0], groups[1]), axes, budget.cost_model, known) for budget in budgets], axis=-1)
        cost = np.minimum(cost / limits, FAR)
        others = problem.pairs.get((groups[0], groups[1]))
        problem.pairs[groups[0], groups[1]] = cost if others is None else others + cost


def _along(unit: Unit, wiring: Wiring, axis: Widths, model: CostModel) -> Floats:
    """Costs of a unit that one group sets.  [candidates]"""
    return np.array([_cost(unit, wiring, int(width), int(width), model) for width in axis])


def _table(unit: Unit, wiring: Wiring, groups: tuple[int, int], axes: Sequence[Widths], model: CostModel, known: Known) -> Floats:
    """Costs of a unit between two groups.  [candidates of the first, candidates of the second]"""
    reads_first = unit.input == groups[0]
    inputs, outputs = axes if reads_first else axes[::-1]
    edges = _edges(model, unit)
    rows, row_of = _asked(edges[0], inputs, unit.in_multiple)
    columns, column_of = (outputs[[0, -1]], None) if model.name in EXACT else _asked(edges[1], outputs, 1)
    key = (id(model), unit.shape, unit.in_multiple, rows.tobytes(), columns.tobytes())
    if key not in known:  # blocks repeat
        known[key] = np.array([[_cost(unit, wiring, int(a), int(b), model) for b in columns] for a in rows])
    table = _line(known[key][row_of], columns, outputs) if column_of is None else known[key][np.ix_(row_of, column_of)]
    return table if reads_first else table.T


def _asked(edges: Sequence[int] | None, widths: Widths, multiple: int) -> tuple[Widths, Widths]:
    """The widths to ask about, and for every width which of them answers."""
    cells = widths if edges is None else np.searchsorted(edges, widths * multiple)
    _, first, cell = np.unique(cells, return_index=True, return_inverse=True)
    return widths[first], cell


def _line(ends: Floats, at: Widths, widths: Widths) -> Floats:
    """What a line through the costs at two widths says of all others."""
    slope = (ends[:, 1:] - ends[:, :1]) / max(1, at[1] - at[0])
    line: Floats = ends[:, :1] + slope * (widths - at[0])
    return line


def _cost(unit: Unit, wiring: Wiring, read: int, written: int, model: CostModel) -> float:
    """Cost of a unit whose groups have these widths; infinite where the cost model has no answer."""
    widths = list(wiring.widths)
    if unit.input is not None:
        widths[unit.input] = read
    if unit.output is not None:
        widths[unit.output] = written
    try:
        return model.layer(unit.at(widths)).value
    except NoCost:
        return np.inf
