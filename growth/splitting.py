"""The splitting matrix product: S v for all channels of all groups at once, taken at the merge point.

S_k is the Hessian of the linearised loss F (see ``growth.segments``) with respect to theta_k, the weights of channel k; splitting it
into theta_k +- eps v changes the loss by eps^2/2 v^T S_k v (Liu, Wu, Wang, arXiv 1910.02366, theorem 2.2; Wang et al., arXiv
1910.03103).  A producer is linear in theta, so with its input x

    S v = weight-gradient(x, H dz),     dz = conv(x, v)

and H acts through the cheap channel-wise segment alone.  x, slopes and bends do not depend on v: a batch is prepared once, by one
forward and one backward to activations only, and a further product is convolution, elementwise work and a weight gradient.
H has a closed form for most groups (``growth.segments``); the others take the double backward (``growth.bends``), three times dearer.
No hooks, no extra parameters; the model is only read, its norms with frozen (eval) statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from growth import distributed
from growth.bends import Linearised, linearise
from growth.groups import ChannelGraph
from growth.layers import Bend, Mix, Saved, Weightless
from growth.pointwise import SOFTPLUS, Curvature
from growth.segments import Segment, lower, producers, segments
from growth.tracing import evaluating

Loss = Callable[[Tensor, Tensor], Tensor]  # (class scores, target) -> scalar, the mean over the batch
Batch = tuple[Tensor, Tensor]

KEEP_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Prepared:
    """What all products with one batch share.

    For the groups with a closed form: inputs of the producers by value, and what each segment layer keeps by output.
    """

    values: dict[int, Tensor]
    saved: dict[int, Saved]
    linearised: Linearised | None  # for the other groups, if there are any

    @property
    def size_bytes(self) -> int:
        tensors = [*self.values.values(), *(tensor for kept in self.saved.values() for tensor in kept)]
        closed = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
        return closed + (self.linearised.size_bytes if self.linearised else 0)


class SplittingProduct:
    """S v over ``batches``, the mean over all their samples.

    ``model`` is read once, here: after its weights change, make a new product.  ``curvature`` stands in for ReLU's second derivative.
    Batches stay prepared while they fit in ``keep_bytes``; the others are prepared anew for each product.  Several processes share
    the batches out, so all make the same products in the same order.
    FloatingPointError names the group when a product is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        batches: Sequence[Batch],
        loss: Loss,
        curvature: Curvature = SOFTPLUS,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        if not batches:
            raise ValueError("no batches to take the splitting matrix on; give at least one")
        self.model, self.graph, self.batches, self.loss, self.curvature = model, graph, batches, loss, curvature
        self.layers = lower(model, graph)
        self.segments = segments(graph, self.layers)
        self.producers = [producers(graph, self.layers, group) for group in range(len(graph.groups))]
        self.open = {group: mixes for group, mixes in enumerate(self.producers) if group not in self.segments}
        self.shapes = [(len(mixes[0].weight), sum(mix.weight[0].numel() for mix in mixes)) for mixes in self.producers]
        self._room_bytes = keep_bytes
        self._prepared: dict[int, Prepared] = {}

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def fits(self) -> bool:
        """Whether all batches stay prepared, if a process's are like its first: for all processes together, so that they agree."""
        share = distributed.mine(range(len(self.batches)))
        with distributed.same_fate():
            first = self._prepare(share[0]).size_bytes if share else 0
        room = self._room_bytes + sum(kept.size_bytes for kept in self._prepared.values())
        needed, there = distributed.totals(first * len(share), room)
        return needed <= there

    def zeros(self) -> list[Tensor]:
        """The zero direction, one [C, d] per group: where solvers start from, with the model's type and device."""
        return [mixes[0].weight.new_zeros(shape) for mixes, shape in zip(self.producers, self.shapes, strict=True)]

    def __call__(self, v: list[Tensor]) -> list[Tensor]:
        """S v, one [C, d] per group."""
        samples = sum(len(x) for x, _ in self.batches)
        total: list[Tensor] = []
        with distributed.same_fate():
            for number in distributed.mine(range(len(self.batches))):
                parts, images = self.on_batch(number, v), len(self.batches[number][0])
                if images < samples:
                    parts = [part.mul_(images / samples) for part in parts]
                total = [sum_.add_(part) for sum_, part in zip(total, parts, strict=True)] if total else parts
        return distributed.total(total or self.zeros())

    def on_batch(self, number: int, v: list[Tensor]) -> list[Tensor]:
        """S v on one batch alone, in this process alone.  A group whose v is zero costs nothing."""
        if [tuple(part.shape) for part in v] != self.shapes:
            raise ValueError(f"directions have shapes {[tuple(part.shape) for part in v]}; they must be {self.shapes}")
        batch = self._prepare(number)
        images = {group: self._one(segment, v[group], batch) for group, segment in self.segments.items()}
        moved = {group: mixes for group, mixes in self.open.items() if torch.linalg.vector_norm(v[group]).item() != 0}
        if batch.linearised is not None:
            images |= batch.linearised.product(moved, v)
        return [self._checked(group, number, images.get(group, torch.zeros_like(part))) for group, part in enumerate(v)]

    @staticmethod
    def _one(segment: Segment, v: Tensor, batch: Prepared) -> Tensor:
        if not segment.layers or torch.linalg.vector_norm(v).item() == 0:
            return torch.zeros_like(v)
        return segment.product(v, batch.values, batch.saved)

    def _checked(self, group: int, number: int, product: Tensor) -> Tensor:
        if not math.isfinite(product.sum().item()):  # one pass: a sum with a NaN or infinity in it is not finite
            producers = ", ".join(self.graph.groups[group].producers)
            raise FloatingPointError(
                f"the splitting product of group {group} ({producers}) is not finite on batch {number}; "
                "lower the learning rate or the split step"
            )
        return product

    def _prepare(self, number: int) -> Prepared:
        if number in self._prepared:
            return self._prepared[number]
        prepared = self._collect(number)
        if prepared.size_bytes <= self._room_bytes:
            self._room_bytes -= prepared.size_bytes
            self._prepared[number] = prepared
        return prepared

    def _collect(self, number: int) -> Prepared:
        """One forward, one backward to activations: no gradient of any parameter is computed."""
        x, target = self.batches[number]
        bends = [layer for segment in self.segments.values() for layer in segment.layers if isinstance(layer, Bend)]
        with torch.enable_grad(), evaluating(self.model):
            values, read = self._forward(x)
            loss = self.loss(values[self.graph.output], target)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} on batch {number} of the splitting product; lower the learning rate or the split step"
                )
            edges = [values[bend.output] for bend in bends] + list(read.values())
            gradients = torch.autograd.grad(loss, edges, materialize_grads=True) if edges else ()  # none: nothing bends
        values = {index: value.detach() if isinstance(value, Tensor) else value for index, value in values.items()}
        merged = dict(zip(read, gradients[len(bends) :], strict=True))
        opened = [mix for mixes in self.open.values() for mix in mixes]
        linearised = linearise(self.layers, opened, values, merged, self.curvature) if opened else None
        saved = self._saved(bends, gradients[: len(bends)], values)
        used = {mix.inputs[0] for segment in self.segments.values() if segment.layers for mix in segment.producers}
        return Prepared({index: values[index] for index in used}, saved, linearised)

    def _forward(self, x: Tensor) -> tuple[dict[int, Any], dict[int, Tensor]]:
        """All values, and what the consumers of the groups without a closed form read, by their output, each under a name of its own."""
        values: dict[int, Any] = {index: x.detach() for index, step in enumerate(self.graph.steps) if step.kind == "image"}
        read: dict[int, Tensor] = {}
        for layer in self.layers:
            inputs = [values[source] for source in layer.inputs]
            if isinstance(layer, Mix) and any(segment.group in self.open for segment in self.graph.steps[layer.inputs[0]].segments):
                inputs = [inputs[0].view_as(inputs[0])]
                read[layer.output] = inputs[0]
            value = layer.value(inputs)
            if isinstance(layer, Mix) and not value.requires_grad:
                value.requires_grad_()  # the gradient starts here: neither image nor weights need one
            values[layer.output] = value
        return values, read

    def _saved(self, bends: Sequence[Bend], gradients: Sequence[Tensor], values: dict[int, Any]) -> dict[int, Saved]:
        saved = {bend.output: self._bend(bend, values[bend.inputs[0]], r) for bend, r in zip(bends, gradients, strict=True)}
        for segment in self.segments.values():
            saved |= {
                layer.output: (values[layer.inputs[0]],) if isinstance(layer, Weightless) else ()
                for layer in segment.layers
                if not isinstance(layer, Bend)
            }
        return saved

    def _bend(self, layer: Bend, y: Tensor, gradient: Tensor) -> Saved:
        """g * phi'' and, where something behind it bends too, phi'."""
        slope, bend = layer.pointwise.slope_and_bend(y, self.curvature)
        bend.mul_(gradient)
        return (bend,) if layer.last else (bend, slope)
