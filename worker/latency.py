"""The latency of whole networks on this machine, once for each list of widths: weights don't matter for the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from costs.families import Network
from costs.table import Setting
from growth.networks import build
from profiler.anchors import measure_networks
from profiler.timing import Measurement

SECONDS_PER_NETWORK = 2.0

Widths = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measured latencies of whole networks by their widths, and why the others have none."""

    results: Mapping[Widths, Measurement]
    reasons: Mapping[Widths, str]
    device: str = ""
    setting: Setting = Setting()  # noqa: RUF009 - frozen

    @classmethod
    def none(cls, networks: Iterable[Network], reason: str) -> Measurements:
        """No latencies, for one reason."""
        return cls({}, dict.fromkeys((network.widths for network in networks), reason))

    def of(self, network: Network) -> dict[str, Any]:
        """The latency of one network, or the reason why there is none."""
        if network.widths not in self.results:
            return {"reason": self.reasons[network.widths]}
        found = self.results[network.widths]
        numbers = {"median_ms": found.median, "low": found.low, "high": found.high, "unit": "ms", "kind": "measured"}
        return {**numbers, "repetitions": found.repetitions, "rejected": found.rejected, "device": self.device, **asdict(self.setting)}


def measure(networks: Iterable[Network], setting: Setting, device: str, should_stop: Callable[[], bool]) -> Measurements:
    """Measure the networks on this machine, interleaved, so that all meet the same machine."""
    distinct = {str(network.widths): network for network in networks}
    modules = {key: build(network).eval() for key, network in distinct.items()}
    shape = next(iter(distinct.values()))
    example = torch.randn(setting.batch, shape.in_channels, shape.image_size, shape.image_size)
    try:
        session = measure_networks(modules, example, setting, SECONDS_PER_NETWORK * len(modules), should_stop=should_stop)
    except ValueError as error:  # more threads than cores, say
        return Measurements.none(distinct.values(), str(error))
    results = {distinct[key].widths: found for key, found in session.results.items()}
    missing = {distinct[key].widths: str(reason) for key, reason in session.missing.items()}
    return Measurements(results, missing, device, setting)
