"""What one splitting product costs, in training steps of the same network, batch and memory format.

Run: ``python -m benchmarks.splitting [--output FILE.json]``.  The calls of a round follow each other on one thread; a ratio is the
median over rounds of the ratio within a round, so that what slows a shared machine for a while slows both sides.

- first: a new ``SplittingProduct`` and its first product: forward, backward to activations, preparation and the product itself;
- next: each further product on the same batch;
- step: forward, backward and SGD with momentum, in train mode.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional

from costs.families import Network, default_widths
from costs.shapes import Activation
from growth.groups import find_groups
from growth.networks import build
from growth.splitting import SplittingProduct

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass(frozen=True, slots=True)
class Result:
    width_multiplier: float
    memory_format: str
    step_cpu_ms: float
    first_per_step: float
    next_per_step: float
    rounds: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--widths", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="width multipliers of mobilenet_v1")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--activation", default="silu", choices=["silu", "relu"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pin_allocator()
    print(f"{'width':>6} {'format':>14} {'step cpu ms':>12} {'first/step':>11} {'next/step':>10}")
    results = []
    for multiplier in options.widths:
        for name in options.formats:
            result = compare(multiplier, name, options.activation, options.batch_size, options.rounds)
            results.append(result)
            print(
                f"{multiplier:6.2f} {name:>14} {result.step_cpu_ms:12.1f} {result.first_per_step:11.2f} {result.next_per_step:10.2f}",
                flush=True,
            )
    if options.output:
        setting = {"batch_size": options.batch_size, "image_size": 32, "activation": options.activation, "threads": 1}
        host = {"machine": platform.machine(), "torch": torch.__version__}
        options.output.write_text(json.dumps({"setting": setting, "host": host, "results": [asdict(r) for r in results]}, indent=1))


def compare(multiplier: float, memory_format: str, activation: Activation, batch_size: int, rounds: int) -> Result:
    """One network in one memory format."""
    network = Network("mobilenet_v1", default_widths("mobilenet_v1", multiplier), 32, 3, 10, activation)
    generator = torch.Generator().manual_seed(0)
    model = build(network, generator).to(memory_format=FORMATS[memory_format])
    x = torch.randn(batch_size, 3, 32, 32, generator=generator).to(memory_format=FORMATS[memory_format])
    target = torch.randint(10, (batch_size,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    graph = find_groups(model, x)
    product = SplittingProduct(model, graph, [(x, target)], functional.cross_entropy)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        functional.cross_entropy(model(x), target).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    def first() -> None:
        nonlocal product
        product = SplittingProduct(model, graph, [(x, target)], functional.cross_entropy)
        product(directions)

    def further() -> None:
        product(directions)

    directions = [torch.randn(shape, generator=generator) for shape in product.shapes]
    times = interleave({"step": step, "first": first, "next": further}, rounds)
    ratio = {name: median(a / b for a, b in zip(times[name], times["step"], strict=True)) for name in ("first", "next")}
    return Result(multiplier, memory_format, median(times["step"]) * 1e3, ratio["first"], ratio["next"], rounds)


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each call; every round makes each once, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            start = time.process_time()  # waiting for a core that others use does not count
            call()
            if number >= 2:
                times[name].append(time.process_time() - start)
    return times


def pin_allocator() -> None:
    """Keep freed memory instead of returning it: page faults would otherwise be part of every time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)


if __name__ == "__main__":
    main()
