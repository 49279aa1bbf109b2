"""The joules that a job uses: a counter that is read now and then, or declared watts times measured time, or a reason why there are none.

Gross energy: all that the meter's scope draws meanwhile, other processes' share and the idle power included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from profiler.energy_request import open_source
from profiler.meters import SOURCES, EnergySource, MeterError
from store.settings import Settings
from store.spec import AccountingSpec

AUTOMATIC = {"cpu": "rapl_package", "cuda": "nvml_total_energy"}  # by the type of torch's device: where a job's work is done
LONGEST_SECONDS = 300.0  # between two readings of a counter that wraps: 65 kJ, the smallest range, last so long at 218 W
INCLUDED = "all that the scope drew meanwhile (gross), other processes' share included"


class Joules(Protocol):
    """``label`` says what the numbers are: kind, meter, scope, device."""

    @property
    def label(self) -> Mapping[str, Any]: ...

    def since(self, seconds: float, /) -> float:
        """Joules since the last call (or the beginning), which was ``seconds`` ago.  MeterError, with the reason, if nobody knows."""
        ...


class Counted:
    """A meter's counter.  A reading costs microseconds, or a few for a GPU's driver."""

    def __init__(self, source: EnergySource) -> None:
        """MeterError if the source does not answer or has no counter."""
        self._source, self._wraps = source, source.origin.meter.startswith("rapl")
        self._last: float | None = self._read()

    @property
    def label(self) -> Mapping[str, Any]:
        origin = self._source.origin
        where = {"meter": origin.meter, "scope": origin.scope, "device": origin.device}
        return {"kind": origin.kind, **where, "sensor_error": origin.sensor_error, "note": INCLUDED}

    def since(self, seconds: float) -> float:
        before, self._last = self._last, None
        now = self._last = self._read()
        if before is None:
            raise MeterError(f"{self._source.origin.meter} had not answered at the beginning of this span")
        if now < before:
            raise MeterError(f"{self._source.origin.meter} stood at {now:.6g} J after {before:.6g} J: it was reset meanwhile")
        if self._wraps and seconds > LONGEST_SECONDS:
            raise MeterError(f"{self._source.origin.meter} was not read for {seconds:.0f} s and may have wrapped unseen")
        return now - before

    def _read(self) -> float:
        joules = self._source.joules()
        if joules is None:
            raise MeterError(f"{self._source.origin.meter} has no counter; name a meter that has one")
        return joules


class Declared:
    """Declared watts times measured time: an estimate, and marked as one.  ``instead`` says which meter there is not."""

    def __init__(self, watts: float, instead: str) -> None:
        self._watts, self._instead = watts, instead

    @property
    def label(self) -> Mapping[str, Any]:
        note = f"{self._watts:g} W declared x measured time; no meter: {self._instead}"
        return {"kind": "estimated:power_model", "meter": "power_model", "scope": "declared", "device": "declared", "note": note}

    def since(self, seconds: float) -> float:
        return self._watts * seconds


class Unmetered:
    """No joules."""

    label: Mapping[str, Any] = {}

    def __init__(self, why: str) -> None:
        self._reason = (
            f"no meter: {why}; name one that works (accounting.meter in the spec, WATTLE_ACCOUNTING_METER at the worker), or declare watts "
            "for an estimate (accounting.declared_watts, WATTLE_DECLARED_WATTS)"
        )

    def since(self, _seconds: float) -> float:
        raise MeterError(self._reason)


def open_joules(asked: AccountingSpec, settings: Settings, sources: Mapping[str, Callable[..., EnergySource]] = SOURCES) -> Joules:
    """By the spec's meter, else the worker's, else that of what does the work; where it does not work, by declared watts; else none."""
    device = torch.device(settings.torch_device)
    try:
        return Counted(open_source(asked.meter or settings.accounting_meter or AUTOMATIC[device.type], device, sources))
    except MeterError as error:
        watts = asked.declared_watts or settings.declared_watts
        return Unmetered(str(error)) if watts is None else Declared(watts, str(error))
