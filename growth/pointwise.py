"""Pointwise functions phi with what the splitting matrix needs of them: slope phi' and curvature phi''.

``POINTWISE`` maps what a trace meets (a module type, a function, a tensor method's name) to its function.  Register your own:

    POINTWISE[Square] = Pointwise("square", value=torch.square, derivatives=lambda y: (2 * y, torch.full_like(y, 2)))

``max(y, 0)`` has no second derivative where it matters, at its kink, where the slope jumps from 0 to 1; a ``Curvature`` stands in for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Curvature(Protocol):
    """A stand-in for the second derivative of ``max(y, 0)``, elementwise; a new tensor of the shape of ``y``."""

    def __call__(self, y: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Softplus:
    """Second derivative of softplus, beta s (1 - s) with s = sigmoid(beta y): the surrogate of Wang et al. (arXiv 1910.03103).

    It is biased: for one standard normal pre-activation, beta = 3 gives 78 % of the exact index, 10 gives 95 %, 30 gives 99 %.  A
    larger beta has less bias and more noise, since fewer samples fall near the kink.
    """

    beta: float = 3.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"softplus beta is {self.beta}; it must be finite and above 0")

    def __call__(self, y: Tensor) -> Tensor:
        s = torch.sigmoid(self.beta * y)
        return s.mul_(1 - s).mul_(self.beta)


SOFTPLUS = Softplus(beta=3.0)  # the published choice


@dataclass(frozen=True, slots=True)
class Pointwise:
    """phi, elementwise.  ``derivatives(y)`` gives (phi'(y), phi''(y)) in new tensors; phi'' is None where it is 0 between kinks.

    ``kinks`` are the places where the slope jumps, and by how much: (0, 1) for ``max(y, 0)``.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    kinks: tuple[tuple[float, float], ...] = ()

    def slope_and_bend(self, y: Tensor, curvature: Curvature) -> tuple[Tensor, Tensor]:
        """phi'(y) and phi''(y), with ``curvature`` in place of every unit jump of the slope; new tensors."""
        slope, second = self.derivatives(y)
        for place, jump in self.kinks:
            part = curvature(y - place if place else y)
            part = part.mul_(jump) if jump != 1 else part
            second = part if second is None else second.add_(part)
        return slope, torch.zeros_like(y) if second is None else second


def _silu(y: Tensor) -> tuple[Tensor, Tensor]:
    """phi'' = phi' + s - 2 s phi' with s = sigmoid(y): few passes over memory, which is what this costs."""
    s = torch.sigmoid(y)
    slope: Tensor = torch.ops.aten.silu_backward(y.new_ones(()).expand_as(y), y)
    return slope, torch.addcmul(slope, s, slope, value=-2).add_(s)


def _relu(y: Tensor) -> tuple[Tensor, None]:
    return (y > 0).to(y.dtype), None


def _relu6(y: Tensor) -> tuple[Tensor, None]:
    return ((y > 0) & (y < 6)).to(y.dtype), None


def _hardsigmoid(y: Tensor) -> tuple[Tensor, None]:
    slope: Tensor = torch.ops.aten.hardsigmoid_backward(y.new_ones(()).expand_as(y), y)
    return slope, None


def _hardswish(y: Tensor) -> tuple[Tensor, Tensor]:
    """y relu6(y + 3) / 6: a parabola between -3 and 3."""
    inside = (y.abs() < 3).to(y.dtype)
    return torch.where(y.abs() < 3, y / 3 + 0.5, (y > 0).to(y.dtype)), inside / 3


def _sigmoid(y: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(y)
    slope = s * (1 - s)
    return slope, slope * (1 - 2 * s)


def _tanh(y: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.tanh(y)
    slope = 1 - t.square()
    return slope, -2 * t * slope


def _gelu(y: Tensor) -> tuple[Tensor, Tensor]:
    density = torch.exp(-0.5 * y.square()) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(y / math.sqrt(2))) + y * density, density * (2 - y.square())


SILU = Pointwise("silu", functional.silu, _silu)
RELU = Pointwise("relu", functional.relu, _relu, ((0, 1),))
RELU6 = Pointwise("relu6", functional.relu6, _relu6, ((0, 1), (6, -1)))
HARDSIGMOID = Pointwise("hardsigmoid", functional.hardsigmoid, _hardsigmoid, ((-3, 1 / 6), (3, -1 / 6)))
HARDSWISH = Pointwise("hardswish", functional.hardswish, _hardswish, ((-3, -0.5), (3, -0.5)))
SIGMOID = Pointwise("sigmoid", torch.sigmoid, _sigmoid)
TANH = Pointwise("tanh", torch.tanh, _tanh)
GELU = Pointwise("gelu", functional.gelu, _gelu)

POINTWISE: dict[Any, Pointwise] = {
    nn.SiLU: SILU, functional.silu: SILU,
    nn.ReLU: RELU, functional.relu: RELU, torch.relu: RELU, "relu": RELU, "relu_": RELU,
    nn.ReLU6: RELU6, functional.relu6: RELU6,
    nn.Hardsigmoid: HARDSIGMOID, functional.hardsigmoid: HARDSIGMOID,
    nn.Hardswish: HARDSWISH, functional.hardswish: HARDSWISH,
    nn.Sigmoid: SIGMOID, torch.sigmoid: SIGMOID, functional.sigmoid: SIGMOID, "sigmoid": SIGMOID,
    nn.Tanh: TANH, torch.tanh: TANH, functional.tanh: TANH, "tanh": TANH,
    nn.GELU: GELU, functional.gelu: GELU,
}  # fmt: skip


def leaky_relu(slope: float) -> Pointwise:
    def derivatives(y: Tensor) -> tuple[Tensor, None]:
        return torch.ones_like(y).where(y > 0, slope), None

    return Pointwise("leaky_relu", partial(functional.leaky_relu, negative_slope=slope), derivatives, ((0, 1 - slope),))


# Modules whose function depends on their settings.
CONFIGURED: dict[type[nn.Module], Callable[[Any], Pointwise]] = {nn.LeakyReLU: lambda module: leaky_relu(module.negative_slope)}


def pointwise_of(key: Any, module: nn.Module | None) -> Pointwise:
    return POINTWISE[key] if key in POINTWISE else CONFIGURED[key](module)
