"""Runs what is missing of the experiments, within a time, and writes docs/growth.md from all results.  See ``--help``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.growth import page
from benchmarks.growth.arms import SEEDS, Setting
from benchmarks.growth.factorial import factorial
from benchmarks.growth.landscape import landscape
from benchmarks.growth.law import law
from benchmarks.growth.prices import latency
from benchmarks.growth.records import FOLDER, Clock, OutOfTime, Results
from benchmarks.growth.saturation import saturation
from benchmarks.growth.score import score
from benchmarks.growth.shaped import register_shaped
from benchmarks.growth.tasks import TASKS
from benchmarks.growth.tried import tried
from costs.model import Macs

PARTS = ("tasks", "law", "score", "factorial", "landscape", "tried")
DRAWS = 50  # of widths, in each task's landscape


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    register_shaped()
    clock = Clock.minutes(options.minutes)
    try:
        for part in options.only or PARTS:
            print(f"== {part}, {clock.left / 60:.0f} minutes left", flush=True)
            run(part, options, clock)
    except OutOfTime:
        print("The time is over.  The same command goes on from here.")
    page.write(options.results, options.page)


def run(part: str, options: argparse.Namespace, clock: Clock) -> None:
    """What is missing of one part.  OutOfTime if there is no time for all of it."""
    results = Results(options.results / f"{part}.jsonl", clock)
    if part == "tasks":
        saturation(results, options.seeds)
    elif part == "law":
        law(results)
    elif part == "score":
        score(results, options.seeds)
    elif part == "landscape":
        for task in options.tasks:
            landscape(results, task, DRAWS)
    elif part == "tried":
        for task in options.tasks:
            tried(results, *_setting(task, options), options.tried_seeds)
    else:
        for task in options.tasks:
            factorial(results, *_setting(task, options), options.seeds)


def _setting(task: str, options: argparse.Namespace) -> tuple[str, Setting]:
    """With its label."""
    label = f"{task}, {options.start} seed, {options.cost}"
    return label, Setting(task, options.start, latency(options.results, task) if options.cost == "latency" else Macs())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone (default: all)")
    parser.add_argument("--minutes", type=float, default=90.0, help="begin nothing new after this time")
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds of each comparison")
    parser.add_argument("--tried-seeds", type=int, default=2, help="seeds of the table of everything tried")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--start", choices=SEEDS, default="constant", help="the network that grows: an expert's pyramid, or constant widths"
    )
    parser.add_argument("--cost", choices=["MACs", "latency"], default="MACs", help="what is bounded; latency is measured here")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the JSON lines")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="the page that is written; its plots lie beside it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
