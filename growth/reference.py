"""The splitting product by plain double backward: slow, obvious, and the check on ``growth.splitting``.

It differentiates the linearised loss F = sum over merge points of <g_m, a_m(theta)> twice, by autograd alone: no closed form, nothing
folded.  It also does what the fast one can't: batch norms with the statistics of the batch, which couple its samples.
ReLU has no surrogate here: autograd's second derivative of it is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.splitting import Batch, Loss
from growth.steps import Step
from growth.tracing import evaluating


def reference_product(
    model: nn.Module, graph: ChannelGraph, batch: Batch, loss: Loss, v: list[Tensor], batch_statistics: bool = False
) -> list[Tensor]:
    """S v on one batch, one [C, d] per group."""
    x, target = batch
    producers = [producer for group in graph.groups for producer in group.producers]
    weights = {path: model.get_parameter(f"{path}.weight").detach().clone().requires_grad_() for path in producers}
    with torch.enable_grad(), evaluating(model):
        merged, values = _run(model, graph, x, weights, batch_statistics, cut=False)
        gradients = torch.autograd.grad(loss(values[graph.output], target), merged)  # g_m: of the loss through this merge point alone
        reached, _ = _run(model, graph, x, weights, batch_statistics, cut=True)
        linearised = _inner(gradients, reached)
        thetas = [[weights[producer] for producer in group.producers] for group in graph.groups]
        flat = [theta for group in thetas for theta in group]
        first = torch.autograd.grad(linearised, flat, create_graph=True)
        inner = _inner(first, _parts(v, thetas))
        if not inner.requires_grad:  # nothing bends
            return [torch.zeros_like(part) for part in v]
        second = iter(torch.autograd.grad(inner, flat, materialize_grads=True))
    return [torch.cat([next(second).flatten(1) for _ in group], 1) for group in thetas]


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _parts(v: list[Tensor], thetas: list[list[Tensor]]) -> list[Tensor]:
    """Directions in the shape of the weights."""
    return [
        part.reshape(theta.shape)
        for direction, group in zip(v, thetas, strict=True)
        for part, theta in zip(torch.split(direction, [theta[0].numel() for theta in group], dim=1), group, strict=True)
    ]


def _run(
    model: nn.Module, graph: ChannelGraph, x: Tensor, weights: dict[str, Tensor], batch_statistics: bool, cut: bool
) -> tuple[list[Tensor], list[Any]]:
    """What each consumer reads, and the values of all steps.  With ``cut`` nothing flows through a consumer."""
    values: list[Any] = []
    merged: list[Tensor] = []
    for step in graph.steps:
        inputs = [values[source] for source in step.inputs]
        if step.kind == "mix":
            if any(segment.group is not None for segment in graph.steps[step.inputs[0]].segments):
                inputs = [inputs[0].view_as(inputs[0])]  # this reader's own name for it: gradients through other readers stay out
                merged.append(inputs[0])
            inputs = [inputs[0].detach()] if cut else inputs
        values.append(x if step.kind == "image" else _compute(model, step, inputs, weights, batch_statistics))
    return merged, values


def _compute(model: nn.Module, step: Step, inputs: list[Any], weights: dict[str, Tensor], batch_statistics: bool) -> Any:
    if step.path in weights:
        return torch.func.functional_call(model.get_submodule(step.path), {"weight": weights[step.path]}, (inputs[0],))
    if step.kind == "norm":
        norm = cast(nn.BatchNorm2d, model.get_submodule(step.path))
        mean, variance = (None, None) if batch_statistics else (norm.running_mean, norm.running_var)
        return nn.functional.batch_norm(inputs[0], mean, variance, norm.weight, norm.bias, batch_statistics, 0.0, norm.eps)
    if step.pointwise is not None:
        return step.pointwise.value(inputs[0])
    assert step.call is not None
    return step.call(model, inputs)
