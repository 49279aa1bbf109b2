"""How far energy windows are from the truth, on the NVML stub, where the truth is known.

Run: ``python benchmarks/energy.py [--runs 200] [--output FILE.json]``.  Every run is another world: work of a random length and two
random powers, sensor noise, another phase between work, counter and sampling.  Times are virtual: a run of a minute takes 0.2 s.

- error: |joules per repetition / truth - 1|, gross;
- coverage: the share of runs whose 95 % interval holds the truth;
- no number: runs on a GPU that throttles or is lost at a random moment, and still give a number, must be none.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.nvml_stub import IDLE_WATTS, NvmlStub, build
from costs.model import CostName
from profiler.energy import Energy
from profiler.meters import SOURCES, Reading
from profiler.timing import NoResult
from profiler.windows import Host, Plan, measure_energy

PERIOD = 0.1
VARIANTS = {"all of the time": ("NVIDIA GeForce RTX 3090", 1.0), "25 ms of each 100 ms": ("NVIDIA A100-SXM4-80GB", 0.25)}


@dataclass(frozen=True, slots=True)
class Result:
    """Percent, over the runs that gave a number."""

    sampled: str
    meter: str
    runs: int
    no_result: int
    median_error: float
    worst_error: float
    net_median_error: float
    coverage: float
    net_coverage: float
    median_half_width: float
    median_windows: float
    virtual_seconds: float


class CalmHost:
    """The stub has a clock of its own, so a busy machine disturbs nothing."""

    quantity: CostName = "latency_ms"
    window_seconds = 1e-3

    def start(self) -> None:
        """Nothing to time."""

    def stop(self) -> Reading:
        return Reading(0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stub = NvmlStub(build(Path(folder)))
        results = [accuracy(stub, sampled, meter, options.runs) for sampled in VARIANTS for meter in ("nvml_total_energy", "nvml_power")]
        spoiled = {kind: numbers_in_spite_of(stub, kind, options.runs) for kind in ("throttled", "lost")}
    show(results, spoiled, options.runs)
    if options.output:
        options.output.write_text(json.dumps({"results": [asdict(result) for result in results], "numbers_in_spite_of": spoiled}, indent=1))
    return 0


def accuracy(stub: NvmlStub, sampled: str, meter: str, runs: int) -> Result:
    """Many worlds, each with another truth."""
    gross, net, covered, net_covered, widths, windows, seconds = [], [], [], [], [], [], []
    for seed in range(runs):
        parts = world(stub, seed, sampled)
        try:
            energy = measure(stub, parts, meter, seed)
        except NoResult:
            continue
        truth = sum(duration * watts for duration, watts in parts)
        above_idle = truth - IDLE_WATTS * sum(duration for duration, _ in parts)
        gross.append(100 * abs(energy.gross.value / truth - 1))
        net.append(100 * abs(energy.net.value / above_idle - 1))
        covered.append(energy.gross.low <= truth <= energy.gross.high)
        net_covered.append(energy.net.low <= above_idle <= energy.net.high)
        widths.append(100 * energy.gross.half_width / energy.gross.value)
        windows.append(energy.windows)
        seconds.append(stub.clock())
    return Result(
        sampled, meter, runs, runs - len(gross), median(gross), max(gross), median(net),
        100 * fmean(covered), 100 * fmean(net_covered), median(widths), median(windows), fmean(seconds),
    )  # fmt: skip


def world(stub: NvmlStub, seed: int, sampled: str) -> list[tuple[float, float]]:
    """Set the stub up; returns the parts of the work, (seconds, watts)."""
    name, fraction = VARIANTS[sampled]
    chance = random.Random(seed)
    stub.reset(seed=seed + 1)
    stub.name("GPU-bench", name, "0")
    stub.set("architecture", 7)
    for knob, value in (("period", PERIOD), ("fraction", fraction), ("noise", 0.02), ("phase", chance.uniform(0, PERIOD))):
        stub.set(knob, value)
    stub.sleep(chance.uniform(0, 10 * PERIOD))
    length, share = 10 ** chance.uniform(-2.5, -0.7), chance.uniform(0.2, 0.8)  # 3 to 200 ms
    return [(length * share, chance.uniform(80, 200)), (length * (1 - share), chance.uniform(200, 400))]


def measure(stub: NvmlStub, parts: list[tuple[float, float]], meter: str, seed: int) -> Energy:
    host = Host(stub.clock, stub.sleep, stub.every, stopwatch=CalmHost)
    return measure_energy(stub.work(*parts), SOURCES[meter](), Plan(), host, seed=seed)


def numbers_in_spite_of(stub: NvmlStub, kind: str, runs: int) -> int:
    """How many runs give a number on a GPU that is throttled, or lost, from a random moment on."""
    numbers = 0
    for seed in range(runs):
        parts = world(stub, seed, "all of the time")
        knob = ("throttle", 0x40) if kind == "throttled" else ("lost", 1)
        # Within what the shortest run takes before its last window ends
        stub.at(stub.clock() + random.Random(seed).uniform(0, 35), lambda knob=knob: stub.set(*knob))  # type: ignore[misc]
        try:
            measure(stub, parts, "nvml_total_energy", seed)
            numbers += 1
        except NoResult:
            pass
    return numbers


def show(results: list[Result], spoiled: dict[str, int], runs: int) -> None:
    print(f"{'sampled':>21} {'meter':>18} {'none':>5} {'error, median':>14} {'worst':>7} {'+- median':>10}", end="")
    print(f" {'coverage':>9} {'net cov.':>9} {'s':>5}")
    for r in results:
        print(
            f"{r.sampled:>21} {r.meter:>18} {r.no_result:>5} {r.median_error:>13.2f}% {r.worst_error:>6.2f}% {r.median_half_width:>9.2f}%"
            f" {r.coverage:>8.1f}% {r.net_coverage:>8.1f}% {r.virtual_seconds:>5.0f}"
        )
    for kind, numbers in spoiled.items():
        print(f"{kind} at a random moment: {numbers} of {runs} runs gave a number")


if __name__ == "__main__":
    sys.exit(main())
