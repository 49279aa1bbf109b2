"""The units a device executes (convolution + norm + residual addition + activation, ...), gathered from the steps of a traced model.

A unit starts at a convolution, linear layer or pooling and takes what follows it as long as nothing else reads in between.  It is named
by the parent module that holds its parts ("stem", "blocks.3.depthwise"), or by its convolution where they are siblings of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from costs.shapes import Activation, LayerShape, Op, Unit
from growth.steps import Step

# costs has a word for the activations that a profiler measures; "other" has exact counts, and no entry in a measured table
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "relu": "relu"}
_OPS: dict[str, Op] = {"depthwise": "conv2d", "max_pool": "max_pool", "global_pool": "global_pool"}


class NoUnitError(ValueError):
    """The model holds something that is in no unit, or that ``LayerShape`` can't say; the message names it."""


@dataclass(slots=True)
class _Parts:
    """The steps of one unit: where it starts, and what is fused behind."""

    start: int
    norm: Step | None = None
    residual: bool = False
    activation: Step | None = None
    paths: list[str] = field(default_factory=list)

    def take(self, step: Step, layer: bool) -> bool:
        """Fuse ``step`` if a unit can hold it; ``layer`` is False for pooling, which has neither norm nor residual."""
        if self.activation is not None or (step.kind != "pointwise" and not layer):
            return False
        if step.kind == "norm" and self.norm is None and not self.residual:
            self.norm = step
        elif step.kind == "add" and not self.residual:
            self.residual = True
        elif step.kind == "pointwise":
            self.activation = step
        else:
            return False
        if step.kind != "add":
            self.paths.append(step.path)
        return True


def wire(model: nn.Module, steps: Sequence[Step]) -> tuple[Unit, ...]:
    """All units in execution order.  NoUnitError for a step that no unit can hold, or a shape that ``LayerShape`` can't say."""
    for step in steps:
        if step.kind in ("elementwise", "cat", "channelwise", "opaque"):
            raise NoUnitError(f"'{step.path}' ({step.kind}) is in no unit that a device executes")
    units = _gather(steps)
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return tuple(_unit(model, steps, units[start], layers) for start in sorted(units))


def _gather(steps: Sequence[Step]) -> dict[int, _Parts]:
    users: dict[int, set[int]] = {index: set() for index in range(len(steps))}
    for index, step in enumerate(steps):
        for source in step.inputs if step.kind != "number" else ():
            users[source].add(index)
    units: dict[int, _Parts] = {}
    taken: set[int] = set()
    for start in reversed(range(len(steps))):  # from the back: a sum belongs to the operand computed last
        if steps[start].kind not in ("mix", *_OPS):
            continue
        units[start], index = _Parts(start), start
        while len(users[index]) == 1:
            (index,) = users[index]
            if index in taken or not units[start].take(steps[index], steps[start].kind in ("mix", "depthwise")):
                break
            taken.add(index)
    for index, step in enumerate(steps):
        if step.kind in ("norm", "pointwise", "add") and index not in taken:
            raise NoUnitError(
                f"{step.kind} '{step.path}' does not directly follow a convolution or linear layer that only it reads, so it has no price; "
                "put it behind one, in the order norm, addition, activation"
            )
    return units


def _unit(model: nn.Module, steps: Sequence[Step], parts: _Parts, layers: list[str]) -> Unit:
    step = steps[parts.start]
    source = steps[step.inputs[0]]
    read, written = source.only, step.only
    return Unit(
        _unit_name(step, parts, layers), _shape(model, step, source, parts),
        read.group if read else None, written.group if written else None, read.columns if read and step.kind == "mix" else 1,
    )  # fmt: skip


def _unit_name(step: Step, parts: _Parts, layers: list[str]) -> str:
    parent = step.path.rpartition(".")[0]
    inside = Counter(path.startswith(f"{parent}.") for path in layers)[True]
    together = all(path.startswith(f"{parent}.") for path in parts.paths)
    return parent if parent and step.kind in ("mix", "depthwise") and inside == 1 and together else step.path


def _shape(model: nn.Module, step: Step, source: Step, parts: _Parts) -> LayerShape:
    activation: Activation = "none" if parts.activation is None else _activation(parts.activation)
    inputs, outputs, norm = source.shape[1], step.shape[1], parts.norm is not None
    if len(source.shape) == 2:
        return LayerShape("linear", inputs, outputs, norm=norm, activation=activation, residual=parts.residual)
    if len(source.shape) != 4:
        raise NoUnitError(f"'{step.path}' reads shape {source.shape}; only images [B, C, H, W] and vectors [B, C] can be priced")
    square = (1, 1, 0) if step.window is None else step.window.square
    if square is None:
        raise NoUnitError(f"'{step.path}' is dilated or not square; only square kernels, strides and paddings can be priced")
    kernel, stride, _ = square
    groups = cast(int, model.get_submodule(step.path).groups) if step.kind in ("mix", "depthwise") else 1
    height, width = source.shape[2:]
    shape = LayerShape(
        _OPS.get(step.kind, "conv2d"), inputs, outputs, kernel, stride, groups, height, width, norm, activation, parts.residual
    )  # fmt: skip
    if shape.op != "global_pool" and shape.output_size != step.shape[2:]:
        raise NoUnitError(
            f"'{step.path}' maps {source.shape[2:]} to {step.shape[2:]} pixels where {shape} gives {shape.output_size}; "
            "only padding by kernel // 2 can be priced"
        )
    return shape


def _activation(step: Step) -> Activation:
    assert step.pointwise is not None
    return _ACTIVATIONS.get(step.pointwise.name, "other")
