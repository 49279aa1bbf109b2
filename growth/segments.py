"""From the steps of a traced model to layers with frozen norms, and per channel group the *segment* between producers and merge points.

For a group, F(z) = sum over merge points m of <g_m, a_m(z)>, with z the producers' outputs, a_m what consumer m reads, and g_m the
gradient of the loss there, held fixed.  Everything in between acts channel by channel, so F bends only at pointwise functions h = phi(y):

    H dz = sum over them of  (dy/dz)^T [ gh * phi''(y) * (dy/dz) dz ],      gh = dF/dh

which is one pass forward (tangents) and one backward (adjoints) through the segment.  Because the paths from h to the loss all leave
through merge points, gh equals the gradient of the loss itself at h: one ordinary backward gives it for all groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.layers import Bend, Channelwise, Depthwise, Layer, Mix, Operation, Saved, Sum, Weightless, rows
from growth.steps import Step, Window

_WEIGHTLESS = ("max_pool", "global_pool", "flatten", "channelwise")


@dataclass(frozen=True, slots=True)
class Segment:
    """The producers of a group in order, and the layers that lie between one of them and a bend, in execution order."""

    producers: tuple[Mix, ...]
    layers: tuple[Channelwise, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(channels, d): d sums the fan-in over producers."""
        return len(self.producers[0].weight), sum(mix.weight[0].numel() for mix in self.producers)

    @property
    def live(self) -> set[int]:
        """The values that have a tangent; a producer that writes no such value adds nothing to S."""
        return {source for layer in self.layers for source in layer.inputs}

    def product(self, v: Tensor, values: Mapping[int, Tensor], saved: Mapping[int, Saved]) -> Tensor:
        """S v for one batch, [C, d]; ``values`` holds the producers' inputs, ``saved`` what each layer keeps, by output."""
        live = self.live
        parts = torch.split(v, [mix.weight[0].numel() for mix in self.producers], dim=1)
        tangents = {
            mix.output: mix.push(values[mix.inputs[0]], part) for mix, part in zip(self.producers, parts, strict=True) if mix.output in live
        }
        for layer in self.layers:
            if layer.output in live:
                tangents[layer.output] = layer.tangent([tangents[source] for source in layer.inputs], saved[layer.output])
        adjoints = self._adjoints(tangents, saved)
        images = [
            mix.pull(values[mix.inputs[0]], adjoints[mix.output]) if mix.output in live else torch.zeros_like(part)
            for mix, part in zip(self.producers, parts, strict=True)
        ]
        return torch.cat(images, 1) if len(images) > 1 else images[0]

    def _adjoints(self, tangents: Mapping[int, Tensor], saved: Mapping[int, Saved]) -> dict[int, Tensor]:
        adjoints: dict[int, Tensor] = {}
        for layer in reversed(self.layers):
            t = [tangents[source] for source in layer.inputs]
            if isinstance(layer, Bend) and layer.last:
                gradients = layer.adjoint_of_last(t[0], saved[layer.output])
            else:
                gradients = layer.adjoint(adjoints.pop(layer.output), t, saved[layer.output])
            for source, gradient in zip(layer.inputs, gradients, strict=True):
                adjoints[source] = adjoints[source] + gradient if source in adjoints else gradient
        return adjoints


def lower(model: nn.Module, graph: ChannelGraph) -> list[Layer]:
    """The layers that compute ``model`` in eval mode, from its weights as they are now.  ValueError if they don't fit the graph."""
    readers = _readers(graph.steps)
    bending, folded = _bending(graph.steps), _folded(graph.steps, readers)
    layers: list[Layer] = []
    for index, step in enumerate(graph.steps):
        if step.kind == "image" or index in folded:
            continue
        assert step.call is not None
        call = partial(step.call, model)
        if step.kind in ("mix", "depthwise"):
            layers.append(_convolution(model, graph.steps, index, next((norm for norm in readers[index] if norm in folded), None)))
        elif step.kind == "pointwise":
            assert step.pointwise is not None
            layers.append(Bend(step.inputs, index, step.pointwise, index not in bending))
        elif step.kind == "add":
            layers.append(Sum(step.inputs, index))
        elif step.kind in _WEIGHTLESS and len(step.inputs) == 1:
            layers.append(Weightless(step.inputs, index, call))
        else:
            layers.append(Operation(step.inputs, index, call))
    return layers


def closed(graph: ChannelGraph) -> set[int]:
    """The groups whose segment has a closed form: alone on their axes, through layers that know their tangent and its transpose."""
    readers = _readers(graph.steps)
    folded = _folded(graph.steps, readers)
    known = {
        index for index, step in enumerate(graph.steps)
        if step.kind in ("mix", "depthwise", "add")
        or (step.kind in _WEIGHTLESS and len(step.inputs) == 1)
        or (step.kind == "pointwise" and readers[step.inputs[0]] == [index])
    } | folded  # fmt: skip
    others = {
        segment.group for index, step in enumerate(graph.steps) for segment in step.segments if step.only is None or index not in known
    }
    return set(range(len(graph.groups))) - others


def segments(graph: ChannelGraph, layers: Sequence[Layer]) -> dict[int, Segment]:
    """The segment of each group that has a closed form."""
    bending = _bending(graph.steps)
    return {group: _segment(graph, layers, bending, group) for group in sorted(closed(graph))}


def producers(graph: ChannelGraph, layers: Sequence[Layer], group: int) -> tuple[Mix, ...]:
    return tuple(layer for layer in layers if isinstance(layer, Mix) and _group(graph.steps[layer.output]) == group)


def _segment(graph: ChannelGraph, layers: Sequence[Layer], bending: set[int], group: int) -> Segment:
    own = [
        layer for layer in layers
        if isinstance(layer, Channelwise) and _group(graph.steps[layer.output]) == group
        and (isinstance(layer, Bend) or layer.output in bending)
    ]  # fmt: skip
    return Segment(producers(graph, layers, group), tuple(own))


def norms_behind(graph: ChannelGraph) -> dict[str, str]:
    """The norm that alone reads a convolution or linear layer, by path."""
    return {graph.steps[graph.steps[norm].inputs[0]].path: graph.steps[norm].path for norm in _folded(graph.steps, _readers(graph.steps))}


def _group(step: Step) -> int | None:
    return None if step.only is None else step.only.group


def _readers(steps: Sequence[Step]) -> list[list[int]]:
    """The steps that read each value; those that take only its size don't count."""
    readers: list[list[int]] = [[] for _ in steps]
    for index, step in enumerate(steps):
        for source in step.inputs if step.kind != "number" else ():
            readers[source].append(index)
    return readers


def _bending(steps: Sequence[Step]) -> set[int]:
    """The values from which a pointwise function is reached before a merge point."""
    bending: set[int] = set()
    for index in reversed(range(len(steps))):
        if steps[index].kind == "pointwise" or (steps[index].kind not in ("image", "mix", "number") and index in bending):
            bending |= set(steps[index].inputs)
    return bending


def _folded(steps: Sequence[Step], readers: Sequence[Sequence[int]]) -> set[int]:
    """The norms directly behind a convolution or linear layer that nothing else reads."""
    return {
        index for index, step in enumerate(steps)
        if step.kind == "norm" and steps[step.inputs[0]].kind in ("mix", "depthwise") and readers[step.inputs[0]] == [index]
    }  # fmt: skip


def _convolution(model: nn.Module, steps: Sequence[Step], index: int, norm: int | None) -> Mix | Depthwise:
    step, module = steps[index], model.get_submodule(steps[index].path)
    weight = cast(Tensor, module.weight).detach()
    shift = None if module.bias is None else cast(Tensor, module.bias).detach()
    scale = None
    channels = step.shape[-1 if step.window is None else 1]
    if weight.shape[0] != channels:
        raise ValueError(f"'{step.path}' has {weight.shape[0]} channels, the graph was traced with {channels}; call find_groups again")
    if norm is not None:
        scale, moved = _affine(model, steps[norm])
        shift = moved if shift is None else torch.addcmul(moved, shift, scale)
    output = index if norm is None else norm
    if step.kind == "mix":
        return Mix(step.inputs, output, weight, scale, shift, step.window)
    return Depthwise(step.inputs, output, rows(weight, scale), shift, cast(Window, step.window))


def _affine(model: nn.Module, step: Step) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm with frozen statistics, [C] each."""
    norm = cast(nn.BatchNorm2d, model.get_submodule(step.path))
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.detach()
        return scale, norm.bias.detach() - mean * scale
    return scale, -mean * scale
