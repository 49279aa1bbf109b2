"""Energies of a device's cost table: measured for a shortlist of layers, power times time for all others, calibrated by whole networks.

Energy windows take half a minute for each piece of work, so a time budget holds few.  Layers are grouped into classes that draw
alike (operation, kernel, depthwise or not); of each class, layers are measured from the quickest to the slowest, evenly spaced, and the
power they drew, times the measured time of the others, is an estimate of these, marked ``estimated:power_x_time``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from costs.power import Power, power_times_time
from costs.shapes import LayerShape, Wiring
from costs.table import Calibration, CostEntry, CostTable, Setting
from profiler.anchors import MIN_ANCHORS, calibrate
from profiler.energy import Energy
from profiler.energy_request import TWINS, EnergyRequest
from profiler.meters import Origin
from profiler.sweep import as_entries
from profiler.timing import NoResult, Progress, Work
from profiler.units import unit_work
from profiler.windows import Plan

MAX_ANCHORS = 5


@dataclass(frozen=True, slots=True)
class EnergyCosts:
    """Entries and scale for a table, and what speaks about the session they are from."""

    entries: list[CostEntry]
    calibration: Calibration
    missing: dict[str, str]
    drift: float | None
    twin: float | None


def measure_energy_costs(
    latencies: CostTable,
    wiring: Wiring,
    wholes: Mapping[str, tuple[Sequence[int], Work]],
    setting: Setting,
    request: EnergyRequest,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> EnergyCosts:
    """An energy for every layer that ``latencies`` holds in this setting, and the scale to ``wholes``: name -> (widths, inference).

    NoResult when the time budget is too small for the fewest windows, or too few whole networks gave a number; DeviceLost with none.
    """
    times = {entry.shape: entry for entry in latencies if entry.quantity == "latency_ms" and entry.setting == setting}
    anchors = list(wholes)[: _anchors(request.plan, len(wholes))]
    chosen = shortlist(times, _room(request.plan, len(anchors), len(_classes(times))))
    work: dict[LayerShape | str, Work] = {name: wholes[name][1] for name in anchors}
    work.update(unit_work(chosen, setting, request.on).items())
    session = request.measure(work, progress, should_stop)
    missing = {str(key): str(reason) for key, reason in session.missing.items()}
    found = {key: energy for key, energy in session.results.items() if isinstance(key, LayerShape)}
    measured = {key: (wholes[key][0], energy.measurement()) for key, energy in session.results.items() if isinstance(key, str)}
    if not found or len(measured) < MIN_ANCHORS:
        reason = next(iter(missing.values()), f"{len(wholes)} whole networks were given, {MIN_ANCHORS} are needed")
        raise NoResult(f"{len(measured)} whole networks and {len(found)} layers have an energy: {reason}")
    entries = as_entries({shape: energy.measurement() for shape, energy in found.items()}, setting, "energy_mj")
    entries += estimates(found, [time for shape, time in times.items() if shape not in found])
    calibration = calibrate(CostTable(latencies.device, entries), wiring, measured, setting, "energy_mj")
    return EnergyCosts(entries, calibration, missing, session.drift, session.twin)


def check_room(plan: Plan, shapes: Iterable[LayerShape], networks: int) -> None:
    """NoResult, before anything is measured, when the time budget can't hold windows of each class of these layers."""
    _room(plan, _anchors(plan, networks), len(_classes(shapes)))


def shortlist(times: Mapping[LayerShape, CostEntry], room: int) -> list[LayerShape]:
    """At most ``room`` layers: two of each class (one, if there is no room for two), and more by the classes' shares of the layers."""
    classes = _classes(times)
    least = 2 if room >= 2 * len(classes) else 1
    spare = room - least * len(classes)
    shares = {key: least + int(spare * len(shapes) / len(times)) for key, shapes in classes.items()}
    return [shape for key, shapes in classes.items() for shape in _evenly(sorted(shapes, key=lambda s: times[s].value), shares[key])]


def estimates(measured: Mapping[LayerShape, Energy], times: Iterable[CostEntry]) -> list[CostEntry]:
    """Power of the class times time; of all layers measured, where a class has fewer than two."""
    everyone, origin = list(measured.values()), next(iter(measured.values())).origin
    classes = {key: [measured[shape] for shape in shapes] for key, shapes in _classes(measured).items()}
    alike = {key: _power(found if len(found) > 1 else everyone, origin) for key, found in classes.items()}
    return [power_times_time(alike.get(_class(time.shape)) or _power(everyone, origin), time) for time in times]


def _power(energies: Sequence[Energy], origin: Origin) -> Power:
    """The median, in an interval that reaches over all of them."""
    watts = [energy.watts for energy in energies]
    middle, low, high = median(w.value for w in watts), min(w.low for w in watts), max(w.high for w in watts)
    return Power(middle, low, high, origin.meter, origin.scope, "estimated:power_x_time", origin.sensor_error)


def _anchors(plan: Plan, there: int) -> int:
    """A third of the room, between the fewest that calibrate and ``MAX_ANCHORS``."""
    return min(there, max(MIN_ANCHORS, min(MAX_ANCHORS, plan.subjects() // 3)))


def _room(plan: Plan, anchors: int, classes: int) -> int:
    room = plan.subjects() - TWINS - anchors
    if room < classes:
        needed = plan.seconds_for(TWINS + anchors + classes)
        raise NoResult(
            f"{plan.seconds:g} s hold the energy windows of {plan.subjects()} pieces of work; {classes} classes of layers, {anchors} whole "
            f"networks and {TWINS} controls are needed: set energy_seconds to at least {math.ceil(needed)}"
        )
    return room


def _class(shape: LayerShape) -> tuple[str, int, bool]:
    return shape.op, shape.kernel, shape.depthwise


def _classes(shapes: Iterable[LayerShape]) -> dict[tuple[str, int, bool], list[LayerShape]]:
    classes: dict[tuple[str, int, bool], list[LayerShape]] = defaultdict(list)
    for shape in shapes:
        classes[_class(shape)].append(shape)
    return classes


def _evenly(shapes: Sequence[LayerShape], n: int) -> list[LayerShape]:
    """``n`` of them, both ends included; one alone is the middle one."""
    if n == 1:
        return [shapes[len(shapes) // 2]]
    if n >= len(shapes):
        return list(shapes)
    return [shapes[round(i * (len(shapes) - 1) / (n - 1))] for i in range(n)]
