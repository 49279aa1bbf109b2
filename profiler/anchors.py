"""Anchors: whole networks measured as they are, to correct the sum of their layers.

Layers measured alone keep their code and weights in the caches and sum up to less than the network takes.  The bias is much
the same for all networks of a session, so a factor per quantity and setting, and a constant per layer where that helps (``profiler.fit``),
remove most of it; how well they would have predicted each anchor from the others is the leave-one-out error.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean

from torch import Tensor, nn

from costs.model import CostName
from costs.shapes import Wiring
from costs.table import Anchor, Calibration, CostTable, Setting
from profiler.device import MEMORY_FORMATS, ready_to_measure
from profiler.energy_request import EnergyRequest
from profiler.fit import best_fit, leave_one_out
from profiler.processor import CPU, Processor
from profiler.sweep import grid, sentinel
from profiler.timing import Measurement, NoResult, Progress, Session, Work, interleave, never, silent
from profiler.windows import Energies

MIN_ANCHORS = 3  # leaving one out must leave something to take a median of
UNIFORM_SHARES = (1 / 3, 2 / 3)  # of the way from the seed to the largest widths, on a logarithmic scale


def anchor_widths(wiring: Wiring, max_widths: Sequence[int], n: int, seed: int) -> dict[str, tuple[int, ...]]:
    """``n`` networks between the wiring's widths and ``max_widths``: both ends, uniform growth between them, then random widths.

    Every second random network has widths off the measured grid, so that the leave-one-out error covers the step model as well.
    """
    ends = list(zip(wiring.widths, max_widths, strict=True))
    grids = [[min(point, largest) for point in grid(width, largest)] for width, largest in ends]
    found = {"seed": tuple(wiring.widths), "largest": tuple(max_widths)}
    for share in UNIFORM_SHARES:
        found[f"uniform {share:.2f}"] = tuple(_nearest(points, points[0] ** (1 - share) * points[-1] ** share) for points in grids)
    generator = random.Random(seed)  # noqa: S311 - a sample of networks is no secret
    for number in range(1, n - len(found) + 1):
        on_grid = number % 2 == 1
        found[f"random {number}"] = tuple(generator.choice(points if on_grid else range(points[0], points[-1] + 1)) for points in grids)
    return dict(list(found.items())[:n])


def network_work(modules: Mapping[str, nn.Module], example: Tensor, setting: Setting, on: Processor = CPU) -> dict[str, Work]:
    """One inference of each network on ``example`` [batch, ...].  The modules must be in eval mode; they are moved to this processor."""
    if example.shape[0] != setting.batch:
        raise ValueError(f"the example holds {example.shape[0]} images; the setting is {setting}: give {setting.batch}")
    example = example.to(on.device).contiguous(memory_format=MEMORY_FORMATS[setting.layout])
    return {name: on.ready(module.to(on.device), example) for name, module in modules.items()}


def measure_networks(
    modules: Mapping[str, nn.Module],
    example: Tensor,
    setting: Setting,
    seconds: float,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = never,
    on: Processor = CPU,
) -> Session[str]:
    """Measure whole networks against each other, interleaved in one run.  One that can't be measured is missing, with the reason.

    They run in eval mode and are left in the mode they were in.
    """
    with ready_to_measure(setting), _eval_mode(modules.values()):
        work = network_work(modules, example, setting, on)
        return interleave(
            work, on.meter(), seconds,
            sentinel=sentinel(on), synchronise=on.synchronise, progress=progress, should_stop=should_stop,
        )  # fmt: skip


def measure_network_energies(
    modules: Mapping[str, nn.Module],
    example: Tensor,
    setting: Setting,
    request: EnergyRequest,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = never,
) -> Energies[str]:
    """Energy of whole networks, in one session.  MeterError, and no numbers, when the device is lost."""
    with ready_to_measure(setting), _eval_mode(modules.values()):
        return request.measure(network_work(modules, example, setting, request.on), progress, should_stop)


def calibrate(
    table: CostTable,
    wiring: Wiring,
    measured: Mapping[str, tuple[Sequence[int], Measurement]],
    setting: Setting,
    quantity: CostName = "latency_ms",
) -> Calibration:
    """Fit scale and constant to anchors: name -> (widths, measurement).  NoCost if the table does not reach one; NoResult if too few."""
    anchors = []
    for name, (widths, whole) in measured.items():
        layer_sum = sum(table.entry(shape, setting, quantity).value for shape in wiring.shapes(widths))
        anchors.append(Anchor(name, tuple(widths), layer_sum, whole.median, whole.low, whole.high))
    if len(anchors) < MIN_ANCHORS:
        raise NoResult(f"{len(anchors)} whole networks measured, {MIN_ANCHORS} needed to calibrate; give more time, or a quieter machine")
    sums, wholes = [anchor.layer_sum for anchor in anchors], [anchor.measured for anchor in anchors]
    layers = [len(wiring.units)] * len(anchors)
    fit, errors = best_fit(sums, layers, wholes), leave_one_out(sums, layers, wholes)
    error_percent = 100 * fmean(abs(error) for error in errors)
    origin = next(whole.origin for _, whole in measured.values())
    source = (origin.meter, origin.scope, origin.kind)
    return Calibration(quantity, setting, fit.scale, error_percent, tuple(anchors), *source, fit.per_layer)


def _nearest(points: Sequence[int], wanted: float) -> int:
    return min(points, key=lambda point: abs(point - wanted))


@contextmanager
def _eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    training = [module for root in modules for module in root.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
