"""How far the latency tables of this machine are from the truth: whole networks, growth steps, and what time a good table takes.

    python -m benchmarks.latency --output latency.json [--only networks steps curve]

Takes about 20 minutes.  All targets stand in the output, missed ones as such.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import latency_curve, latency_networks, latency_steps
from profiler.device import fingerprint, fingerprint_id
from profiler.timing import NoResult

Part = Callable[[Console, float], dict[str, Any]]  # the console, and a factor on all time budgets
WIDTH = 100  # characters: the widest table, wherever it is printed
PARTS: dict[str, Part] = {"networks": latency_networks.run, "steps": latency_steps.run, "curve": latency_curve.run}


def main() -> None:
    options = _options()
    console, machine = Console(width=WIDTH), fingerprint(threads=1)
    report: dict[str, Any] = {"fingerprint": machine, "fingerprint_id": fingerprint_id(machine)}
    for name in options.only:
        began = time.monotonic()
        try:
            report[name] = PARTS[name](console, options.time_factor)
        except NoResult as reason:
            console.print(f"{name} MISSES its targets: {reason}", highlight=False)
            report[name] = {"reason": str(reason)}
        report[name]["seconds"] = time.monotonic() - began
    if options.output:
        options.output.write_text(json.dumps(report, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="parts to run")
    parser.add_argument("--time-factor", type=float, default=1.0, help="on every time budget; targets hold for 1")
    return parser.parse_args()


if __name__ == "__main__":
    main()
