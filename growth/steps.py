"""The steps of a traced model: what each operation does to the channels of the values it reads.

A *mix* (convolution, linear) reads one channel axis and writes a new one.  *depthwise*, *norm*, *pointwise*, pooling and other
*channelwise* steps, which are linear, act channel by channel; *add* and *elementwise* (a gate, a broadcast sum, an activation without a
closed form) also tie the channels of several values; *cat* lines axes up; *flatten* gives several entries per channel.  A *parameter*
of the model's own, such as a scale, takes the channels of what it meets; a *number* is a size or the like.  Behind an *opaque* step
channels are not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx, nn
from torch.fx.node import map_aggregate

from growth.pointwise import Pointwise

Kind = Literal[
    "image", "mix", "depthwise", "norm", "pointwise", "add", "elementwise", "cat", "max_pool", "global_pool", "flatten", "channelwise",
    "parameter", "number", "class_scores", "opaque",
]  # fmt: skip


class TraceError(ValueError):
    """The model can't be traced, grown or priced; the message names the module and a remedy."""


@dataclass(frozen=True, slots=True)
class Window:
    """Settings of a convolution or pooling, one number per spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def square(self) -> tuple[int, int, int] | None:
        """Kernel, stride and padding where each is one number and nothing is dilated."""
        sides = {(*settings, dilation) for *settings, dilation in zip(self.kernel, self.stride, self.padding, self.dilation, strict=True)}
        kernel, stride, padding, dilation = next(iter(sides))
        return (kernel, stride, padding) if len(sides) == 1 and dilation == 1 else None


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring channels of an axis, ``columns`` entries each (above 1 behind a flatten): all those of a group, or of none.

    While a model is being traced, ``group`` is the number of an axis in ``growth.axes``.
    """

    group: int | None
    width: int
    columns: int = 1

    @property
    def entries(self) -> int:
        return self.width * self.columns


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands for an input value among the arguments of a call; ``copied`` where the call overwrites it."""

    position: int
    copied: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """An operation as it was traced, to be done again on other values.  ``op`` and ``target`` are those of torch.fx."""

    op: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None

    def __call__(self, model: nn.Module, values: Sequence[Any]) -> Any:
        def fill(argument: Any) -> Any:
            if not isinstance(argument, Slot):
                return argument
            return values[argument.position].clone() if argument.copied else values[argument.position]

        if self.op == "get_attr":
            return attribute(model, self.target)
        args: Any = map_aggregate(self.args, fill)
        kwargs: Any = map_aggregate(self.kwargs or {}, fill)
        if self.op == "call_module":
            return model.get_submodule(self.target)(*args, **kwargs)
        if self.op == "call_method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation.  ``path`` is its module (or the name of the call), ``inputs`` are indices of earlier steps."""

    kind: Kind
    path: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]  # of the output, for the example batch; empty if it is no tensor
    axis: int | None = None  # which one is the channel axis, where that is known
    segments: tuple[Segment, ...] = ()  # of that axis
    pointwise: Pointwise | None = None
    window: Window | None = None
    call: Call | None = None

    @property
    def only(self) -> Segment | None:
        """The segment of an axis that has just one."""
        return self.segments[0] if len(self.segments) == 1 else None


def attribute(model: nn.Module, target: str) -> Any:
    """A parameter or buffer (or other attribute) by its path."""
    path, _, name = target.rpartition(".")
    return getattr(model.get_submodule(path), name)


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
