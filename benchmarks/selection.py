"""Selection: how long an exact answer takes, and what it is worth against rules that count FLOPs.

    python -m benchmarks.selection --output selection.json

Gains are log-normal (channels, and their groups), at most one more channel beside each; every width is a candidate.

1. Time: wall and CPU seconds of one selection, the share of answers proven optimal and the largest gap that was left, on chains, on
   mobilenet_v2 at full width and on densenet121; where it is small enough, the mixed-integer program's time beside it, and whether both
   agree.  "steps of 16": a synthetic staircase, see ``Staircase``.
2. Worth: the cost of whole networks that reach the same share of the gain, by the table that the exact rule reads: a synthetic one, and
   ones measured on this machine (``--seconds``).  Against ``lp``, the published rule: a linear program with one constant FLOPs price per
   channel, rounded down, its budget raised until the share is reached; and ``greedy``: best gain per true MAC of the next channel.
   A ratio below 1 says that the exact rule is cheaper.  Both others may stop at any width, as may the exact one.
3. Clock: the same networks run as a whole, in turns (``benchmarks.selection_timed``).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import geometric_mean, median

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torchvision.models import DenseNet

from benchmarks import selection_timed
from benchmarks.selection_timed import SHARES, TARGETS
from benchmarks.width_rules import RULES, choices, cost_of, gains
from costs.families import Network, default_widths
from costs.model import Budget, Cost, CostModel, CostName, Macs
from costs.shapes import LayerShape, Unit, Wiring
from growth.groups import find_groups
from growth.selection import select

_SEVEN = (16, 20, 28, 36, 44, 44, 48)
_STRIDES = (1, 2, 1, 2, 1, 1)


@dataclass(frozen=True, slots=True)
class Staircase:
    """Milliseconds like those of a CPU with 16 lanes: output channels come in 16s, input channels in steps of ``grid``, and every
    measured pair of widths has an error of its own.
    """

    grid: int = 4
    noise: float = 0.04
    name: CostName = "latency_ms"
    unit: str = "ms"

    def layer(self, shape: LayerShape) -> Cost:
        inputs, outputs = (-(-width // self.grid) * self.grid for width in (shape.in_channels, shape.out_channels))
        lanes, (height, width) = -(-outputs // 16) * 16, shape.output_size
        work = lanes * (6 if shape.depthwise else inputs) * shape.kernel**2 * height * width
        moved = inputs * shape.height * shape.width + lanes * height * width
        error = random.Random(f"{replace(shape, in_channels=inputs, out_channels=outputs, groups=shape.depthwise)}").gauss(0, self.noise)
        return Cost((0.004 + 2e-8 * work + 4e-7 * moved) * math.exp(error), self.unit, "calibrated_sum")

    def network(self, shapes: Sequence[LayerShape]) -> Cost:
        return Cost(sum(self.layer(shape).value for shape in shapes), self.unit, "calibrated_sum")

    def edges(self, shape: LayerShape) -> tuple[Sequence[int], Sequence[int]]:  # noqa: ARG002 - the same for all
        ends = range(0, 8192, self.grid)
        return ends, ends


@dataclass(frozen=True, slots=True)
class Timing:
    problem: str
    cost: str
    method: str
    groups: int
    candidates: int
    wall_s: float  # median
    worst_wall_s: float
    cpu_s: float
    proven: float
    worst_gap: float
    program_wall_s: float | None
    same_gain: bool | None


@dataclass(frozen=True, slots=True)
class Worth:
    table: str
    seed: int
    share: float
    cost: dict[str, float]  # by rule, in milliseconds
    seed_cost: float


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    console = Console(width=150)
    timings = [timed(*problem, options.seeds) for problem in _problems()]
    show_timings(console, timings)
    worths = worth("synthetic", _mobile(_SEVEN, 32), Staircase(), options.seeds)
    tables = [selection_timed.measured_table(batch, options.seconds) for batch in options.batch_sizes] if options.seconds else []
    for table in tables:
        worths += worth(f"measured, batch {table.setting.batch}", selection_timed.NETWORK.wiring(), table, options.seeds)
    summary = {table: ratios([one for one in worths if one.table == table]) for table in dict.fromkeys(one.table for one in worths)}
    show_worths(console, worths, summary)
    whole = selection_timed.run(console, tables, options.seeds)
    if options.output:
        figures = {
            "targets": TARGETS,
            "whole_networks": whole,
            "timings": [asdict(t) for t in timings],
            "worth": [asdict(w) for w in worths],
            "ratios": summary,
        }
        options.output.write_text(json.dumps(figures, indent=1))


def _problems() -> list[tuple[str, Wiring, str, CostModel, bool]]:
    """Name, wiring, cost, its model, and whether the mixed-integer program is tried as well."""
    seven, thirty = _mobile(_SEVEN, 32), _mobile((640,) * 30, 32)
    v2 = Network("mobilenet_v2", default_widths("mobilenet_v2"), 224, 3, 1000).wiring()
    dense = find_groups(DenseNet(4, (6, 12, 24, 16), 8, 2, num_classes=10).eval(), torch.randn(1, 3, 32, 32)).wiring
    return [
        ("7 layers", seven, "steps of 4", Staircase(4), True),
        ("7 layers", seven, "steps of 16", Staircase(16), True),
        ("7 layers", seven, "macs", Macs(), True),
        ("30 layers to 1280", thirty, "steps of 16", Staircase(16), False),
        ("30 layers to 1280", thirty, "steps of 8", Staircase(8), False),
        ("30 layers to 1280", thirty, "steps of 4", Staircase(4), False),
        ("30 layers to 1280", thirty, "macs", Macs(), False),
        ("mobilenet_v2, 224 px", v2, "steps of 8", Staircase(8), False),
        ("mobilenet_v2, 224 px", v2, "macs", Macs(), False),
        ("densenet121, narrow", dense, "macs", Macs(), False),
    ]


def timed(name: str, wiring: Wiring, cost: str, model: CostModel, program: bool, seeds: int) -> Timing:
    """Selections with 40 % of what doubling all widths would cost on top, one per seed."""
    walls, cpus, gaps, programs, same = [], [], [], [], []
    doubled = [2 * width for width in wiring.widths]
    low, high = (model.network(wiring.shapes(widths)).value for widths in (wiring.widths, doubled))
    budget = Budget(model, low + 0.4 * (high - low))
    for seed in range(seeds):
        totals = gains(wiring, seed)
        started, cpu = time.perf_counter(), time.process_time()
        chosen = select(totals, wiring, budget)
        walls.append(time.perf_counter() - started)
        cpus.append(time.process_time() - cpu)
        gaps.append(chosen.gap)
        if program:
            started = time.perf_counter()
            other = select(totals, wiring, budget, method="program")
            programs.append(time.perf_counter() - started)
            same.append(math.isclose(other.gain, chosen.gain, rel_tol=1e-7))
    proven = sum(gap == 0 for gap in gaps) / len(gaps)
    candidates = sum(wiring.widths) + len(wiring.widths)
    return Timing(
        name, cost, chosen.method, len(wiring.widths), candidates, median(walls), max(walls), median(cpus), proven, max(gaps),
        median(programs) if programs else None, all(same) if same else None,
    )  # fmt: skip


def worth(table: str, wiring: Wiring, model: CostModel, seeds: int) -> list[Worth]:
    """Every rule's network at every share, priced by the same table."""
    found = []
    for seed in range(seeds):
        for share in SHARES:
            costs = {name: cost_of(wiring, counts, model) for name, counts in choices(wiring, model, seed, share).items()}
            found.append(Worth(table, seed, share, costs, cost_of(wiring, (0,) * len(wiring.widths), model)))
    return found


def ratios(worths: Sequence[Worth]) -> dict[str, dict[str, float]]:
    """The exact rule's cost over each other's: geometric means over the seeds by share, over all, and the largest; and the same for
    what all networks together cost more than their seeds (``added``).
    """
    found: dict[str, dict[str, float]] = {}
    for rule in RULES:
        if rule != "exact":
            each = [(one.share, one.cost["exact"] / one.cost[rule]) for one in worths]
            by_share = {str(share): geometric_mean([ratio for at, ratio in each if at == share]) for share in SHARES}
            added, others = (sum(one.cost[name] - one.seed_cost for one in worths) for name in ("exact", rule))
            all_ratios = [ratio for _, ratio in each]
            found[rule] = {**by_share, "all": geometric_mean(all_ratios), "worst": max(all_ratios), "added": added / others}
    return found


def show_timings(console: Console, timings: Sequence[Timing]) -> None:
    table = Table(title="one selection, every width a candidate", box=SIMPLE)
    for heading in (
        "problem",
        "cost",
        "method",
        "groups",
        "widths",
        "wall s",
        "worst",
        "CPU s",
        "proven",
        "worst gap",
        "program s",
        "same gain",
    ):
        table.add_column(heading, justify="left" if heading in ("problem", "cost", "method") else "right")
    for one in timings:
        other = ("", "") if one.program_wall_s is None else (f"{one.program_wall_s:.2f}", "yes" if one.same_gain else "NO")
        table.add_row(
            one.problem, one.cost, one.method, str(one.groups), str(one.candidates), f"{one.wall_s:.3f}", f"{one.worst_wall_s:.3f}",
            f"{one.cpu_s:.3f}", f"{one.proven:.0%}", f"{one.worst_gap:.1e}", *other,
        )  # fmt: skip
    console.print(table)


def show_worths(console: Console, worths: Sequence[Worth], summary: dict[str, dict[str, dict[str, float]]]) -> None:
    for name, rules in summary.items():
        cases = sum(one.table == name for one in worths)
        table = Table(title=f"{name} table: cost of the exact rule's networks / the other's, {cases} cases", box=SIMPLE)
        columns = [*(str(share) for share in SHARES), "all", "worst", "added"]
        for heading in ("rule", *columns, "target"):
            table.add_column(heading, justify="left" if heading == "rule" else "right")
        for rule, row in rules.items():
            target = TARGETS.get(rule)
            verdict = "" if target is None else f"{target:.2f} {'met' if row['all'] <= target else 'MISSED'}"
            table.add_row(rule, *(f"{row[column]:.3f}" for column in columns), verdict)
        console.print(table)


def _mobile(widths: tuple[int, ...], size: int) -> Wiring:
    """A stem and blocks of a depthwise and a pointwise convolution, like mobilenet_v1; 32 -> 16 -> 8 pixels."""
    units = [Unit("stem", LayerShape("conv2d", 3, widths[0], 3, 1, 1, size, size, True, "silu"), None, 0)]
    strides = _STRIDES if len(widths) == len(_SEVEN) else (1,) * (len(widths) - 1)
    for block, stride in enumerate(strides):
        read, write = widths[block : block + 2]
        depthwise = LayerShape("conv2d", read, read, 3, stride, read, size, size, True, "silu")
        units.append(Unit(f"blocks.{block}.depthwise", depthwise, block, block))
        size = depthwise.output_size[0]
        pointwise = LayerShape("conv2d", read, write, 1, 1, 1, size, size, True, "silu")
        units.append(Unit(f"blocks.{block}.pointwise", pointwise, block, block + 1))
    units.append(Unit("classifier", LayerShape("linear", widths[-1], 10), len(widths) - 1, None))
    return Wiring(widths, tuple(units))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    parser.add_argument("--seeds", type=int, default=5, help="draws of gains for each problem")
    parser.add_argument("--seconds", type=float, default=60.0, help="time to measure this machine per batch size; 0: not at all")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32], help="images per inference")
    return parser.parse_args()


if __name__ == "__main__":
    main()
