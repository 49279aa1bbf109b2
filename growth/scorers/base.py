"""What a scorer returns, and the fresh-sample check that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from growth.groups import ChannelGraph
from growth.pointwise import Curvature
from growth.splitting import Batch, Loss, SplittingProduct


@dataclass(frozen=True, slots=True)
class GroupScore:
    """Scores of the C channels of one group.  A negative index predicts a gain.

    Splitting channel k into theta_k +- eps * direction_k changes the loss by eps^2 / 2 * index_k.  The index of the scoring sample is
    optimistic (its direction was fitted there); ``fresh_index`` is the Rayleigh quotient of the same direction on other batches, with
    its standard error over them.  Without fresh batches both are NaN.
    """

    index: Tensor  # [C]
    direction: Tensor  # [C, d], unit rows
    residual: Tensor  # [C], ||S v - index v||; NaN where no product was made
    parent_norm: Tensor  # [C], ||theta_k||
    fresh_index: Tensor  # [C]
    fresh_error: Tensor  # [C]

    @property
    def relative_index(self) -> Tensor:
        """For a step in units of the parent's norm: comparable between layers, and unchanged when a normalised layer is rescaled."""
        return self.index * self.parent_norm**2

    @property
    def relative_fresh(self) -> Tensor:
        return self.fresh_index * self.parent_norm**2

    @property
    def relative_fresh_error(self) -> Tensor:
        return self.fresh_error * self.parent_norm**2


class Scorer(Protocol):
    """Scores every channel of every group.  ``generator`` draws whatever is left to chance."""

    def __call__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        batches: Sequence[Batch],
        fresh_batches: Sequence[Batch],
        loss: Loss,
        generator: torch.Generator,
    ) -> list[GroupScore]: ...


def parents(model: nn.Module, graph: ChannelGraph) -> list[Tensor]:
    """theta, one [C, d] per group."""
    return [
        torch.cat([model.get_parameter(f"{producer}.weight").detach().flatten(1) for producer in group.producers], 1)
        for group in graph.groups
    ]


def check_fresh(fresh_batches: Sequence[Batch]) -> None:
    """ValueError where a standard error can't be had; called first, so that no scoring is wasted."""
    if len(fresh_batches) == 1:
        raise ValueError("1 fresh batch gives no standard error; give none, or at least 2")


def fresh_quotients(
    model: nn.Module, graph: ChannelGraph, batches: Sequence[Batch], loss: Loss, curvature: Curvature, directions: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Rayleigh quotients of unit ``directions`` and their standard errors over ``batches``, per group; batches count by their samples."""
    if not batches:
        return [(torch.full_like(v[:, 0], torch.nan), torch.full_like(v[:, 0], torch.nan)) for v in directions]
    product = SplittingProduct(model, graph, batches, loss, curvature, keep_bytes=0)  # each batch is used once
    images = [product.on_batch(number, directions) for number in range(len(batches))]
    weights = torch.tensor([len(x) for x, _ in batches], dtype=torch.float64)
    return [
        _mean_and_error(torch.stack([(image[group] * v).sum(1) for image in images]), weights / weights.sum())
        for group, v in enumerate(directions)
    ]


def _mean_and_error(quotients: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean over the first axis, and its standard error."""
    column = weights.to(quotients).unsqueeze(1)  # [B, 1]
    mean = (column * quotients).sum(0)
    count = len(quotients)
    return mean, ((column * (quotients - mean)).square().sum(0) * count / (count - 1)).sqrt()
