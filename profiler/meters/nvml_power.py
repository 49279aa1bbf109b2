"""The power of an NVIDIA GPU, sampled and integrated: for parts without a counter, and to check one."""

from __future__ import annotations

from profiler.meters.nvml import find_gpu
from profiler.meters.nvml_source import NvmlSource, probe_power, refuse_shared


def open_nvml_power(device: str | None = None, own_pids: frozenset[int] | None = None) -> NvmlSource:
    """``device`` is a UUID; by default the GPU that CUDA calls 0.  MeterUnavailable where no reading of power gives a value."""
    gpu = find_gpu(device)
    refuse_shared(gpu)
    return NvmlSource(gpu, "nvml_power", False, probe_power(gpu), own_pids)
