"""Meters: what a window of work cost, in time or energy.  One file each, one contract, all in ``METERS``.

``METERS[name]()`` gives a meter of this machine, or raises ``MeterUnavailable`` with the reason and the remedy.  Keywords go to
whatever opens it: a GPU's UUID, a folder in place of /sys, declared watts, a log.  ``SOURCES`` opens the energy sources alone, for
``profiler.windows``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from profiler.meters.base import DeviceLost, Meter, MeterError, MeterUnavailable, Origin, Reading
from profiler.meters.cuda_events import CudaEvents
from profiler.meters.energy import EnergyMeter
from profiler.meters.ina3221 import open_ina3221
from profiler.meters.nvml_power import open_nvml_power
from profiler.meters.nvml_total_energy import open_nvml_total_energy
from profiler.meters.power_model import PowerModel
from profiler.meters.rapl import open_rapl
from profiler.meters.replay import Recorder, Replay
from profiler.meters.source import DeviceState, EnergySource
from profiler.meters.wall_clock import WallClock, minor_page_faults, scheduler_delay_seconds

__all__ = [
    "METERS",
    "SOURCES",
    "CudaEvents",
    "DeviceLost",
    "DeviceState",
    "EnergyMeter",
    "EnergySource",
    "Meter",
    "MeterError",
    "MeterUnavailable",
    "Origin",
    "PowerModel",
    "Reading",
    "Recorder",
    "Replay",
    "WallClock",
    "minor_page_faults",
    "scheduler_delay_seconds",
]

SOURCES: dict[str, Callable[..., EnergySource]] = {
    "nvml_total_energy": open_nvml_total_energy,
    "nvml_power": open_nvml_power,
    "rapl_package": partial(open_rapl, "package"),
    "rapl_dram": partial(open_rapl, "dram"),
    "ina3221": open_ina3221,
}


def _meter_of(open_source: Callable[..., EnergySource], **options: Any) -> EnergyMeter:
    return EnergyMeter(open_source(**options))


METERS: dict[str, Callable[..., Meter]] = {
    "wall_clock": WallClock,
    "cuda_events": CudaEvents,
    **{name: partial(_meter_of, open_source) for name, open_source in SOURCES.items()},
    "replay": Replay,
    "power_model": PowerModel,
}
