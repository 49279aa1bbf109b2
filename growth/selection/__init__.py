"""How many channels to add to each group: the largest predicted gain that every budget allows.

How a group adds ``n`` channels is settled beforehand, by what gains most (``growth.operators.choice``), so the choice is one width per
group.  Cost models are additive over layers, and a layer touches at most two groups (the one it reads, the one it writes), hence

    maximise  sum_g gain_g(w_g)   subject to, for each budget,   constant + sum_g unary_g(w_g) + sum_(g,h) pair_gh(w_g, w_h) <= limit

which is exact for every cost table, staircases included: no cost per channel is assumed, and no width is left out unless another one of
its group gains more at no extra cost, or a bound rules it out.

Groups that layers tie to no cycle (chains, mobilenet's residual blocks, squeeze-and-excitation, most networks) are solved by ``labels``;
the others (a residual sum behind a strided shortcut, concatenation) by ``program``, for HiGHS.  Both say which gap they proved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costs.model import Budget, Cost
from costs.shapes import Wiring
from growth.selection.labels import by_labels
from growth.selection.problem import TOLERANCE, Answer, Floats, Problem
from growth.selection.program import SelectionError, by_program
from growth.selection.tables import fits, tabulate
from growth.selection.tree import is_forest

__all__ = ["METHODS", "Budget", "Selection", "SelectionError", "fits", "select"]

METHODS: dict[str, Callable[[Problem, float], Answer]] = {"labels": by_labels, "program": by_program}


@dataclass(frozen=True, slots=True)
class Selection:
    """How many channels each group adds, and what the network then costs in each budget.

    ``gap`` is the relative optimality gap that was proven: no choice gains more than ``gain / (1 - gap)``; 0 where none is better.
    """

    counts: tuple[int, ...]
    widths: tuple[int, ...]
    gain: float
    costs: tuple[Cost, ...]
    gap: float
    method: str

    @property
    def cost(self) -> Cost:
        """In the first budget."""
        return self.costs[0]


def select(
    totals: Sequence[Floats], wiring: Wiring, budgets: Budget | Sequence[Budget], *,
    multiple_of: int = 1, kept: Sequence[int] | None = None, method: str | None = None, seconds: float = 600.0,
) -> Selection:  # fmt: skip
    """The widths of largest total gain whose network keeps to every budget; among equal gains, the cheapest by the first one.

    ``totals[g][n]`` is the largest gain (loss units) of adding at most ``n`` channels to group ``g``: 0 at first, never falling.  A
    number that gains no more than the one before it is no candidate, nor is a width without a cost, nor, with ``multiple_of``, a width
    that is no multiple of it (those of ``wiring`` are allowed as they are, and ``kept`` ones, where ``wiring`` is narrower than the
    network that is to change).  ``method`` is one of ``METHODS``, by default the one for this wiring.
    ``seconds`` bounds ``program``; a result that hangs on the clock is not repeatable.

    ValueError: the present network costs more than a limit.  NoCost: it has no cost.  SelectionError: no answer.
    """
    budgets = (budgets,) if isinstance(budgets, Budget) else tuple(budgets)
    _check(wiring, budgets, multiple_of, method)
    if not any(total[-1] > 0 for total in totals):
        return _selection(wiring, budgets, (0,) * len(totals), 0.0, 0.0, "none")
    problem = tabulate(totals, wiring, budgets, multiple_of, kept)
    problem.drop_dominated()
    method = method or ("labels" if is_forest(problem) else "program")
    answer = METHODS[method](problem, seconds)
    counts, gain = problem.counts(answer.positions), problem.gain_of(answer.positions)
    total = sum(float(total[count]) for total, count in zip(totals, counts, strict=True))
    missed = answer.bound - gain
    return _selection(wiring, budgets, counts, total, missed / answer.bound if missed > TOLERANCE else 0.0, method)


def _check(wiring: Wiring, budgets: Sequence[Budget], multiple_of: int, method: str | None) -> None:
    if not budgets:
        raise ValueError("budgets is empty; give at least one")
    if multiple_of < 1:
        raise ValueError(f"multiple_of is {multiple_of}; give 1 for any width, or what widths must be a multiple of")
    if method not in (None, *METHODS):
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}, or None for the one that suits")
    for budget in budgets:
        present = budget.cost_model.network(wiring.shapes())
        if present.value > budget.limit:
            raise ValueError(
                f"the network costs {present.value:.6g} {present.unit} at widths {wiring.widths}, more than the limit of "
                f"{budget.limit:.6g}; raise the limit or start from a smaller network"
            )


def _selection(wiring: Wiring, budgets: Sequence[Budget], counts: tuple[int, ...], gain: float, gap: float, method: str) -> Selection:
    widths = tuple(width + more for width, more in zip(wiring.widths, counts, strict=True))
    shapes = wiring.shapes(widths)
    return Selection(counts, widths, gain, tuple(budget.cost_model.network(shapes) for budget in budgets), gap, method)
