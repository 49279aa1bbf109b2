"""Pointwise functions phi with what the splitting matrix needs of them: the slope phi' and the bend g * phi''.

``POINTWISE`` maps what a trace meets (a module type, a function, a tensor method's name) to its function.  Register your own:

    POINTWISE[MySquare] = Pointwise("square", value=lambda y: y * y, slope=lambda y: 2 * y, bend=lambda y, g: 2 * g)

``max(y, 0)`` has no second derivative where it matters, at its kink: its bend is None, and a ``Curvature`` stands in for phi''.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

_aten = torch.ops.aten


class Curvature(Protocol):
    """A stand-in for the second derivative of ``max(y, 0)``, elementwise; same shape as ``y``."""

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


@dataclass(frozen=True, slots=True)
class Pointwise:
    """phi with its derivatives, all elementwise: ``value(y)``, ``slope(y)`` = phi'(y), ``bend(y, g)`` = g * phi''(y).

    ``bend`` is None for phi = max(y, 0).
    """

    name: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    bend: Callable[[Tensor, Tensor], Tensor] | None


def _silu_slope(y: Tensor) -> Tensor:
    slope: Tensor = _aten.silu_backward(y.new_ones(()).expand_as(y), y)  # one fused pass
    return slope


def _silu_bend(y: Tensor, g: Tensor) -> Tensor:
    """phi'' = phi' + s - 2 s phi' with s = sigmoid(y)."""
    s, slope = torch.sigmoid(y), _silu_slope(y)
    return torch.addcmul(slope, s, slope, value=-2).add_(s).mul_(g)


def _sigmoid_slope(y: Tensor) -> Tensor:
    s = torch.sigmoid(y)
    return s * (1 - s)


def _sigmoid_bend(y: Tensor, g: Tensor) -> Tensor:
    s = torch.sigmoid(y)
    return g * s * (1 - s) * (1 - 2 * s)


def _tanh_slope(y: Tensor) -> Tensor:
    return 1 - torch.tanh(y).square()


def _tanh_bend(y: Tensor, g: Tensor) -> Tensor:
    t = torch.tanh(y)
    return -2 * g * t * (1 - t.square())


def _normal_density(y: Tensor) -> Tensor:
    return torch.exp(-0.5 * y.square()) / math.sqrt(2 * math.pi)


def _gelu_slope(y: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(y / math.sqrt(2))) + y * _normal_density(y)


SILU = Pointwise("silu", functional.silu, _silu_slope, _silu_bend)
RELU = Pointwise("relu", functional.relu, lambda y: (y > 0).to(y.dtype), None)
SIGMOID = Pointwise("sigmoid", torch.sigmoid, _sigmoid_slope, _sigmoid_bend)
TANH = Pointwise("tanh", torch.tanh, _tanh_slope, _tanh_bend)
GELU = Pointwise("gelu", functional.gelu, _gelu_slope, lambda y, g: g * _normal_density(y) * (2 - y.square()))

POINTWISE: dict[Any, Pointwise] = {
    nn.SiLU: SILU, functional.silu: SILU,
    nn.ReLU: RELU, functional.relu: RELU, torch.relu: RELU, "relu": RELU, "relu_": RELU,
    nn.Sigmoid: SIGMOID, torch.sigmoid: SIGMOID, functional.sigmoid: SIGMOID, "sigmoid": SIGMOID,
    nn.Tanh: TANH, torch.tanh: TANH, functional.tanh: TANH, "tanh": TANH,
    nn.GELU: GELU, functional.gelu: GELU,
}  # fmt: skip
