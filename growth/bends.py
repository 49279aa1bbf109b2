"""The Hessian of F (see ``growth.segments``) by double backward, for the groups without a closed form: gates, concatenations, norms on
their own, functions of several values.

F = sum over merge points m of <g_m, a_m(z)> is computed once more from z, the producers' outputs, with everything cut at the consumers.
H is block-diagonal over channels, since all in between is channelwise: one double backward serves all groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from growth.layers import Bend, Layer, Mix
from growth.pointwise import Curvature, Pointwise

_GRAPH = 4  # bytes that autograd keeps for two derivatives, per byte of value


@dataclass(frozen=True, slots=True)
class Linearised:
    """dF/dz for one batch, ready to be differentiated again, and the producers' inputs."""

    inputs: Mapping[int, Tensor]
    z: Mapping[int, Tensor]  # by value: the output of each producer
    first: Mapping[int, Tensor]  # dF/dz where F bends
    size_bytes: int

    def product(self, groups: Mapping[int, tuple[Mix, ...]], v: Sequence[Tensor]) -> dict[int, Tensor]:
        """S v, [C, d] for each of ``groups``."""
        parts = {
            mix: part
            for group, mixes in groups.items()
            for mix, part in zip(mixes, torch.split(v[group], [mix.weight[0].numel() for mix in mixes], 1), strict=True)
        }
        moved = {mix.output: mix.push(self.inputs[mix.inputs[0]], part) for mix, part in parts.items() if mix.output in self.first}
        bent = self._hessian(moved)
        images = {
            mix: mix.pull(self.inputs[mix.inputs[0]], bent[mix.output]) if mix.output in bent else torch.zeros_like(part)
            for mix, part in parts.items()
        }
        return {group: torch.cat([images[mix] for mix in mixes], 1) for group, mixes in groups.items()}

    def _hessian(self, dz: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """H dz."""
        if not dz:
            return {}
        values = [self.z[value] for value in dz]
        with torch.enable_grad():
            images = torch.autograd.grad(
                [self.first[value] for value in dz], values, list(dz.values()), retain_graph=True, materialize_grads=True
            )
        return dict(zip(dz, images, strict=True))


def linearise(
    layers: Sequence[Layer],
    producers: Sequence[Mix],
    values: Mapping[int, Any],
    gradients: Mapping[int, Tensor],
    curvature: Curvature,
) -> Linearised:
    """F of one batch.  ``values`` are those of a forward pass, ``gradients`` the g_m, by the output of the consumer that reads there."""
    with torch.enable_grad():
        z = {mix.output: values[mix.output].detach().requires_grad_() for mix in producers}
        local: dict[int, Any] = dict(z)
        terms: list[Tensor] = []
        for layer in layers:
            if isinstance(layer, Mix):
                if layer.inputs[0] in local:
                    terms.append((gradients[layer.output] * local[layer.inputs[0]]).sum())
            elif any(source in local for source in layer.inputs) and isinstance(values[layer.output], Tensor):
                inputs = [local.get(source, values[source]) for source in layer.inputs]
                local[layer.output] = _bent(layer, inputs[0], curvature) if isinstance(layer, Bend) else layer.value(inputs)
        first = torch.autograd.grad(torch.stack(terms).sum(), list(z.values()), create_graph=True, materialize_grads=True)
    bending = {value: gradient for value, gradient in zip(z, first, strict=True) if gradient.requires_grad}
    size = _GRAPH * sum(value.nbytes for value in local.values())
    return Linearised({mix.inputs[0]: values[mix.inputs[0]] for mix in producers}, z, bending, size)


def _bent(layer: Bend, y: Tensor, curvature: Curvature) -> Tensor:
    value: Tensor = _Value.apply(y, layer.pointwise, curvature)
    return value


class _Value(torch.autograd.Function):
    """phi with its second derivative from ``growth.pointwise``, a stand-in at kinks included."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, pointwise: Pointwise, curvature: Curvature) -> Tensor:
        ctx.save_for_backward(y)
        ctx.rest = pointwise, curvature
        return pointwise.value(y)

    @staticmethod
    def backward(ctx: Any, r: Tensor) -> Any:
        return _Slope.apply(r, *ctx.saved_tensors, *ctx.rest), None, None


class _Slope(torch.autograd.Function):
    """r * phi'(y)."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, y: Tensor, pointwise: Pointwise, curvature: Curvature) -> Tensor:
        slope, bend = pointwise.slope_and_bend(y, curvature)
        ctx.save_for_backward(slope, bend.mul_(r))
        return r * slope

    @staticmethod
    def backward(ctx: Any, t: Tensor) -> Any:
        slope, bend = ctx.saved_tensors
        return t * slope, t * bend, None, None
