"""The parts of the experiments: which of them must run alone, and which may run side by side in processes of their own."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.growth.arms import Setting
from benchmarks.growth.factorial import factorial
from benchmarks.growth.landscape import landscape
from benchmarks.growth.law import law
from benchmarks.growth.prices import latency
from benchmarks.growth.records import Clock, OutOfTime, Results
from benchmarks.growth.saturation import saturation
from benchmarks.growth.score import score
from benchmarks.growth.shaped import register_shaped
from benchmarks.growth.tried import tried
from costs.model import Macs

PARTS = ("score", "tasks", "law", "factorial", "landscape", "tried")
COSTS = ("MACs", "latency")
DRAWS = 50  # of widths, in each task's landscape
Work = Callable[[], None]


def alone(options: Namespace, clock: Clock) -> Iterator[Work]:
    """What is timed."""
    if "score" in options.only:
        yield partial(score, _results(options, "score", clock), options.seeds)
    if "factorial" in options.only and "latency" in options.cost:
        yield from (partial(_measured, options, task, clock) for task in options.tasks)


def side_by_side(options: Namespace, clock: Clock) -> Iterator[tuple[str, Work]]:
    """Everything else that is asked for, with names, the longest first."""
    results = {part: _results(options, part, clock) for part in PARTS}
    works: dict[str, list[tuple[str, Work]]] = {
        "factorial": [
            (f"{task}, {cost}", partial(_factorial, options, results["factorial"], task, cost))
            for cost in options.cost
            for task in options.tasks
        ],
        "tried": [(task, partial(_tried, options, results["tried"], task)) for task in options.tasks],
        "landscape": [(task, partial(landscape, results["landscape"], task, DRAWS)) for task in options.tasks],
        "tasks": [("sizes", partial(saturation, results["tasks"], options.seeds))],
        "law": [("steps", partial(law, results["law"]))],
    }
    yield from ((f"{part}, {name}", work) for part, named in works.items() if part in options.only for name, work in named)


def _results(options: Namespace, part: str, clock: Clock) -> Results:
    return Results(options.results / f"{part}.jsonl", clock)


def _factorial(options: Namespace, results: Results, task: str, cost: str) -> None:
    model = latency(options.results, task) if cost == "latency" else Macs()
    factorial(results, _label(options, task, cost), Setting(task, options.start, model), options.seeds)


def _tried(options: Namespace, results: Results, task: str) -> None:
    tried(results, _label(options, task, "MACs"), Setting(task, options.start), options.tried_seeds)


def _label(options: Namespace, task: str, cost: str) -> str:
    return f"{task}, {options.start} seed, {cost}"


def _measured(options: Namespace, task: str, clock: Clock) -> None:
    clock.check()
    latency(options.results, task)


def finished(work: Work) -> bool:
    """Whether there was time for all of it."""
    try:
        work()
    except OutOfTime:
        return False
    return True


def prepare() -> None:
    """A process of these experiments: one thread, and the scorers that only they know."""
    torch.set_num_threads(1)
    register_shaped()
