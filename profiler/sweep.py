"""Which layer shapes of a wiring to measure, and what was measured as entries.

Growth changes the widths of channel groups, so a unit can meet every pair of widths of its two groups.  Widths are measured on a
grid: each group's own width, then multiples of 8 up to 64, then four steps per doubling (80, 96, 112, 128, 160, ...).  The last
grid width is not below the largest width allowed, so that every width a job can meet has a measured one above it.  ``profiler.refine``
adds widths where the measured costs say that they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import product

from costs.model import CostName
from costs.shapes import LayerShape, Unit, Wiring
from costs.table import UNITS, CostEntry, Setting
from profiler.processor import CPU, Processor
from profiler.timing import Measurement, Work
from profiler.units import unit_work

Grids = Sequence[Sequence[int]]  # the widths to measure, for each channel group

FINE_STEP, FINE_UNTIL = 8, 64
STEPS_PER_DOUBLING = 4


def grid(width: int, largest: int) -> list[int]:
    """Widths to measure for a group that grows from ``width`` to at most ``largest``."""
    points, step, point = [width], FINE_STEP, 0
    while points[-1] < largest:
        point += step
        if point > width:
            points.append(point)
        if point >= FINE_UNTIL and point & (point - 1) == 0:
            step = point // STEPS_PER_DOUBLING
    return points


def plan(wiring: Wiring, max_widths: Sequence[int]) -> list[LayerShape]:
    """The distinct layer shapes to measure so that the table answers for all widths from the wiring's own to ``max_widths``."""
    return shapes_on(wiring, grids_of(wiring, max_widths))


def grids_of(wiring: Wiring, max_widths: Sequence[int]) -> list[list[int]]:
    """The grid of each channel group, before anything was measured."""
    return [grid(width, largest) for width, largest in zip(wiring.widths, max_widths, strict=True)]


def shapes_on(wiring: Wiring, grids: Grids) -> list[LayerShape]:
    """The distinct layer shapes that the wiring meets on these grids."""
    return sorted({shape for unit in wiring.units for shape in shapes_of(unit, wiring.widths, grids)})


def as_entries(measured: Mapping[LayerShape, Measurement], setting: Setting, quantity: CostName = "latency_ms") -> list[CostEntry]:
    """Measurements of units as cost entries, dated now.  Their kind is the meter's: an estimate stays one."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [_as_entry(shape, setting, quantity, found, now) for shape, found in measured.items()]


def _as_entry(shape: LayerShape, setting: Setting, quantity: CostName, found: Measurement, now: str) -> CostEntry:
    origin, net = found.origin, found.net
    return CostEntry(
        shape, setting, quantity, found.median, UNITS[quantity], origin.kind, found.low, found.high,
        origin.meter, found.repetitions, found.rejected, now, origin.scope,
        net.value if net else None, net.low if net else None, net.high if net else None, origin.sensor_error,
    )  # fmt: skip


def sentinel(on: Processor = CPU) -> Work:
    """A fixed piece of work whose drift tells whether the machine stayed the same during a session."""
    shape = LayerShape("conv2d", 32, 32, 3, 1, 1, 16, 16, True, "silu")
    return unit_work([shape], Setting(), on)[shape]


def shapes_of(unit: Unit, widths: Sequence[int], grids: Grids) -> Iterator[LayerShape]:
    """The unit at every pair of grid widths of its input and output groups."""
    groups = sorted({group for group in (unit.input, unit.output) if group is not None})
    choices = [grids[group] for group in groups]
    if unit.shape.depthwise:
        choices = [_with_off_grid(points) for points in choices]
    at = list(widths)
    for chosen in product(*choices):
        for group, width in zip(groups, chosen, strict=True):
            at[group] = width
        yield unit.at(at)


def _with_off_grid(points: Sequence[int]) -> list[int]:
    """The grid of a depthwise layer, which can be dearer between two multiples of the vector width than at the upper one.

    A width just below each fine grid point is added: every width off the grid is then priced by one that is off the grid too.
    """
    below = (point - 1 for point in points[1:] if point <= FINE_UNTIL and point - 1 > points[0])
    return sorted({*points, *below})
