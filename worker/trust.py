"""Before a job trusts a table of this machine: is the machine still as quick as it was when the table was measured?

The budget is an absolute one, so a machine at another pace moves it.  A little is said in the report; a lot is refused, since hours of
growth would end at a network of the wrong size.  A job that has been working already goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from costs.model import EXACT
from costs.table import CostTable, Setting
from profiler.drift import Drift, measure_drift
from profiler.processor import Processor
from profiler.timing import NoResult
from store.admission import setting_of
from store.spec import BudgetSpec

logger = logging.getLogger(__name__)

Document = dict[str, Any]

WARN, REFUSE = 1.05, 1.5  # factors on the time, either way; a quiet machine repeats itself within 1.02


class TableOutdated(RuntimeError):  # noqa: N818 - an answer, and no fault of the program
    """The machine is far from what its cost table says; the message says by how much, and the remedy."""


def check_tables(budgets: Iterable[BudgetSpec], here: str, on: Processor, table: Callable[[], CostTable], refuse: bool) -> list[Document]:
    """What the drift check found for each setting that this machine's table is asked in.  TableOutdated if it must not be trusted.

    Nothing for counted costs, and for devices elsewhere.
    """
    asked = [budget for budget in budgets if budget.cost not in EXACT and budget.device == here]
    settings = dict.fromkeys(setting_of(budget) for budget in asked)
    return [_checked(table(), setting, on, refuse) for setting in settings]


def drift_words(checked: Sequence[Document]) -> str:
    """What to know of the tables; nothing where the machine is as it was."""
    return " ".join(each["note"] for each in checked if "note" in each)


def _checked(table: CostTable, setting: Setting, on: Processor, refuse: bool) -> Document:
    document: Document = {"device": table.device, **asdict(setting)}
    try:
        drift = measure_drift(table, setting, on=on)
    except (NoResult, ValueError) as error:  # too busy, or more threads than cores
        logger.warning("the table of %s was not checked: %s", table.device, error)
        return {**document, "reason": str(error)}
    if refuse and not 1 / REFUSE <= drift.ratio <= REFUSE:
        remedy = "measure it again (`wattle profile` with this network, batch size and thread count), as busy as it will be in use"
        raise TableOutdated(f"{_words(drift, table, setting)}, which is more than a factor of {REFUSE:g}: {remedy}, then submit again")
    found = {**document, **asdict(drift)}
    if 1 / WARN <= drift.ratio <= WARN:
        return found
    note = f"{_words(drift, table, setting)}; limits and prices are those of the table. Profile it again if it is to stay so."
    logger.warning(note)
    return {**found, "note": note}


def _words(drift: Drift, table: CostTable, setting: Setting) -> str:
    return (
        f"When the job began, {table.device} took {drift.ratio:.2f} times as long as its cost table says ({setting}; {drift.entries} "
        f"layers measured again: {drift.low:.2f} to {drift.high:.2f})"
    )
