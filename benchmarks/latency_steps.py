"""The price of a growth step: what the table says it adds to a whole network, against the measured paired difference.

One channel group of a mobilenet_v1 is widened at a time.  Both networks run in turns, and the difference is taken in each round.  Where
a network's tensors happen to lie in memory moves it by some percent for as long as they lie there, and a difference of two networks by
more than itself; so the difference is measured in several places in each of several processes, and the truth is the median of all.
A shared machine changes meanwhile, too: within an hour the same step cost 0.46 to 0.64 ms.  So tables and processes take turns, and the
median of the tables is judged.  Steps that end on the same executed width should add nothing, and the tables should know.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from costs.families import Network
from costs.table import Setting, TableCost
from growth.networks import build
from profiler.anchors import network_work
from profiler.device import pieces_of_memory, ready_to_measure
from profiler.meters import METERS
from profiler.paired import Difference, paired_differences
from profiler.processor import CPU
from profiler.profile import profile_device
from profiler.timing import MIN_READINGS, NoResult, median_interval

TARGET_PERCENT = 25.0  # of the measured difference
FREE_PERCENT = 1.0  # of the whole network: a step that adds less, or saves, is free
SEED = Network("mobilenet_v1", (32, 64, *(12 * (64,))), 16, 3, 10)
SETTING, MAX_GROWTH = Setting(batch=32), 1.5
PROFILE_SECONDS, PAIRS_SECONDS = 90.0, 1.0
TABLES, PROCESSES, PLACES = 3, 12, 5  # each table has its share of the processes, half of them before it and half after


@dataclass(frozen=True, slots=True)
class Step:
    """One group from one width to another; ``free`` where both are executed alike on vectors of 16 lanes."""

    group: int
    before: int
    after: int
    free: bool = False

    def __str__(self) -> str:
        return f"{self.before} to {self.after}"

    @property
    def networks(self) -> tuple[Network, Network]:
        return _at(self.group, self.before), _at(self.group, self.after)


STEPS = [Step(0, 32, 36), Step(0, 32, 48), Step(1, 64, 68), Step(1, 64, 80), Step(0, 36, 48, free=True), Step(1, 68, 80, free=True)]


def run(console: Console, time_factor: float) -> dict[str, Any]:
    about = time_factor * (TABLES * PROFILE_SECONDS + PROCESSES * PLACES * len(_bases()) * PAIRS_SECONDS)
    with console.status(f"growth steps, {SETTING}: measuring for about {about:g} s"):
        tables, measured = _taken_in_turns(time_factor)
    result = {"target_percent": TARGET_PERCENT, "steps": [_compared(step, tables, measured[step]) for step in STEPS]}
    _show(console, result)
    return result


def _taken_in_turns(time_factor: float) -> tuple[list[TableCost], dict[Step, Difference | NoResult]]:
    """Several tables of this machine, and each difference as the median over places and processes, with its 95 % interval by order
    statistics."""
    tables, found = list[TableCost](), list[Mapping[Step, Difference | NoResult]]()
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:

        def some_processes() -> None:
            half = PROCESSES // TABLES // 2
            found.extend(place for places in pool.map(_in_one_process, half * [time_factor * PAIRS_SECONDS]) for place in places)

        for _ in range(TABLES):
            some_processes()
            profile = profile_device(SEED, "this-host", SETTING, MAX_GROWTH, time_factor * PROFILE_SECONDS)
            tables.append(TableCost(profile.table, "latency_ms", SETTING))
            some_processes()
    return tables, {step: _over_places([differences[step] for differences in found]) for step in STEPS}


def _over_places(found: Sequence[Difference | NoResult]) -> Difference | NoResult:
    known = [difference for difference in found if isinstance(difference, Difference)]
    if len(known) < MIN_READINGS:
        return NoResult(f"{len(known)} of {len(found)} places gave a difference, {MIN_READINGS} needed; measure while it is quieter")
    values = [difference.median for difference in known]
    low, high = median_interval(values)
    return Difference(median(values), low, high, median(each.base for each in known), sum(each.rounds for each in known))


def _in_one_process(seconds: float) -> list[dict[Step, Difference | NoResult]]:
    """In each place.  Steps from the same network share their rounds."""
    places, held = random.Random(), list[object]()
    found: list[dict[Step, Difference | NoResult]] = [{} for _ in range(PLACES)]
    with ready_to_measure(SETTING):
        for place, before in product(found, _bases()):
            steps = [step for step in STEPS if step.networks[0].widths == before]
            work = _inferences({"before": steps[0].networks[0], **{str(step): step.networks[1] for step in steps}})
            held += [pieces_of_memory(places, CPU.device), *work.values()]
            base = work.pop("before")
            differences = paired_differences(base, work, METERS["wall_clock"](), seconds)
            place |= {step: differences[str(step)] for step in steps}
    return found


def _bases() -> list[tuple[int, ...]]:
    """The widths that steps start from."""
    return sorted({step.networks[0].widths for step in STEPS})


def _inferences(networks: Mapping[str, Network]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SETTING.batch, SEED.in_channels, SEED.image_size, SEED.image_size, generator=generator)
    return dict(network_work({name: build(network, generator).eval() for name, network in networks.items()}, images, SETTING))


def _compared(step: Step, tables: Sequence[TableCost], found: Difference | NoResult) -> dict[str, Any]:
    """Times in milliseconds.  A step without a measured difference misses its target."""
    wholes = [[table.network(network.wiring().shapes()).value for network in step.networks] for table in tables]
    added = [after - before for before, after in wholes]
    document: dict[str, Any] = {
        "group": step.group,
        "before": step.before,
        "after": step.after,
        "free": step.free,
        "table_ms": median(added),
        "tables_ms": added,
    }
    if isinstance(found, NoResult):
        return {**document, "reason": str(found), "within_target": False}
    document |= {"measured_ms": asdict(found)}
    free = {"table": _is_free(median(added), median(before for before, _ in wholes)), "measured": _is_free(found.median, found.base)}
    if step.free:
        return {**document, "is_free": free, "within_target": all(free.values())}
    error = 100 * (median(added) / found.median - 1)
    return {**document, "is_free": free, "error_percent": error, "within_target": abs(error) <= TARGET_PERCENT}


def _is_free(added: float, whole: float) -> bool:
    return added <= FREE_PERCENT / 100 * whole


def _show(console: Console, result: dict[str, Any]) -> None:
    table = Table(title=f"growth steps of one group, {SEED.family} {SEED.image_size} px, {SETTING}", box=SIMPLE)
    for heading in ("channels", "measured ms", "95 % interval", "table ms", "of single tables", "error", "verdict"):
        table.add_column(heading, justify="left" if heading in ("channels", "verdict") else "right", no_wrap=True)
    for step in result["steps"]:
        verdict = "MISSES" if not step["within_target"] else "free" if step["free"] else "within"
        table.add_row(f"{step['before']} to {step['after']}", *_cells(step), verdict)
    console.print(table)
    console.print(f"target: within {TARGET_PERCENT:g} %; free: adds less than {FREE_PERCENT:g} % of the network, measured and in the table")


def _cells(step: dict[str, Any]) -> tuple[str, ...]:
    of_tables = f"{step['table_ms']:+.3f}", f"{min(step['tables_ms']):+.3f} to {max(step['tables_ms']):+.3f}"
    if "reason" in step:
        return "no result", "", *of_tables, ""
    found, error = step["measured_ms"], "" if step["free"] else f"{step['error_percent']:+.0f} %"
    return f"{found['median']:+.3f}", f"{found['low']:+.3f} to {found['high']:+.3f}", *of_tables, error


def _at(group: int, width: int) -> Network:
    return replace(SEED, widths=tuple(width if number == group else old for number, old in enumerate(SEED.widths)))
