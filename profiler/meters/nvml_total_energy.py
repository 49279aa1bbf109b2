"""The total energy counter of an NVIDIA GPU, Volta or newer: millijoules since the driver was loaded, stepping about every 100 ms."""

from __future__ import annotations

from profiler.meters.base import MeterUnavailable
from profiler.meters.nvml import Gpu, find_gpu
from profiler.meters.nvml_source import NvmlSource, Power, probe_power, refuse_shared


def open_nvml_total_energy(device: str | None = None, own_pids: frozenset[int] | None = None) -> NvmlSource:
    """``device`` is a UUID; by default the GPU that CUDA calls 0.  MeterUnavailable where there is no counter, or it stands at 0.

    Power is read along where it can be, to check the counter against.
    """
    gpu = find_gpu(device)
    refuse_shared(gpu)
    source = NvmlSource(gpu, "nvml_total_energy", True, _power_of_the_same_scope(gpu), own_pids)
    if not source.joules():
        raise MeterUnavailable(f"{gpu.uuid}: the energy counter stands at 0 J, so it is not driven; use the meter nvml_power")
    return source


def _power_of_the_same_scope(gpu: Gpu) -> Power | None:
    try:
        power = probe_power(gpu)
    except MeterUnavailable:
        return None
    return power if power.scope == "gpu" else None
