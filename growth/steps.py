"""The steps of a model: what each operation does to the channel axis.

*mix* (convolution, linear) reads one axis and writes a new one; *depthwise*, *norm*, *pointwise*, *add* and pooling act channel by
channel; *flatten* gives several columns per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, fx, nn

from growth.pointwise import Pointwise

Kind = Literal["image", "mix", "depthwise", "norm", "pointwise", "add", "max_pool", "global_pool", "flatten", "class_scores"]


class TraceError(ValueError):
    """The model holds something whose channels can't be followed; the message names the module and a remedy."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation.  ``path`` is its module (or the name of the call), ``inputs`` are indices of earlier steps."""

    kind: Kind
    path: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]  # of the output, for the example batch
    axis: int = 1  # which one is the channel axis
    columns: int = 1  # entries of that axis per channel; more than 1 behind a flatten
    pointwise: Pointwise | None = None
    window: tuple[int, int, int] | None = None  # kernel, stride, padding of a convolution or max pooling
    call: Callable[[Tensor], Tensor] | None = None  # what a global pool or class scores computes

    @property
    def channels(self) -> int:
        return self.shape[self.axis] // self.columns


@dataclass(slots=True)
class Steps:
    """The steps so far, and which of them computes each fx node."""

    shapes: dict[fx.Node, tuple[int, ...]]
    steps: list[Step] = field(default_factory=list)
    index: dict[fx.Node, int] = field(default_factory=dict)
    weights: set[int] = field(default_factory=set)

    def source(self, node: fx.Node) -> int:
        """Index of the step whose output the node reads first."""
        first = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(first, fx.Node) or first not in self.index:
            raise TraceError(f"'{node.name}' ({name_of(node)}){inside(node)} does not read a tensor of the model")
        return self.index[first]

    def add(self, node: fx.Node, kind: Kind, inputs: tuple[int, ...], **fields: Any) -> None:
        """Append a step; axis and columns are those of its first input unless given."""
        if inputs and kind != "mix":
            fields = {"axis": self.steps[inputs[0]].axis, "columns": self.steps[inputs[0]].columns} | fields
        path = str(node.target) if node.op == "call_module" else node.name
        self.index[node] = len(self.steps)
        self.steps.append(Step(kind, path, inputs, self.shapes[node], **fields))

    def once(self, node: fx.Node, module: nn.Module) -> None:
        """Weights may be used once only: their channels would belong to two places."""
        weight = id(module if module.weight is None else module.weight)
        if weight in self.weights:
            raise TraceError(f"the weights of module '{node.target}' are used twice and can't be split; give each call a module of its own")
        self.weights.add(weight)


def key_of(node: fx.Node, module: nn.Module | None) -> Any:
    """What an operation is registered under: the module's type, the function, or the method's name."""
    return type(module) if module is not None else node.target


def name_of(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def inside(node: fx.Node) -> str:
    """Where a function is called, for error messages."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path] if node.op != "call_module" else []
    return f" inside module '{paths[-1]}'" if paths else ""
