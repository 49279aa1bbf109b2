"""Whole networks of two families: latency predicted from layers, against measured.

Layers and networks are measured in one session per family and batch size.  Each network is then predicted from its layers with what was
fitted to all other networks (``profiler.fit``), to those of its own family alone, as ``wattle profile`` does, and to those of both; errors
are prediction / measurement - 1.  Beside it, on the same networks and in the same way: latency proportional to MACs, and MACs with an
intercept.  Half of the random networks have widths off the measured grid, so the step model is tried as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from costs.families import Network, default_widths
from costs.model import Macs
from costs.table import Anchor, Setting
from profiler.fit import leave_one_out, proportional
from profiler.profile import profile_device

TARGET_PERCENT = {1: 5.0, 32: 8.0}  # mean error by batch size
NETWORKS = [
    Network("mobilenet_v1", default_widths("mobilenet_v1", 0.25), 32, 3, 10),
    Network("plain", default_widths("plain", 0.25), 32, 3, 10),
]
PER_FAMILY, MAX_GROWTH, SECONDS = 8, 3.0, 60.0
METHODS = {"table": "table", "macs": "a MACs", "macs_with_intercept": "a MACs + b"}


@dataclass(frozen=True, slots=True)
class Row:
    """One whole network that was measured."""

    family: str
    anchor: Anchor
    layers: int
    macs: float


def run(console: Console, time_factor: float) -> dict[str, Any]:
    sessions = [_session(console, batch, time_factor) for batch in TARGET_PERCENT]
    return {"target_mean_error_percent": TARGET_PERCENT, "sessions": sessions}


def _session(console: Console, batch: int, time_factor: float) -> dict[str, Any]:
    setting, rows, profiles = Setting(batch), list[Row](), dict[str, Any]()
    for network in NETWORKS:
        with console.status(f"{network.family}, {setting}: measuring for about {time_factor * SECONDS:g} s"):
            profile = profile_device(network, "this-host", setting, MAX_GROWTH, time_factor * SECONDS, anchors=PER_FAMILY)
        calibration, wiring = profile.table.calibration("latency_ms", setting), network.wiring()
        rows += [
            Row(network.family, each, len(wiring.units), Macs().network(wiring.shapes(each.widths)).value) for each in calibration.anchors
        ]
        counts = {"entries": len(profile.table), "rounds": profile.rounds, "missing": profile.missing}
        profiles[network.family] = {
            **counts,
            "scale": calibration.scale,
            "per_layer": calibration.per_layer,
            "drift": profile.drift,
            "warnings": profile.warnings,
        }
    result = {"batch": batch, "profiles": profiles, **_errors(rows, TARGET_PERCENT[batch])}
    _show(console, result, rows)
    return result


def _errors(rows: Sequence[Row], target: float) -> dict[str, Any]:
    """Percent, by method: with one scale for both families, and with a scale for each."""
    families = [[row for row in rows if row.family == network.family] for network in NETWORKS]
    pooled = _leave_one_out(rows)
    apart = [_leave_one_out(family) for family in families]
    own = {method: [error for errors in apart for error in errors[method]] for method in METHODS}
    means = {"fit_per_family": _means(own), "one_fit": _means(pooled)}
    return {
        "mean_error_percent": means,
        "worst_error_percent": {method: max(map(abs, errors)) for method, errors in own.items()},
        "within_target": {fit: found["table"] <= target for fit, found in means.items()},
        "networks": [
            {
                "family": row.family, "name": row.anchor.name, "widths": row.anchor.widths, "macs": row.macs,
                "measured_ms": row.anchor.measured, "measured_low_ms": row.anchor.low, "measured_high_ms": row.anchor.high,
                "error_percent": {method: own[method][i] for method in METHODS},
                "one_fit_error_percent": {method: pooled[method][i] for method in METHODS},
            }
            for i, row in enumerate(rows)
        ],
    }  # fmt: skip


def _means(errors: dict[str, list[float]]) -> dict[str, float]:
    return {method: fmean(map(abs, found)) for method, found in errors.items()}


def _leave_one_out(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Percent, by method, for each network."""
    measured, macs = [row.anchor.measured for row in rows], [row.macs for row in rows]
    layers = [row.layers for row in rows]
    errors = {
        "table": leave_one_out([row.anchor.layer_sum for row in rows], layers, measured),
        "macs": leave_one_out(macs, layers, measured, proportional),
        "macs_with_intercept": affine_leave_one_out(macs, measured),
    }
    return {method: [100 * error for error in found] for method, found in errors.items()}


def affine_leave_one_out(predictors: Sequence[float], measured: Sequence[float]) -> list[float]:
    """The same as ``profiler.fit.leave_one_out`` for a line with an intercept, fitted by least squares."""
    errors = []
    for i, (x, y) in enumerate(zip(predictors, measured, strict=True)):
        slope, intercept = linear_regression(_without(predictors, i), _without(measured, i))
        errors.append((slope * x + intercept) / y - 1)
    return errors


def _without(values: Sequence[float], i: int) -> list[float]:
    return [*values[:i], *values[i + 1 :]]


def _show(console: Console, result: dict[str, Any], rows: Sequence[Row]) -> None:
    table = Table(title=f"whole networks, batch {result['batch']}, 1 thread, leave-one-out within the family", box=SIMPLE)
    for heading in ("family", "network", "MMACs", "ms", *METHODS.values()):
        table.add_column(heading, justify="left" if heading in ("family", "network") else "right", no_wrap=True)
    for row, found in zip(rows, result["networks"], strict=True):
        numbers = (f"{row.macs / 1e6:.1f}", f"{row.anchor.measured:.3f}")
        table.add_row(row.family, row.anchor.name, *numbers, *_cells(found["error_percent"], "{:+.1f} %"))
    table.add_section()
    means = result["mean_error_percent"]
    summary = {
        "mean error": means["fit_per_family"],
        "worst error": result["worst_error_percent"],
        "mean, one fit for both": means["one_fit"],
    }
    for label, errors in summary.items():
        table.add_row("", label, "", "", *_cells(errors, "{:.1f} %"))
    console.print(table)
    for fit, good in result["within_target"].items():
        verdict, mean = "within" if good else "MISSES", result["mean_error_percent"][fit]["table"]
        console.print(f"{fit}: {mean:.1f} % {verdict} the target of {TARGET_PERCENT[result['batch']]:g} %", highlight=False)


def _cells(errors: dict[str, float], words: str) -> list[str]:
    return [words.format(errors[method]) for method in METHODS]
