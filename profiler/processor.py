"""What executes the work that is measured: this machine's CPU, or one of its CUDA devices.

On a CUDA device a call returns when its kernels are queued, and small layers wait longer for this process to launch them than they run.
So each piece of work is captured as a CUDA graph once and replayed: its kernels follow each other, and the times of layers add up to that
of a network.  That is what a deployed network takes; one that is executed eagerly takes longer for small batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from profiler.meters import METERS, Meter
from profiler.timing import Fed, Work

WARM_UP_CALLS = 3  # before a capture, so that libraries choose their kernels and workspaces outside it


class Processor(Protocol):
    """Where tensors of the work lie, the work as it is measured, and the meter of its latency."""

    @property
    def device(self) -> torch.device: ...

    def ready(self, function: Callable[..., object], *inputs: Tensor) -> Work:
        """The function of these inputs, as it is repeated; all its tensors are on ``device``."""
        ...

    def meter(self) -> Meter: ...

    def synchronise(self) -> None:
        """Returns when all work given to it is done."""
        ...


class Cpu:
    """This process's threads: work is done when its call returns."""

    device = torch.device("cpu")

    def __init__(self, device: torch.device = device) -> None:
        if device.index:
            raise ValueError(f"torch_device is {device}; a machine has one cpu: write cpu")

    def ready(self, function: Callable[..., object], *inputs: Tensor) -> Work:
        return Fed(function, inputs)

    def meter(self) -> Meter:
        return METERS["wall_clock"]()

    def synchronise(self) -> None:
        pass


class Cuda:
    """One CUDA device, from here on the one that this process uses.  ValueError where torch finds none of this number."""

    def __init__(self, device: torch.device) -> None:
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index or 0
        if index >= there:
            remedy = "see `nvidia-smi` and CUDA_VISIBLE_DEVICES, install a torch built for CUDA, or use cpu"
            raise ValueError(f"torch_device is {device}; torch {torch.__version__} finds {there} CUDA devices here: {remedy}")
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        self._memory = torch.cuda.graph_pool_handle()  # of all graphs: one runs at a time

    def ready(self, function: Callable[..., object], *inputs: Tensor) -> Work:
        work = partial(function, *inputs)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_CALLS):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            work()
        return _Replay(graph, work)

    def meter(self) -> Meter:
        return METERS["cuda_events"]()

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.device)


@dataclass(frozen=True, slots=True)
class _Replay:
    """A captured graph, and the work that it was captured from: its kernels read that work's tensors wherever they lay."""

    graph: torch.cuda.CUDAGraph
    work: Work

    def __call__(self) -> None:
        self.graph.replay()


CPU: Processor = Cpu()
PROCESSORS: dict[str, Callable[[torch.device], Processor]] = {"cpu": Cpu, "cuda": Cuda}


def open_processor(torch_device: str) -> Processor:
    """The processor that torch calls so: ``cpu``, ``cuda``, ``cuda:1``.  ValueError where it is not here, or can't be measured."""
    try:
        device = torch.device(torch_device)
    except RuntimeError as error:
        raise ValueError(f"torch_device is {torch_device!r}, which torch does not know; give cpu, cuda or cuda:1") from error
    if device.type not in PROCESSORS:
        raise ValueError(f"torch_device is {torch_device!r}; work on {' and '.join(PROCESSORS)} can be measured")
    return PROCESSORS[device.type](device)
