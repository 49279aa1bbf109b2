"""Units as they run inside a network: the module of a layer shape, and inputs for it.

``growth.networks`` builds the modules as it does for a network (convolution, norm and activation as separate calls), so that an entry
includes what a unit costs in calls and memory passes, too.  All units of a sweep share one block of weights and one of
activations: a sweep has hundreds of shapes and runs one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from costs.shapes import LayerShape
from costs.table import Setting
from growth.networks import unit_module
from profiler.device import MEMORY_FORMATS
from profiler.processor import CPU, Processor
from profiler.timing import Work

_WEIGHT_STD = 0.1


class Residual(nn.Module):
    """A unit whose output is added to the running activation of its block."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y: Tensor = skip + self.unit(x)
        return y


def example_inputs(shape: LayerShape, batch: int) -> tuple[tuple[int, ...], ...]:
    """Sizes of the unit's inputs: the activation it reads and, for a residual unit, the one it is added to."""
    read = (batch, shape.in_channels, *((1, 1) if shape.op == "linear" else (shape.height, shape.width)))
    return (read, (batch, shape.out_channels, *shape.output_size)) if shape.residual else (read,)


def unit_work(shapes: Iterable[LayerShape], setting: Setting, on: Processor = CPU) -> dict[LayerShape, Work]:
    """One call of each unit, ready to be measured on this processor."""
    with torch.device("meta"):
        units = {shape: _unit(shape).eval() for shape in shapes}
    sizes = {shape: example_inputs(shape, setting.batch) for shape in units}
    generator = torch.Generator().manual_seed(0)
    weights = torch.empty(max((p.numel() for unit in units.values() for p in unit.parameters()), default=0))
    weights = weights.normal_(0, _WEIGHT_STD, generator=generator).to(on.device)
    activations = torch.empty(max((math.prod(size) for inputs in sizes.values() for size in inputs), default=0))
    activations = activations.normal_(generator=generator).to(on.device)
    memory_format = MEMORY_FORMATS[setting.layout]
    work: dict[LayerShape, Work] = {}
    for shape, unit in units.items():
        _materialise(unit, weights)
        inputs = [activations[: math.prod(size)].view(size) for size in sizes[shape]]
        unit.to(memory_format=memory_format)
        work[shape] = on.ready(unit, *(x.contiguous(memory_format=memory_format) if x.dim() == 4 else x for x in inputs))
    return work


def _unit(shape: LayerShape) -> nn.Module:
    """The unit with what stands around it in a network: its residual addition, or the flatten before a linear layer."""
    unit = unit_module(shape)
    if shape.op == "linear":
        return nn.Sequential(nn.Flatten(), unit)
    return Residual(unit) if shape.residual else unit


def _materialise(unit: nn.Module, weights: Tensor) -> None:
    """Put real numbers into a unit on the meta device: parameters look into ``weights``, running statistics are 0 and 1."""
    for module in unit.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shared = weights[: parameter.numel()].view(parameter.shape)
            setattr(module, name, nn.Parameter(shared, requires_grad=False))
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = weights.new_zeros(module.num_features)
            module.running_var = weights.new_ones(module.num_features)
            module.num_batches_tracked = None
