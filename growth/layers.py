"""The layers of a model as the splitting product sees them: frozen norms folded into their convolution, and for each channel-wise
layer its derivative (``tangent``) and the transpose of that (``adjoint``).

A batch norm with frozen statistics is y = s z + t per channel, so ``norm(conv(x, theta)) = conv(x, s theta) + t'``: folding it costs
nothing per image, and the chain rule through it is a factor s on the rows of theta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from growth.pointwise import Pointwise
from growth.steps import Window

Saved = tuple[Tensor, ...]  # what a layer keeps of a batch


@dataclass(frozen=True, slots=True)
class Layer:
    """Reads the values ``inputs`` and writes the value ``output`` (indices of steps)."""

    inputs: tuple[int, ...]
    output: int

    def value(self, x: Sequence[Any]) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Operation(Layer):
    """Any other operation, on tensors or numbers."""

    call: Callable[[Sequence[Any]], Any]

    def value(self, x: Sequence[Any]) -> Any:
        return self.call(x)


@dataclass(frozen=True, slots=True)
class Mix(Layer):
    """A convolution or linear layer with the norm behind it: a producer of its output, a consumer of its input."""

    weight: Tensor  # [C_out, C_in / groups, k, k] or [C_out, C_in], the model's own
    scale: Tensor | None  # [C_out] of the folded norm
    shift: Tensor | None  # [C_out] of bias and folded norm
    window: Window | None  # None for linear

    def value(self, x: Sequence[Tensor]) -> Tensor:
        return self._apply(x[0], rows(self.weight, self.scale), self.shift)

    def push(self, x: Tensor, v: Tensor) -> Tensor:
        """The change of the output when the weight changes by ``v`` [C_out, fan-in]."""
        return self._apply(x, rows(v.reshape(self.weight.shape), self.scale), None)

    def pull(self, x: Tensor, r: Tensor) -> Tensor:
        """The transpose of ``push``: the gradient of the weight, [C_out, fan-in], for the gradient ``r`` of the output."""
        if self.window is None:
            gradient = r.flatten(0, -2).T @ x.flatten(0, -2)
        else:
            gradient = _conv_backward(r, x, self.weight, self.window, of_weight=True)
        flat = gradient.flatten(1)
        return flat if self.scale is None else flat.mul_(self.scale.unsqueeze(1))

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias) if self.window is None else _convolve(x, weight, bias, self.window)


@dataclass(frozen=True, slots=True)
class Channelwise(Layer):
    """A layer whose output channel k depends on nothing but input channel k."""

    def tangent(self, t: Sequence[Tensor], saved: Saved) -> Tensor:
        """The change of the output for changes ``t`` of the inputs, to first order."""
        raise NotImplementedError

    def adjoint(self, r: Tensor, t: Sequence[Tensor], saved: Saved) -> tuple[Tensor, ...]:
        """One gradient per input, for the gradient ``r`` of the output (may be overwritten) and the tangents ``t`` of the inputs."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Depthwise(Channelwise):
    """A depthwise convolution with the norm behind it folded in."""

    weight: Tensor  # [C, 1, k, k], scaled
    shift: Tensor | None
    window: Window

    def value(self, x: Sequence[Tensor]) -> Tensor:
        return self._apply(x[0], self.shift)

    def tangent(self, t: Sequence[Tensor], _saved: Saved) -> Tensor:
        return self._apply(t[0], None)

    def adjoint(self, r: Tensor, t: Sequence[Tensor], _saved: Saved) -> tuple[Tensor, ...]:
        return (_conv_backward(r, t[0], self.weight, self.window, of_weight=False),)

    def _apply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(x, self.weight, bias, self.window)


@dataclass(frozen=True, slots=True)
class Bend(Channelwise):
    """A pointwise function phi: the one place where curvature arises.

    Saved are g * phi'' and, unless nothing behind it bends (``last``), phi'.  It alone reads its input, as the tail of a unit.
    """

    pointwise: Pointwise
    last: bool

    def value(self, x: Sequence[Tensor]) -> Tensor:
        return self.pointwise.value(x[0])

    def tangent(self, t: Sequence[Tensor], saved: Saved) -> Tensor:
        return t[0] * saved[1]

    def adjoint(self, r: Tensor, t: Sequence[Tensor], saved: Saved) -> tuple[Tensor, ...]:
        return (r.mul_(saved[1]).addcmul_(saved[0], t[0]),)

    def adjoint_of_last(self, t: Tensor, saved: Saved) -> tuple[Tensor, ...]:
        """As ``adjoint`` where no gradient arrives from behind; overwrites ``t``, which nothing else reads."""
        return (t.mul_(saved[0]),)


@dataclass(frozen=True, slots=True)
class Sum(Channelwise):
    """A residual sum."""

    def value(self, x: Sequence[Tensor]) -> Tensor:
        return x[0] + x[1]

    def tangent(self, t: Sequence[Tensor], _saved: Saved) -> Tensor:
        return t[0] + t[1]

    def adjoint(self, r: Tensor, _t: Sequence[Tensor], _saved: Saved) -> tuple[Tensor, ...]:
        return r, r.clone()  # each may be overwritten on its own


@dataclass(frozen=True, slots=True)
class Weightless(Channelwise):
    """A pooling, flatten, ... of one value: linear near its saved input."""

    call: Callable[[Sequence[Tensor]], Tensor]

    def value(self, x: Sequence[Tensor]) -> Tensor:
        return self.call(x)

    def tangent(self, t: Sequence[Tensor], saved: Saved) -> Tensor:
        with torch.enable_grad():  # the transpose of the transpose; forward-mode autograd would load half a compiler
            x = saved[0].detach().requires_grad_()
            y = self.call([x])
            r = torch.zeros_like(y, requires_grad=True)
            (pulled,) = torch.autograd.grad(y, x, r, create_graph=True)
            return torch.autograd.grad(pulled, r, t[0])[0]

    def adjoint(self, r: Tensor, _t: Sequence[Tensor], saved: Saved) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x = saved[0].detach().requires_grad_()
            return torch.autograd.grad(self.call([x]), x, r)


def rows(weight: Tensor, scale: Tensor | None) -> Tensor:
    """The weight with the scale of a folded norm on its rows."""
    return weight if scale is None else weight * scale.view(-1, *[1] * (weight.dim() - 1))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    groups = x.shape[1] // weight.shape[1]
    none = [0] * len(window.kernel)
    return torch.convolution(x, weight, bias, window.stride, window.padding, window.dilation, False, none, groups)


def _conv_backward(r: Tensor, x: Tensor, weight: Tensor, window: Window, of_weight: bool) -> Tensor:
    """The gradient of the weight, or else of the input, and nothing else."""
    groups = x.shape[1] // weight.shape[1]
    none = [0] * len(window.kernel)
    input_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
        r, x, weight, None, window.stride, window.padding, window.dilation, False, none, groups, [not of_weight, of_weight, False]
    )
    gradient: Tensor = weight_gradient if of_weight else input_gradient
    return gradient
