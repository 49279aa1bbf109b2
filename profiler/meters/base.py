"""What a meter is: four members, readings that say where they come from, and errors that say what to do.

A meter judges its own windows: a reading says if, and by what, the window was disturbed, because only the meter knows what would
spoil it (other processes for a clock; throttling or a counter that did not tick for energy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from costs.model import CostName, Kind


class MeterError(RuntimeError):
    """A device stopped answering, or answers nonsense; the message names what failed and the remedy."""


class MeterUnavailable(MeterError):  # noqa: N818 - an answer, and no fault of the program
    """This meter can't be used here; the message says why, and what to do about it."""


class DeviceLost(MeterError):  # noqa: N818
    """The device is gone until it is reset: nothing that was read around that moment may be used."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a number comes from; recorded with it.

    ``scope`` is what the number covers (process, gpu, module, parent_gpu, package, dram, rails ..., declared); ``device`` an identity
    that survives a restart (the UUID of a GPU), never an index; ``detail`` the exact quantity read.  ``sensor_error`` is the relative
    error that all readings of one device share, either sign: no number of windows removes it, and it cancels in ratios of readings.
    ``partly_sampled`` says that the sensor looks during a part of the time only.
    """

    meter: str
    kind: Kind
    scope: str
    device: str
    detail: str = ""
    sensor_error: float | None = None
    partly_sampled: bool = False


THIS_PROCESS = Origin("wall_clock", "measured", "process", "this process")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one window cost, in the meter's unit, and the reason why it must not be used, if there is one.

    The truth lies within ``resolution`` of the value, in the same unit, as far as the meter's own grain goes; None where it is not known.
    """

    value: float
    disturbed: str | None = None
    origin: Origin = THIS_PROCESS
    resolution: float | None = None


class Meter(Protocol):
    """Measures the work between ``start`` and ``stop``; windows don't nest.

    ``window_seconds`` is the shortest window whose reading means something: the caller repeats its work to fill it.
    """

    @property
    def quantity(self) -> CostName: ...

    @property
    def window_seconds(self) -> float: ...

    def start(self) -> None: ...

    def stop(self) -> Reading: ...
