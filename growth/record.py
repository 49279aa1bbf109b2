"""What a trace has found so far: the steps, and which of them computes each node of the traced graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from growth.axes import Axes
from growth.steps import Call, Kind, Segment, Slot, Step, inside, name_of


class NotFollowedError(Exception):
    """The channels that an operation reads can't be followed through it; the message says why, and completes "its channels reach ..."."""


@dataclass(slots=True)
class Results:
    """What each node gave for the example batch."""

    shapes: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)  # of tensors
    numbers: dict[fx.Node, Any] = field(default_factory=dict)  # whatever holds no tensor
    unchanged: set[fx.Node] = field(default_factory=set)  # those that hand back their first argument, as dropout does in eval mode
    overwriting: set[fx.Node] = field(default_factory=set)  # those that change it in place


@dataclass(slots=True)
class Record:
    model: nn.Module
    results: Results
    shared: frozenset[str] = frozenset()  # paths of parameters, and of modules with some, that are used more than once
    steps: list[Step] = field(default_factory=list)
    index: dict[fx.Node, int] = field(default_factory=dict)
    axes: Axes = field(default_factory=Axes)
    opaque: dict[str, str] = field(default_factory=dict)  # paths of modules that can't be followed, and why

    def source(self, node: fx.Node) -> int:
        """Index of the step whose tensor the node reads first."""
        first = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(first, fx.Node) or first not in self.results.shapes:
            raise NotFollowedError("does not read a tensor of the model first")
        return self.index[first]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        if node not in self.results.shapes:
            raise NotFollowedError("gives several tensors")
        return self.results.shapes[node]

    def tensors(self, node: fx.Node) -> list[int]:
        """Indices of the steps whose tensors (or tuples of them) the node reads."""
        return [self.index[read] for read in node.all_input_nodes if read not in self.results.numbers]

    def alias(self, node: fx.Node, source: int) -> None:
        """The node's value is that of an earlier step."""
        self.index[node] = source

    def add(
        self, node: fx.Node, kind: Kind, axis: int | None = None, segments: Sequence[Segment] = (), call: Call | None = None, **fields: Any
    ) -> None:
        """Append a step.  ``call`` replaces the call as traced where that says the same with fewer inputs: its one input is the source."""
        inputs = tuple(self.index[read] for read in node.all_input_nodes) if call is None else (self.source(node),)
        path = str(node.target) if node.op in ("call_module", "get_attr") else node.name
        axis = axis if segments else None
        self.index[node] = len(self.steps)
        shape = () if kind in ("number", "opaque") and node not in self.results.shapes else self.shape(node)
        self.steps.append(
            Step(kind, path, inputs, shape, axis, tuple(segments), call=call or call_of(node, node in self.results.overwriting), **fields)
        )

    def keep(self, node: fx.Node, kind: Kind, **fields: Any) -> None:
        """Append a step that has the channel axis of its source."""
        before = self.steps[self.source(node)]
        self.add(node, kind, before.axis, before.segments, **fields)

    def start(self, node: fx.Node, axis: int, **fields: Any) -> tuple[Segment, ...]:
        """Append a mix, which starts a channel axis of its own."""
        segments = (Segment(self.axes.new(), self.shape(node)[axis]),)
        self.add(node, "mix", axis, segments, **fields)
        return segments

    def adopt(self, parameter: Step, axis: int, segments: Sequence[Segment]) -> None:
        """From now on the entries of ``parameter`` along ``axis`` belong to these channels."""
        self.steps[self.steps.index(parameter)] = replace(parameter, axis=axis, segments=tuple(segments))

    def give_up(self, node: fx.Node, reason: str, kind: Kind = "opaque") -> None:
        """Fix whatever channels the node reads, and know nothing of those it writes."""
        what = f"'{node.name}' ({name_of(node)}){inside(node)}"
        if node.op == "call_module":
            what = f"module '{node.target}' ({type(self.model.get_submodule(str(node.target))).__name__})"
            self.opaque[str(node.target)] = f"it {reason}"
        for source in self.tensors(node):
            self.axes.pin(self.steps[source].segments, f"its channels reach {what}, which {reason}")
        self.add(node, kind)


def call_of(node: fx.Node, overwrites: bool = False) -> Call:
    """What the node does, as a call on its inputs."""
    positions = {read: position for position, read in enumerate(node.all_input_nodes)}

    def slot(read: fx.Node) -> Any:
        return Slot(positions[read], overwrites and read is node.args[0])

    args: Any = fx.node.map_arg(node.args, slot)
    kwargs: Any = fx.node.map_arg(node.kwargs, slot)
    return Call(node.op, node.target, args, kwargs)
