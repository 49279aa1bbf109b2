"""What whole networks cost on this machine, measured, once for each list of widths: weights don't matter for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from costs.families import Network
from costs.model import CostModel, CostName
from costs.table import UNITS, Setting, TableCost
from growth.networks import build
from profiler.anchors import measure_network_energies, measure_networks
from profiler.energy_request import TWINS, EnergyRequest
from profiler.meters import SOURCES, MeterError
from profiler.processor import Processor
from profiler.timing import Measurement, Progress, silent
from profiler.windows import Plan
from store.settings import Settings

SECONDS_PER_NETWORK = 2.0

Widths = tuple[int, ...]
Stop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measured costs of whole networks by their widths, and why the others have none."""

    results: Mapping[Widths, Measurement]
    reasons: Mapping[Widths, str]
    device: str = ""
    setting: Setting = Setting()  # noqa: RUF009 - frozen
    quantity: CostName = "latency_ms"

    @classmethod
    def none(cls, networks: Iterable[Network], reason: str) -> Measurements:
        """No numbers, for one reason."""
        return cls({}, dict.fromkeys((network.widths for network in networks), reason))

    def of(self, network: Network) -> dict[str, Any]:
        """What one network costs with all that the number rests on, or the reason why there is none."""
        if network.widths not in self.results:
            return {"reason": self.reasons[network.widths]}
        found = self.results[network.widths]
        origin, interval = found.origin, {"value": found.median, "low": found.low, "high": found.high}
        source = {"kind": origin.kind, "meter": origin.meter, "scope": origin.scope, "sensor_error": origin.sensor_error}
        net = {"net": asdict(found.net)} if found.net else {}
        counts = {"repetitions": found.repetitions, "rejected": found.rejected}
        return {**interval, "unit": UNITS[self.quantity], **source, **net, **counts, "device": self.device, **asdict(self.setting)}


def energy_request(meter: str, settings: Settings, seconds: float, on: Processor) -> EnergyRequest:
    """Energy by this meter, in this worker's windows.  MeterUnavailable, with the remedy, where it does not work here."""
    return EnergyRequest.by(meter, Plan.of(settings.energy_window_seconds, seconds), on)


def measure_latency(networks: Iterable[Network], setting: Setting, device: str, on: Processor, should_stop: Stop) -> Measurements:
    """Measure the networks on this machine, interleaved, so that all meet the same machine."""
    distinct, modules, example = _built(networks, setting)
    try:
        session = measure_networks(modules, example, setting, SECONDS_PER_NETWORK * len(modules), should_stop=should_stop, on=on)
    except ValueError as error:  # more threads than cores, say
        return Measurements.none(distinct.values(), str(error))
    results = {distinct[key].widths: found for key, found in session.results.items()}
    missing = {distinct[key].widths: str(reason) for key, reason in session.missing.items()}
    return Measurements(results, missing, device, setting)


def measure_energy(
    networks: Iterable[Network],
    prices: CostModel,
    device: str,
    on: Processor,
    settings: Settings,
    should_stop: Stop,
    progress: Progress = silent,
) -> Measurements:
    """Measure the networks with the meter and in the setting of the prices.  A meter that fails leaves reasons: the networks are there."""
    if not isinstance(prices, TableCost):
        raise TypeError(f"prices are a {type(prices).__name__}; energy is priced by a cost table")
    setting = prices.setting
    meter = prices.table.calibration("energy_mj", setting).meter
    distinct, modules, example = _built(networks, setting)
    if meter not in SOURCES:
        return Measurements.none(distinct.values(), f"energy is an estimate by {meter}; no meter has measured it")
    budget = Plan.of(settings.energy_window_seconds, 0).seconds_for(len(modules) + TWINS)
    try:
        request = energy_request(meter, settings, budget, on)
        session = measure_network_energies(modules, example, setting, request, progress=progress, should_stop=should_stop)
    except (ValueError, MeterError) as error:
        return Measurements.none(distinct.values(), str(error))
    results = {distinct[key].widths: energy.measurement() for key, energy in session.results.items()}
    missing = {distinct[key].widths: str(reason) for key, reason in session.missing.items()}
    return Measurements(results, missing, device, setting, "energy_mj")


def _built(networks: Iterable[Network], setting: Setting) -> tuple[dict[str, Network], dict[str, nn.Module], Tensor]:
    """Each list of widths once, by name; the networks, and images for them [batch, channels, height, width]."""
    distinct = {str(network.widths): network for network in networks}
    modules: dict[str, nn.Module] = {key: build(network).eval() for key, network in distinct.items()}
    shape = next(iter(distinct.values()))
    return distinct, modules, torch.randn(setting.batch, shape.in_channels, shape.image_size, shape.image_size)
