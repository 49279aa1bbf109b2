"""Why an attempt failed: one of the store's causes, and a sentence a user can act on."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import torch

from costs.table import NoCost
from profiler.meters import MeterError
from profiler.timing import NoResult
from store.database import DatabaseUnavailable
from store.jobs import Cause
from store.problems import InvalidSpec
from worker.trust import TableOutdated

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LESS_MEMORY = "lower training.batch_size or growth.scoring_samples, start from a smaller seed, or free memory"


def explain(error: Exception, data_dir: Path) -> tuple[Cause, str]:
    """The cause and the sentence for what ended a job."""
    if isinstance(error, InvalidSpec):
        return "invalid_data", str(error)
    if isinstance(error, FloatingPointError):
        return "not_a_number", str(error)
    if isinstance(error, (NoCost, NoResult, MeterError, TableOutdated)):
        return "device_error", str(error)
    if _out_of_memory(error):
        return "out_of_memory", f"memory ran out ({_first_line(error)}); {_LESS_MEMORY}"
    if disk_full(error):
        free_mib = shutil.disk_usage(data_dir).free / 2**20
        return "disk_full", (
            f"writing failed ({_first_line(error)}) with {free_mib:.0f} MiB free in {data_dir}; the last checkpoint is kept. "
            "Free space there or move WATTLE_DATA_DIR, then submit the job again"
        )
    return "internal", f"{type(error).__name__}: {_first_line(error)}; the job's log holds the trace: report it as an error of Wattle"


def _out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def disk_full(error: Exception) -> bool:
    """Whether it is for want of room."""
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    return isinstance(error, DatabaseUnavailable) and "disk is full" in str(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
