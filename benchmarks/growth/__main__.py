"""Runs what is missing of the experiments, within a time, and writes docs/growth.md from all results.  See ``--help``.

What is timed (a product of the score, the table of latencies) runs alone; everything else in several processes of one thread each, so
that a result depends neither on how many there are nor on who else runs.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from benchmarks.growth import page
from benchmarks.growth.arms import SEEDS
from benchmarks.growth.parts import COSTS, PARTS, alone, finished, prepare, side_by_side
from benchmarks.growth.records import FOLDER, Clock
from benchmarks.growth.tasks import TASKS


def main() -> None:
    options = _options()
    clock = Clock.minutes(options.minutes)
    prepare()
    done = all(finished(work) for work in alone(options, clock))
    with ProcessPoolExecutor(options.processes, get_context("spawn"), prepare) as pool:
        running = {pool.submit(finished, work): name for name, work in side_by_side(options, clock)}
        for ended in as_completed(running):
            print(f"{running[ended]}: {'done' if ended.result() else 'not done'}, {clock.left / 60:.0f} minutes left", flush=True)
            done &= ended.result()
    if not done:
        print("The time is over.  The same command goes on from here.")
    page.write(options.results, options.page)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone (default: all)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at a time, of one thread each (default: one per core)")
    parser.add_argument("--minutes", type=float, default=90.0, help="begin nothing new after this time")
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds of each comparison")
    parser.add_argument("--tried-seeds", type=int, default=1, help="seeds of the table of everything tried")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--start", choices=SEEDS, default="constant", help="the network that grows: an expert's pyramid, or constant widths"
    )
    parser.add_argument("--cost", nargs="+", choices=COSTS, default=list(COSTS), help="what is bounded; latency is measured here")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the JSON lines")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="the page that is written; its plots lie beside it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
