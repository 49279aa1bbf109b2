"""``python -m profiler``: measure this machine for a network family, without the service; prints a table and writes JSON."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from costs.families import Family, Network, default_widths
from costs.table import Calibration, NoCost, Setting, TableCost
from profiler.device import fingerprint, fingerprint_id
from profiler.energy_request import EnergyRequest
from profiler.meters import SOURCES, MeterError
from profiler.plan import WINDOW_SECONDS, Plan
from profiler.processor import Processor, open_processor
from profiler.profile import Profile, profile_device
from profiler.readings import Readings, ReadingsFile
from profiler.timing import NoResult


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 with a message when the network or setting is out of range or the machine was too busy."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=options.json)
    try:
        _check_output(options.output)
        network = _network(options)
        setting = Setting(options.batch_size, options.threads)
        profile = _with_progress_bar(console, network, setting, open_processor(options.torch_device), options)
    except (ValueError, NoCost, NoResult, MeterError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 1
    report = _report(profile, network, setting)
    if options.output:
        options.output.write_text(json.dumps(report, indent=1))
    if options.readings:
        options.readings.unlink(missing_ok=True)
    if options.json:
        sys.stdout.write(json.dumps(report))
    return _told(console, profile, network, options.output)


def _told(console: Console, profile: Profile, network: Network, output: Path | None) -> int:
    """What was found, and what was not: 1 if that is an energy that was asked for, or a layer of the network itself."""
    if output:
        console.print(f"written to {output}", highlight=False)
    try:
        for calibration in profile.table.calibrations:
            _show(console, profile, network, calibration)
    except NoCost as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 1
    finally:
        for warning in profile.warnings:
            console.print(f"[yellow]{warning}[/yellow]", highlight=False)
    if profile.no_energy:
        console.print(f"[red]{profile.no_energy}[/red]", highlight=False)
    return 1 if profile.no_energy else 0


def _check_output(path: Path | None) -> None:
    """ValueError, before anything is measured, where the table could not be written."""
    if path and not path.parent.is_dir():
        raise ValueError(f"--output is {path}, and there is no folder {path.parent}; make it, or give another")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m profiler", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--family", choices=get_args(Family), default="mobilenet_v1", help="network family")
    add("--width-multiplier", type=float, default=0.25, help="factor on the family's published widths")
    add("--widths", type=int, nargs="+", help="all widths, instead of a multiplier")
    add("--activation", choices=("silu", "relu"), default="silu", help="activation function")
    add("--no-norm", action="store_true", help="no batch norm behind the convolutions")
    add("--image-size", type=int, default=32, help="pixels per side")
    add("--in-channels", type=int, default=3, help="image channels")
    add("--classes", type=int, default=10, help="number of classes")
    add("--max-growth", type=float, default=4.0, help="measure widths up to this multiple of the network's own")
    add("--batch-size", type=int, default=1, help="images per inference")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--torch-device", default="cpu", help="what executes the layers: cpu, cuda, cuda:1")
    add("--seconds", type=float, default=60.0, help="time budget for latency")
    add("--meter", choices=tuple(SOURCES), help="also measure energy, with this meter; `wattle doctor` says which work here")
    add("--energy-seconds", type=float, default=900.0, help="time budget for energy")
    add("--device", default="this-host", help="name of this machine in the table")
    add(
        "--readings",
        type=Path,
        help="file that keeps the readings while measuring; an interrupted run with the same options goes on from it",
    )
    add("--output", type=Path, help="file for the table as JSON")
    add("--json", action="store_true", help="write the JSON to standard output, everything else to standard error")
    return parser


def _network(options: argparse.Namespace) -> Network:
    widths = tuple(options.widths or default_widths(options.family, options.width_multiplier))
    return Network(
        options.family, widths, options.image_size, options.in_channels, options.classes, options.activation, not options.no_norm
    )


def _with_progress_bar(console: Console, network: Network, setting: Setting, on: Processor, options: argparse.Namespace) -> Profile:
    plan = Plan.of(WINDOW_SECONDS, options.energy_seconds)
    energy = EnergyRequest.by(options.meter, plan, on) if options.meter else None
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    # Redrawn by the callback alone: a thread that redraws on its own would take the core from what is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("building", total=options.seconds)

        def progress(done: int, total: int, message: str) -> None:
            bar.update(task, completed=done, total=total, description=message, refresh=True)

        kept = _kept(network, setting, on, options)
        arguments = (network, options.device, setting, options.max_growth, options.seconds, progress)
        try:
            profile = profile_device(*arguments, energy=energy, kept=kept, on=on)
        except NoResult:
            if isinstance(kept, ReadingsFile):
                kept.discard()  # they took their time and were too few: the next run is to measure anew
            raise
    return profile


def _kept(network: Network, setting: Setting, on: Processor, options: argparse.Namespace) -> Readings:
    if options.readings is None:
        return Readings()
    asked = {"network": asdict(network), "setting": asdict(setting), "max_growth": options.max_growth}
    return ReadingsFile(path=options.readings, plan={**asked, "fingerprint": fingerprint(setting.threads, on)})


def _show(console: Console, profile: Profile, network: Network, calibration: Calibration) -> None:
    """One quantity: the units of the network as given, its total, and how far to trust it."""
    quantity, setting = calibration.quantity, calibration.setting
    cost = TableCost(profile.table, quantity, setting)
    source = f"{quantity} by {calibration.meter} ({calibration.scope})"
    table = Table(title=f"{network.family} {network.image_size} px, {setting}, on {profile.table.device}, {source}", box=SIMPLE)
    for heading in ("unit", cost.unit, "95 % interval", "kind", "readings"):
        table.add_column(heading, justify="left" if heading in ("unit", "kind") else "right")
    for unit in network.wiring().units:
        entry = profile.table.entry(unit.shape, setting, quantity)
        _add_row(table, unit.name, entry.value, entry.interval, entry.kind, str(entry.repetitions))
    table.add_section()
    whole = cost.network(network.wiring().shapes())
    _add_row(table, "whole network", whole.value, (whole.low or 0.0, whole.high or 0.0), whole.kind)
    for anchor in calibration.anchors:
        _add_row(table, f"anchor: {anchor.name}", anchor.measured, (anchor.low, anchor.high), calibration.kind)
    console.print(table)
    entries = sum(entry.quantity == quantity for entry in profile.table)
    console.print(
        f"{entries} entries; whole network = {calibration.scale:.3f} x layer sum{_per_layer(calibration)}, "
        f"{calibration.error_percent:.1f} % mean error leave-one-out over {len(calibration.anchors)} networks",
        highlight=False,
    )


def _per_layer(calibration: Calibration) -> str:
    return f" + {calibration.per_layer:.4f} for each layer" if calibration.per_layer else ""


def _add_row(table: Table, name: str, value: float, interval: tuple[float, float], kind: str, readings: str = "") -> None:
    table.add_row(name, f"{value:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}", kind, readings)


def _report(profile: Profile, network: Network, setting: Setting) -> dict[str, Any]:
    return {
        "fingerprint": profile.fingerprint,
        "fingerprint_id": fingerprint_id(profile.fingerprint),
        "network": asdict(network),
        "setting": asdict(setting),
        "rounds": profile.rounds,
        "drift_percent": None if profile.drift is None else 100 * profile.drift,
        "drifts": profile.drifts,
        "twins": profile.twins,
        "warnings": profile.warnings,
        "no_energy": None if profile.no_energy is None else str(profile.no_energy),
        "missing": profile.missing,
        "table": profile.table.to_json(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
