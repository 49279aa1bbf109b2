"""What selection is worth on the clock: the networks that rules choose for the same share of the gain, run in turns on this machine.

mobilenet_v1 at a quarter of its width, 32 pixels, up to twice as wide, gains as in ``benchmarks.selection``.  The exact rule reads a
table measured here; its network is the base, the others are timed against it, a pair per round.  Beside each measured ratio stands the
one that the table promised, so that one sees what of a promise is left when networks run as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, geometric_mean
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.growth.stats import difference
from benchmarks.width_rules import RULES, choices, cost_of
from costs.families import Network, default_widths
from costs.table import Setting, TableCost
from growth.networks import build
from profiler.anchors import network_work
from profiler.device import ready_to_measure
from profiler.meters import METERS
from profiler.paired import paired_differences
from profiler.profile import profile_device
from profiler.timing import NoResult

SHARES = (0.3, 0.6, 0.85)  # of all gain
TARGETS = {"lp": 0.92, "greedy": 0.97}  # geometric mean of the exact rule's latency over theirs
NETWORK = Network("mobilenet_v1", default_widths("mobilenet_v1", 0.25), 32, 3, 10)
MAX_GROWTH = 2.0
SECONDS_PER_CASE = 6.0


@dataclass(frozen=True, slots=True)
class Case:
    """The exact rule's network against another's: measured and promised ratio of latencies; None where no pair was undisturbed."""

    seed: int
    share: float
    rule: str
    measured: float | None
    promised: float
    widths: tuple[int, ...]
    exact_widths: tuple[int, ...]


def measured_table(batch: int, seconds: float) -> TableCost:
    """Latencies of ``NETWORK`` on this machine."""
    setting = Setting(batch, 1)
    return TableCost(profile_device(NETWORK, "this-host", setting, MAX_GROWTH, seconds).table, "latency_ms", setting)


def timed_cases(model: TableCost, seeds: int) -> list[Case]:
    """Every seed and share."""
    with ready_to_measure(model.setting):
        return [case for seed in range(seeds) for share in SHARES for case in _cases(model, seed, share)]


def _cases(model: TableCost, seed: int, share: float) -> list[Case]:
    wiring, setting = NETWORK.wiring(), model.setting
    counts = choices(wiring, model, seed, share)
    price = {name: cost_of(wiring, count, model) for name, count in counts.items()}
    widths = {name: tuple(width + more for width, more in zip(wiring.widths, count, strict=True)) for name, count in counts.items()}
    measured = _ratios(widths, setting)
    return [
        Case(seed, share, name, measured[name], price["exact"] / price[name], widths[name], widths["exact"])
        for name in RULES
        if name != "exact"
    ]


def _ratios(widths: Mapping[str, tuple[int, ...]], setting: Setting) -> dict[str, float | None]:
    """Latency of the exact rule's network over each other's; 1 where the widths are the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(setting.batch, NETWORK.in_channels, NETWORK.image_size, NETWORK.image_size, generator=generator)
    unlike = {name: chosen for name, chosen in widths.items() if name == "exact" or chosen != widths["exact"]}
    work = dict(network_work({name: _module(chosen, generator) for name, chosen in unlike.items()}, images, setting))
    base = work.pop("exact")
    found = paired_differences(base, work, METERS["wall_clock"](), SECONDS_PER_CASE) if work else {}
    ratios: dict[str, float | None] = dict.fromkeys(widths, 1.0)
    for name, pair in found.items():
        ratios[str(name)] = None if isinstance(pair, NoResult) else pair.base / (pair.base + pair.median)
    return ratios


def _module(widths: tuple[int, ...], generator: torch.Generator) -> torch.nn.Module:
    return build(replace(NETWORK, widths=widths), generator).eval()


def summary(cases: Sequence[Case], rule: str) -> dict[str, Any]:
    """Geometric means over all cases; the 95 % interval is over the seeds' means, since shares of one seed have their gains in common."""
    own = [case for case in cases if case.rule == rule]
    measured = [case for case in own if case.measured is not None]
    seeds = sorted({case.seed for case in measured})
    by_seed = [[math.log(case.measured or 1) for case in measured if case.seed == seed] for seed in seeds]
    found = difference([fmean(logs) for logs in by_seed])
    return {
        "measured": math.exp(found.mean),
        "low": math.exp(found.mean - found.half_width),
        "high": math.exp(found.mean + found.half_width),
        "promised": geometric_mean([case.promised for case in own]),
        "worst": max(case.measured or 1 for case in measured),
        "cases": len(measured),
        "disturbed": len(own) - len(measured),
        "target": TARGETS.get(rule),
    }


def run(console: Console, tables: Sequence[TableCost], seeds: int) -> dict[str, Any]:
    found = {}
    for model in tables:
        batch = model.setting.batch
        with console.status(f"batch {batch}: measuring whole networks"):
            cases = timed_cases(model, seeds)
        rules = {rule: summary(cases, rule) for rule in RULES if rule != "exact"}
        show(console, f"whole networks, batch {batch}, one thread: latency of the exact rule's / the other's", rules)
        found[f"batch {batch}"] = {"rules": rules, "cases": [asdict(case) for case in cases]}
    return found


def show(console: Console, title: str, rules: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table(title=title, box=SIMPLE)
    for heading in ("rule", "measured", "95 %", "promised by the table", "worst", "cases", "disturbed", "target"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for rule, row in rules.items():
        target = row["target"]
        verdict = "" if target is None else f"{target:.2f} {'met' if row['measured'] <= target else 'MISSED'}"
        numbers = (f"{row['measured']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", f"{row['promised']:.3f}", f"{row['worst']:.3f}")
        table.add_row(rule, *numbers, str(row["cases"]), str(row["disturbed"]), verdict)
    console.print(table)
