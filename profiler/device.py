"""The machine a cost was measured on: its fingerprint, and the state it is brought into for measuring."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from costs.table import Setting
from profiler.meters.nvml import driver_version, torch_uuid
from profiler.processor import CPU, Processor

Fingerprint = dict[str, str | int | bool]

PROTOCOL = 2  # of measuring: layers timed in a loop (1) and on inputs just written (2) don't belong in one sum

# glibc <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 64 * 2**20
_PIECES, _PIECE_BITS = 64, (10, 20)  # each with room for 2**10 to 2**20 numbers


def fingerprint(threads: int, on: Processor = CPU) -> Fingerprint:
    """What decides how fast a layer runs here.  Entries measured under another fingerprint are another device's.

    Pins the allocator first, so that the answer is the same before and after measuring.
    """
    return {
        "protocol": PROTOCOL,
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "virtualised": "hypervisor" in (_cpu_info("flags") or "").split(),
        "allocator": pin_allocator(),
        "onednn_cache": os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "default"),
        **(_gpu(on.device) if on.device.type == "cuda" else {}),
    }


def _gpu(device: torch.device) -> Fingerprint:
    """What decides how fast a CUDA device is: which one, by its UUID, and what runs on it."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_uuid": torch_uuid(device.index) or "unknown",
        "driver": driver_version() or "unknown",
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda or "unknown",
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def fingerprint_id(fingerprint: Fingerprint) -> str:
    """Twelve hexadecimal digits that change when any part of the fingerprint does."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:12]


@cache
def pin_allocator() -> str:
    """Keep freed memory in this process for good; "glibc pinned", or "default" where the C library has no mallopt.

    By default glibc hands large activations back to the kernel after each call and page-faults them in again on the next: a third
    of a whole network's time, and none of an isolated layer's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return "default"
    accepted = mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)
    return "glibc pinned" if accepted else "default"


def pieces_of_memory(places: random.Random, device: torch.device) -> list[Tensor]:
    """Memory of many sizes, never written.  While it is held, what is allocated next lies elsewhere, on other pages."""
    return [torch.empty(int(2 ** places.uniform(*_PIECE_BITS)), device=device) for _ in range(_PIECES)]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def ready_to_measure(setting: Setting) -> Iterator[None]:
    """Allocator pinned, the setting's thread count, no autograd, no garbage collection; all but the allocator restored afterwards.

    ValueError when this profiler can't execute the setting.
    """
    check(setting)
    pin_allocator()
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(setting.threads)
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def check(setting: Setting) -> None:
    """ValueError with value, limit and remedy for a setting that can't be measured here."""
    if setting.batch < 1:
        raise ValueError(f"batch is {setting.batch}; measure with at least 1 image per call")
    if not 1 <= setting.threads <= cores():
        raise ValueError(f"threads is {setting.threads}; this process may use {cores()} cores: give 1 to {cores()}")
    if setting.dtype != "float32":
        raise ValueError(f"dtype is {setting.dtype}; only float32 inference is measured: leave dtype out")
    if setting.layout not in MEMORY_FORMATS:
        raise ValueError(f"layout is {setting.layout}; give one of {', '.join(MEMORY_FORMATS)}")


MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@cache
def _cpu_info(field: str) -> str | None:
    """The first line of that name in /proc/cpuinfo."""
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
