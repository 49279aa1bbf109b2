"""How good a table is after how much time: mobilenet_v1 at 32 pixels, batch 1.

One session goes on and on; after each time budget the table is judged by what it then holds, against whole networks as they were
measured by the end: the mean error of predicting each from its layers, with a scale fitted to the others.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from benchmarks.latency_networks import NETWORKS
from costs.table import Calibration, Setting
from profiler.fit import leave_one_out
from profiler.profile import profile_device
from profiler.readings import Readings
from profiler.timing import NoResult

BUDGETS = (15.0, 30.0, 60.0, 120.0, 240.0, 360.0)  # seconds
TARGET_PERCENT, TARGET_SECONDS = 5.0, 360.0
MAX_GROWTH, SETTING, WORST_SHOWN = 4.0, Setting(), 20.0


def run(console: Console, time_factor: float) -> dict[str, Any]:
    kept, points = Readings(), []
    for budget in (time_factor * budget for budget in BUDGETS):
        try:
            with console.status(f"error against time: measuring until {budget:g} s"):
                profile = profile_device(NETWORKS[0], "this-host", SETTING, MAX_GROWTH, budget, kept=kept)
        except NoResult as reason:
            console.print(f"no table after {budget:g} s: {reason}", highlight=False)
            continue
        points.append((budget, kept.seconds, len(profile.table), profile.table.calibration("latency_ms", SETTING)))
    if not points:
        raise NoResult("no table after any of the times")
    truth = {anchor.name: anchor.measured for anchor in points[-1][-1].anchors}
    curve = [
        {"budget_seconds": budget, "seconds": spent, "entries": entries, "mean_error_percent": _error(calibration, truth)}
        for budget, spent, entries, calibration in points
    ]
    good = next((point["seconds"] for point in curve if point["mean_error_percent"] <= TARGET_PERCENT), None)
    result = {"target_percent": TARGET_PERCENT, "target_seconds": TARGET_SECONDS, "good_after_seconds": good, "curve": curve}
    _show(console, result)
    return result


def _error(calibration: Calibration, truth: dict[str, float]) -> float:
    anchors = [anchor for anchor in calibration.anchors if anchor.name in truth]
    layers = [len(NETWORKS[0].wiring().units)] * len(anchors)
    errors = leave_one_out([anchor.layer_sum for anchor in anchors], layers, [truth[anchor.name] for anchor in anchors])
    return 100 * fmean(map(abs, errors))


def _show(console: Console, result: dict[str, Any]) -> None:
    table = Table(title="error of predicted whole networks against profiling time, mobilenet_v1 32 px, batch 1", box=None)
    for heading in ("seconds", "entries", "mean error", ""):
        table.add_column(heading, justify="right")
    for point in result["curve"]:
        error = point["mean_error_percent"]
        bar = ProgressBar(total=WORST_SHOWN, completed=error, width=40)
        table.add_row(f"{point['seconds']:.0f}", str(point["entries"]), f"{error:.1f} %", bar)
    console.print(table)
    good = result["good_after_seconds"]
    verdict = f"after {good:.0f} s" if good is not None and good <= TARGET_SECONDS else "MISSED"
    console.print(f"target of {TARGET_PERCENT:g} % in {TARGET_SECONDS:g} s: {verdict}", highlight=False)
