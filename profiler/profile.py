"""The cost table of a device for everything a network can grow into: one session that measures layers and anchors together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from costs.families import Network, largest_widths
from costs.shapes import LayerShape
from costs.table import CostTable, Setting
from growth.networks import build
from profiler.anchors import anchor_widths, calibrate, network_work
from profiler.device import Fingerprint, fingerprint, ready_to_measure
from profiler.meters import METERS
from profiler.sweep import as_entries, plan, sentinel
from profiler.timing import Progress, Work, interleave, never, silent
from profiler.units import unit_work

ONE_IMAGE = Setting()
ANCHORS = 8
ANCHOR_SEED = 0
WARN_DRIFT_PERCENT, WARN_ERROR_PERCENT = 3.0, 15.0


@dataclass(frozen=True, slots=True)
class Profile:
    """A cost table and how it came about.

    ``missing`` gives the reason for each layer shape or anchor without a result, ``drift`` the relative change of a fixed piece of
    work from the first half of the session to the second.
    """

    table: CostTable
    fingerprint: Fingerprint
    missing: dict[str, str]
    rounds: int
    drift: float | None

    @property
    def error_percent(self) -> float:
        """Mean leave-one-out error with which layer sums predict the anchors."""
        (calibration,) = self.table.calibrations
        return calibration.error_percent

    @property
    def warnings(self) -> list[str]:
        """What speaks against relying on this table, as sentences."""
        found = [f"no result for {name}: {reason}" for name, reason in self.missing.items()]
        if self.error_percent > WARN_ERROR_PERCENT:
            found.append(f"layer sums predict whole networks with {self.error_percent:.0f} % error; measure again when it is quieter")
        if self.drift is not None and 100 * abs(self.drift) > WARN_DRIFT_PERCENT:
            found.append(f"the machine's speed changed by {100 * self.drift:+.1f} % during the session; measure again when it is quieter")
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
    meter: str = "wall_clock",
) -> Profile:
    """Measure every layer shape that ``network`` can meet while it grows, and ``anchors`` whole networks, for about ``seconds``.

    The plan is the same for the same arguments; only the readings differ.  Layers and anchors share every round, so the machine's
    slow minutes fall on both.  ValueError for a network or setting out of range; NoResult if the machine was too busy to calibrate.
    """
    wiring = network.wiring()
    largest = largest_widths(wiring.widths, max_growth)
    widths = anchor_widths(wiring, largest, anchors, ANCHOR_SEED)
    with ready_to_measure(setting):
        work: dict[LayerShape | str, Work] = dict(_anchor_work(network, widths, setting).items())
        work.update(unit_work(plan(wiring, largest), setting).items())
        session = interleave(work, METERS[meter](), seconds, sentinel=sentinel(), progress=progress, should_stop=should_stop)
    units = {key: measured for key, measured in session.results.items() if isinstance(key, LayerShape)}
    wholes = {key: (widths[key], measured) for key, measured in session.results.items() if isinstance(key, str)}
    entries = as_entries(units, setting, meter)
    calibration = calibrate(CostTable(device, entries), wiring, wholes, setting, METERS[meter]().quantity)
    missing = {str(key): str(reason) for key, reason in session.missing.items()}
    return Profile(CostTable(device, entries, [calibration]), fingerprint(setting.threads), missing, session.rounds, session.drift)


def _anchor_work(network: Network, widths: Mapping[str, Sequence[int]], setting: Setting) -> dict[str, Work]:
    generator = torch.Generator().manual_seed(ANCHOR_SEED)
    modules = {name: build(replace(network, widths=tuple(w)), generator).eval() for name, w in widths.items()}
    images = torch.randn(setting.batch, network.in_channels, network.image_size, network.image_size, generator=generator)
    return network_work(modules, images, setting)
