"""Predicted against measured latency of whole networks on this machine.

Measures layers and whole networks in one session per batch size, then predicts each network from its layers with the scale fitted to
all the others (leave-one-out; columns say prediction / measurement - 1).  Beside it, on the same networks: latency proportional to MACs,
and MACs with an intercept.  Half of
the random networks have widths off the measured grid, so the step model is tried as well.

    python -m benchmarks.latency --output latency.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any, get_args

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from costs.families import Family, Network, default_widths
from costs.model import Macs
from costs.table import Setting
from profiler.anchors import leave_one_out
from profiler.device import fingerprint_id
from profiler.profile import Profile, profile_device

TARGET_PERCENT = 8.0
METHODS = {"table": "table", "macs": "a MACs", "macs_with_intercept": "a MACs + b"}


def main() -> None:
    options = _options()
    console = Console()
    widths = default_widths(options.family, options.width_multiplier)
    network = Network(options.family, widths, options.image_size, 3, 10)
    sessions = []
    for batch in options.batch_sizes:
        setting = Setting(batch, options.threads)
        with console.status(f"{setting}: measuring for about {options.seconds:g} s"):
            profile = profile_device(network, "this-host", setting, options.max_growth, options.seconds, anchors=options.networks)
        sessions.append(result := compare(profile, network, setting))
        show(console, result, network)
    if options.output:
        options.output.write_text(json.dumps({"target_mean_error_percent": TARGET_PERCENT, "sessions": sessions}, indent=1))


def compare(profile: Profile, network: Network, setting: Setting) -> dict[str, Any]:
    """Leave-one-out errors of each method, relative, per network; all times in milliseconds."""
    calibration = profile.table.calibration("latency_ms", setting)
    anchors, wiring = calibration.anchors, network.wiring()
    measured = [anchor.measured for anchor in anchors]
    macs = [Macs().network(wiring.shapes(anchor.widths)).value for anchor in anchors]
    errors = {
        "table": leave_one_out([anchor.layer_sum for anchor in anchors], measured),
        "macs": leave_one_out(macs, measured),
        "macs_with_intercept": _affine_leave_one_out(macs, measured),
    }
    return {
        "fingerprint": profile.fingerprint,
        "fingerprint_id": fingerprint_id(profile.fingerprint),
        "batch": setting.batch,
        "threads": setting.threads,
        "rounds": profile.rounds,
        "entries": len(profile.table),
        "missing": profile.missing,
        "drift_percent": None if profile.drift is None else 100 * profile.drift,
        "scale": calibration.scale,
        "mean_error_percent": {method: 100 * fmean(map(abs, e)) for method, e in errors.items()},
        "worst_error_percent": {method: 100 * max(map(abs, e)) for method, e in errors.items()},
        "networks": [
            {
                "name": anchor.name,
                "widths": anchor.widths,
                "macs": macs[i],
                "measured_ms": anchor.measured,
                "measured_low_ms": anchor.low,
                "measured_high_ms": anchor.high,
                "error_percent": {method: 100 * e[i] for method, e in errors.items()},
            }
            for i, anchor in enumerate(anchors)
        ],
    }


def show(console: Console, result: dict[str, Any], network: Network) -> None:
    title = f"{network.family}, {network.image_size} px, batch {result['batch']}, {result['threads']} thread(s), leave-one-out"
    table = Table(title=title, box=SIMPLE)
    for heading in ("network", "MMACs", "ms", "95 % interval", *METHODS.values()):
        table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    for row in result["networks"]:
        interval = f"{row['measured_low_ms']:.2f} to {row['measured_high_ms']:.2f}"
        errors = [f"{row['error_percent'][method]:+.1f} %" for method in METHODS]
        table.add_row(row["name"], f"{row['macs'] / 1e6:.1f}", f"{row['measured_ms']:.3f}", interval, *errors)
    table.add_section()
    for label, key in (("mean error", "mean_error_percent"), ("worst error", "worst_error_percent")):
        table.add_row(label, "", "", "", *(f"{result[key][method]:.1f} %" for method in METHODS))
    console.print(table)
    drift = "unknown" if result["drift_percent"] is None else f"{result['drift_percent']:+.1f} %"
    console.print(f"{result['entries']} entries, {result['rounds']} rounds, scale {result['scale']:.3f}, drift {drift}", highlight=False)
    verdict = "within" if result["mean_error_percent"]["table"] <= TARGET_PERCENT else "BEYOND"
    console.print(f"mean error of the table {verdict} the target of {TARGET_PERCENT:g} %", highlight=False)


def _affine_leave_one_out(predictors: list[float], measured: list[float]) -> list[float]:
    errors = []
    for i, (x, y) in enumerate(zip(predictors, measured, strict=True)):
        slope, intercept = linear_regression(predictors[:i] + predictors[i + 1 :], measured[:i] + measured[i + 1 :])
        errors.append((slope * x + intercept) / y - 1)
    return errors


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    parser.add_argument("--seconds", type=float, default=90.0, help="time budget per batch size")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32], help="images per inference")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--networks", type=int, default=10, help="whole networks, at least 8")
    parser.add_argument("--family", choices=get_args(Family), default="mobilenet_v1", help="network family")
    parser.add_argument("--width-multiplier", type=float, default=0.25, help="width of the smallest network")
    parser.add_argument("--image-size", type=int, default=32, help="pixels per side")
    parser.add_argument("--max-growth", type=float, default=3.0, help="widest networks, as a multiple of the smallest")
    options = parser.parse_args()
    if options.networks < 8:
        parser.error(f"networks is {options.networks}; give at least 8")
    return options


if __name__ == "__main__":
    main()
