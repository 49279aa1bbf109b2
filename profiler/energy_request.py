"""A request for energies: with which meter, in which windows; and the work that alone counts, that which the device is seen to do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from profiler.energy import Energy
from profiler.meters import SOURCES, EnergySource, MeterUnavailable
from profiler.meters.nvml import torch_uuid
from profiler.processor import CPU, Processor
from profiler.sweep import sentinel
from profiler.timing import NoResult, Progress, Work
from profiler.windows import HOST, Energies, Host, Plan, measure_energies

Key = TypeVar("Key", bound=Hashable)

TWINS = 2  # the sentinel and its twin


def open_source(meter: str, device: torch.device, sources: Mapping[str, Callable[..., EnergySource]] = SOURCES) -> EnergySource:
    """The source of this name, of the GPU that ``device`` is if both are NVIDIA's.  MeterUnavailable where it does not work here."""
    if device.type != "cuda" or not meter.startswith("nvml"):
        return sources[meter]()
    uuid = torch_uuid(device.index or 0)
    if uuid is None:
        raise MeterUnavailable(f"{meter}: torch does not say which GPU {device} is; use torch 2.10 or newer")
    return sources[meter](device=uuid)


@dataclass(frozen=True, slots=True)
class EnergyRequest:
    """What to measure energy with, in which windows, and of work on which processor."""

    source: EnergySource
    plan: Plan
    host: Host = HOST
    on: Processor = CPU

    @classmethod
    def by(cls, meter: str, plan: Plan, on: Processor = CPU) -> EnergyRequest:
        """By the meter of this name, of the GPU that does the work if it is one of a GPU.  MeterUnavailable where it does not work here."""
        return cls(open_source(meter, on.device), plan, Host(synchronise=on.synchronise), on)

    def measure(self, work: Mapping[Key, Work], progress: Progress, should_stop: Callable[[], bool]) -> Energies[Key]:
        """Energies that the work caused; what can't be told from the idle device is missing.  MeterError when the device is lost."""
        watch = sentinel(self.on)
        found = measure_energies(work, self.source, self.plan, self.host, sentinel=watch, progress=progress, should_stop=should_stop)
        caused = {key: energy for key, energy in found.results.items() if energy.net.low > 0}
        idle = {key: _not_caused(energy) for key, energy in found.results.items() if key not in caused}
        return replace(found, results=caused, missing={**found.missing, **idle})


def _not_caused(energy: Energy) -> NoResult:
    origin = energy.origin
    return NoResult(
        f"no result: with this work the {origin.scope} of {origin.device} draws hardly more than without; {origin.meter} measures "
        "another device than the one it runs on, or one that others use: choose another meter"
    )
