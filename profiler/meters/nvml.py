"""NVML through nvidia-ml-py: loading it, its errors in our words, and which GPU is meant.

A GPU is named by its UUID.  NVML counts GPUs in PCI order, CUDA fastest first unless told otherwise, and CUDA_VISIBLE_DEVICES
renumbers what is left, so an index of one says nothing to the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from profiler.meters.base import DeviceLost, MeterError, MeterUnavailable

_REINSTALL = "pip uninstall -y pynvml nvidia-ml-py && pip install nvidia-ml-py"
_NO_METER = "use the meter power_model with declared watts"
# NVML return code: (what it is to us, what to do)
REMEDIES: Mapping[int, tuple[type[MeterError], str]] = {
    2: (MeterUnavailable, "check the UUID against `nvidia-smi -L`"),
    3: (MeterUnavailable, f"this device can't measure it: on a Jetson use the meter ina3221, before Volta nvml_power, else {_NO_METER}"),
    4: (MeterUnavailable, "run as a user who may open /dev/nvidia*, or pass the device into the container"),
    6: (MeterUnavailable, "check the UUID against `nvidia-smi -L`"),
    9: (MeterUnavailable, "load the NVIDIA driver (`nvidia-smi` must work first)"),
    12: (MeterUnavailable, f"install the NVIDIA driver, start the container with --gpus, or {_NO_METER}"),
    13: (MeterUnavailable, "the driver is older than this quantity: update it, or choose another meter"),
    15: (DeviceLost, "the GPU fell off the bus: stop its processes, then reset it (nvidia-smi --gpu-reset) or reboot"),
    16: (DeviceLost, "reset the GPU (nvidia-smi --gpu-reset) or reboot"),
    18: (MeterUnavailable, "driver and library differ, usually after an update: reboot, or reload the nvidia kernel modules"),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, found again by its UUID."""

    handle: Any
    uuid: str
    name: str
    bus_id: str
    architecture: int | None
    mig: bool
    virtualisation: int | None


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of NVML as ours: what failed, NVML's reason, the remedy."""
    import pynvml

    try:
        yield
    except pynvml.NVMLError as error:
        kind, remedy = REMEDIES.get(error.value, (MeterError, "see `nvidia-smi` and the kernel log (dmesg | grep NVRM)"))
        raise kind(f"{what}: {error}; {remedy}") from error


def library() -> ModuleType:
    """pynvml, initialised.  MeterUnavailable without package, library or driver, or with the package that only looks like it."""
    try:
        import pynvml
    except ImportError as error:
        raise MeterUnavailable("NVML: the package nvidia-ml-py is not installed; pip install nvidia-ml-py") from error
    refuse_impostor(pynvml)
    with translated("NVML"):
        pynvml.nvmlInit()
    module: ModuleType = pynvml
    return module


def refuse_impostor(module: ModuleType) -> None:
    """The retired package ``pynvml`` ships a folder of that name, which shadows nvidia-ml-py's single file and lacks newer calls."""
    if hasattr(module, "__path__") or not hasattr(module, "NVML_FI_DEV_POWER_INSTANT"):
        raise MeterUnavailable(f"NVML: {module.__file__} is the retired package pynvml, or older than driver 525; {_REINSTALL}")


def gpus() -> list[Gpu]:
    """All GPUs of the machine, in PCI order."""
    nvml = library()
    with translated("NVML: listing the GPUs"):
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return sorted((_gpu(nvml, handle) for handle in handles), key=lambda gpu: gpu.bus_id)


def driver_version() -> str | None:
    """None where NVML is not there to say it."""
    try:
        return str(library().nvmlSystemGetDriverVersion())
    except MeterError:
        return None


def find_gpu(device: str | None = None) -> Gpu:
    """The GPU of that UUID; by default the one that CUDA calls 0 in this process.  MeterUnavailable when it can't be told which."""
    found = gpus()
    uuid = device or cuda_uuid(0, found, os.environ)
    _refuse_mig(uuid)
    matches = [gpu for gpu in found if gpu.uuid == uuid]
    if not matches:
        raise MeterUnavailable(f"NVML: no GPU {uuid}; this machine has {_list(found)}: choose one of them")
    return matches[0]


def cuda_uuid(index: int, found: Sequence[Gpu], environ: Mapping[str, str]) -> str:
    """The UUID of what CUDA calls ``index`` in this process: torch knows; without CUDA in torch, the environment may decide.

    CUDA_VISIBLE_DEVICES lists CUDA indices or UUIDs (or their beginnings); the first entry that is not valid hides all that follow.
    """
    if known := torch_uuid(index):
        return known
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _in_cuda_order(index, found, environ)
    uuids: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith("MIG-"):
            uuids.append(entry)
            continue
        if entry.startswith("GPU-"):
            matches = [gpu.uuid for gpu in found if gpu.uuid.startswith(entry)]
        else:
            valid = entry.isdigit() and int(entry) < len(found)
            matches = [_in_cuda_order(int(entry), found, environ)] if valid else []
        if len(matches) != 1:
            break
        uuids += matches
    if index >= len(uuids):
        raise MeterUnavailable(f"CUDA_VISIBLE_DEVICES={visible!r} leaves {len(uuids)} GPUs visible; give one of {_list(found)}")
    return uuids[index]


def _in_cuda_order(index: int, found: Sequence[Gpu], environ: Mapping[str, str]) -> str:
    """NVML's list is in PCI order; CUDA's is only if asked for, or if there is one GPU."""
    if index >= len(found):
        raise MeterUnavailable(f"no GPU {index}: this machine has {_list(found) or 'none'}; choose another, or {_NO_METER}")
    if len(found) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise MeterUnavailable(
            f"which GPU CUDA calls {index} is not known: it counts the fastest first; "
            f"set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by UUID: {_list(found)}"
        )
    return found[index].uuid


def torch_uuid(index: int) -> str | None:
    """The UUID of what CUDA calls ``index`` in this process, if torch has CUDA and says it."""
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    return (uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}") if uuid else None


def _gpu(nvml: ModuleType, handle: Any) -> Gpu:
    return Gpu(
        handle,
        nvml.nvmlDeviceGetUUID(handle),
        nvml.nvmlDeviceGetName(handle),
        nvml.nvmlDeviceGetPciInfo(handle).busId,
        optional(nvml, "nvmlDeviceGetArchitecture", handle),
        (optional(nvml, "nvmlDeviceGetMigMode", handle) or [0])[0] == 1,
        optional(nvml, "nvmlDeviceGetVirtualizationMode", handle),
    )


def optional(nvml: ModuleType, name: str, *arguments: Any) -> Any:
    """None where the device or the driver does not know the call; other errors are raised."""
    try:
        return getattr(nvml, name)(*arguments)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return None


def _refuse_mig(uuid: str) -> None:
    if uuid.startswith("MIG-"):
        raise MeterUnavailable(
            f"{uuid} is a MIG instance: power and energy exist for the whole GPU only; measure on a GPU with MIG off, or {_NO_METER}"
        )


def _list(found: Sequence[Gpu]) -> str:
    return ", ".join(f"{gpu.uuid} ({gpu.name})" for gpu in found)
