"""The cost table of a device for everything a network can grow into: layers and whole networks, measured together.

Latencies first, of every layer, in one session; then, with a meter, energies in another: measured for some, estimated for the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from costs.families import Network, largest_widths
from costs.shapes import LayerShape, Wiring
from costs.table import Calibration, CostTable, NoCost, Setting
from growth.networks import build
from profiler.anchors import anchor_widths, calibrate, network_work
from profiler.device import Fingerprint, fingerprint, pieces_of_memory, ready_to_measure
from profiler.energy_costs import check_room, measure_energy_costs
from profiler.energy_request import EnergyRequest
from profiler.processor import CPU, Processor
from profiler.readings import Readings
from profiler.refine import refined, slowdown
from profiler.sweep import Grids, as_entries, grids_of, sentinel, shapes_on
from profiler.timing import NoResult, Progress, Session, Work, interleave, never, silent
from profiler.units import unit_work

ONE_IMAGE = Setting()
ANCHORS = 8
ANCHOR_SEED = 0
SITTINGS = 12
REFINED_AFTER = (2, 4, 6)  # sittings: each time, an interval between two widths can be halved
ROUNDS_OF_ALL = 60  # that the time after that must hold: a reading is one call
WARN_DRIFT_PERCENT, WARN_ERROR_PERCENT = 3.0, 15.0
WARN_TWIN_PERCENT = 5.0  # two intervals of 3 % leave a difference of 4.2 % to chance


@dataclass(frozen=True, slots=True)
class Profile:
    """A cost table and how it came about.

    ``missing`` gives the reason for each layer shape or anchor without a result, ``no_energy`` the one why there is none at all though one
    was asked for.  By quantity, ``drifts`` holds the relative change of a
    fixed piece of work from the first half of the session to the second, ``twins`` the difference between two measurements of it.
    """

    table: CostTable
    fingerprint: Fingerprint
    missing: dict[str, str]
    rounds: int
    drifts: dict[str, float]
    twins: dict[str, float] = field(default_factory=dict)
    no_energy: NoResult | None = None

    @property
    def drift(self) -> float | None:
        """Of the latencies."""
        return self.drifts.get("latency_ms")

    @property
    def error_percent(self) -> float:
        """Mean leave-one-out error with which layer sums predict the anchors, of the quantity that is predicted worst."""
        return max(calibration.error_percent for calibration in self.table.calibrations)

    @property
    def warnings(self) -> list[str]:
        """What speaks against relying on this table, as sentences."""
        found = [f"no result for {name}: {reason}" for name, reason in self.missing.items()]
        found += [_error_words(calibration) for calibration in self.table.calibrations if calibration.error_percent > WARN_ERROR_PERCENT]
        for quantity, drift in self.drifts.items():
            if 100 * abs(drift) > WARN_DRIFT_PERCENT:
                found.append(
                    f"{quantity} of a fixed piece of work changed by {100 * drift:+.1f} % meanwhile; measure again when it is quieter"
                )
        for quantity, apart in self.twins.items():
            if 100 * abs(apart) > WARN_TWIN_PERCENT:
                found.append(
                    f"{quantity} of one piece of work, measured twice, differs by {100 * abs(apart):.1f} %; so may any two numbers"
                )
        return found


def profile_device(
    network: Network,
    device: str = "this-host",
    setting: Setting = ONE_IMAGE,
    max_growth: float = 4.0,
    seconds: float = 60.0,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = never,
    anchors: int = ANCHORS,
    energy: EnergyRequest | None = None,
    kept: Readings | None = None,
    on: Processor = CPU,
) -> Profile:
    """Measure every layer shape that ``network`` can meet while it grows, and ``anchors`` whole networks, for about ``seconds``.

    The grids that it starts from are the same for the same arguments; where the readings show that the cost bends between two widths, and
    time allows, further ones are measured (``profiler.refine``).  Layers and anchors share every round, so the machine's
    slow minutes fall on both.  ``energy`` adds energies, in a session of their own with its own time budget.  ``kept`` holds the latency
    readings of a run with the same arguments that did not get to its end: this one goes on from there.  ``on`` executes it all.
    ValueError for a network or setting out of range; NoResult if the machine was too busy to calibrate; MeterError if the meter's
    device was lost.
    """
    wiring = network.wiring()
    largest = largest_widths(wiring.widths, max_growth)
    widths, grids = anchor_widths(wiring, largest, anchors, ANCHOR_SEED), grids_of(wiring, largest)
    if energy is not None:
        check_room(energy.plan, shapes_on(wiring, grids), len(widths))
    with ready_to_measure(setting):
        wholes = _anchor_work(network, widths, setting, on)
        sooner = partial(_sooner, progress, energy.plan.seconds if energy else 0.0)
        session = _measured(wiring, grids, wholes, setting, seconds, sooner, should_stop, kept or Readings(), on)
        units = {key: measured for key, measured in session.results.items() if isinstance(key, LayerShape)}
        measured = {key: (widths[key], found) for key, found in session.results.items() if isinstance(key, str)}
        entries = as_entries(units, setting)
        layers = CostTable(device, entries)
        unpriced = {name: "one of its layers has none" for name in measured if not _prices(layers, wiring.shapes(widths[name]), setting)}
        missing = {**{str(key): str(reason) for key, reason in session.missing.items()}, **unpriced}
        priced = {name: whole for name, whole in measured.items() if name not in unpriced}
        table = CostTable(device, entries, [calibrate(layers, wiring, priced, setting)])
        profile = Profile(table, fingerprint(setting.threads, on), missing, session.rounds, _known(latency_ms=session.drift))
        if energy is None:
            return profile
        nets = {name: (widths[name], inference) for name, inference in wholes().items()}
        try:
            found = measure_energy_costs(table, wiring, nets, setting, energy, partial(_later, progress, seconds), should_stop)
        except NoResult as reason:
            return replace(profile, no_energy=reason)
    return replace(
        profile,
        table=CostTable(device, [*table, *found.entries], [*table.calibrations, found.calibration]),
        missing={**missing, **{f"energy of {name}": reason for name, reason in found.missing.items()}},
        drifts={**profile.drifts, **_known(energy_mj=found.drift)},
        twins=_known(energy_mj=found.twin),
    )


def _measured(
    wiring: Wiring,
    grids: Grids,
    wholes: Callable[[], Mapping[str, Work]],
    setting: Setting,
    seconds: float,
    progress: Progress,
    should_stop: Callable[[], bool],
    kept: Readings,
    on: Processor,
) -> Session[LayerShape | str]:
    """Sittings of layers and whole networks, each with their tensors in other places; the grids made finer after the first ones, where
    that is worth it."""
    meter, watch = on.meter(), sentinel(on)

    def tell(done: int, _total: int, message: str) -> None:
        progress(min(done, int(seconds)), int(seconds), message)

    rounds, taken, places = 0, list[Tensor](), random.Random(ANCHOR_SEED)  # noqa: S311 - a place in memory is no secret
    for sitting in range(1, SITTINGS + 1):
        taken += pieces_of_memory(places, on.device)
        networks, layers = wholes(), unit_work(shapes_on(wiring, grids), setting, on)  # while those of the last sitting are held
        session = interleave(
            {**networks, **layers}, meter, sitting / SITTINGS * seconds,
            sentinel=watch, synchronise=on.synchronise, progress=tell, should_stop=should_stop, kept=kept,
        )  # fmt: skip
        rounds += session.rounds
        if should_stop():
            break
        if sitting in REFINED_AFTER:
            times = {key: found.median for key, found in session.results.items() if isinstance(key, LayerShape)}
            room = (seconds - kept.seconds) / ROUNDS_OF_ALL / slowdown(session.results.values(), kept.seconds)
            grids = refined(wiring, grids, times, room)
    return replace(session, rounds=rounds)


def _sooner(progress: Progress, ahead: float, done: int, total: int, message: str) -> None:
    """Progress of the latencies, when so many seconds of energies follow."""
    progress(done, total + int(ahead), message)


def _later(progress: Progress, behind: float, done: int, total: int, message: str) -> None:
    """Progress of the energies, after so many seconds of latencies."""
    progress(done + int(behind), total + int(behind), message)


def _prices(table: CostTable, shapes: Sequence[LayerShape], setting: Setting) -> bool:
    return not any(isinstance(found, NoCost) for found in table.entries([(shape, setting, "latency_ms") for shape in shapes]))


def _known(**numbers: float | None) -> dict[str, float]:
    return {name: number for name, number in numbers.items() if number is not None}


def _error_words(calibration: Calibration) -> str:
    return (
        f"layer sums predict the {calibration.quantity} of whole networks with {calibration.error_percent:.0f} % error; "
        "measure again when it is quieter"
    )


def _anchor_work(network: Network, widths: Mapping[str, Sequence[int]], setting: Setting, on: Processor) -> Callable[[], dict[str, Work]]:
    """One inference of each anchor; the tensors of each call are its own."""
    generator = torch.Generator().manual_seed(ANCHOR_SEED)
    modules = {name: build(replace(network, widths=tuple(w)), generator).eval() for name, w in widths.items()}
    images = torch.randn(setting.batch, network.in_channels, network.image_size, network.image_size, generator=generator)
    return lambda: network_work(deepcopy(modules), images.clone(), setting, on)
