"""What splits are worth on fresh images: training images that no direction was fitted to.

One product S v per batch gives the relative index of every channel on that batch at once,

    q_kb = ||theta_k||^2 v_k^T S_kb v_k        and splitting a set K changes the loss by  step^2 / 2 * sum over K of q_kb,

so fresh indices of all channels cost what the prediction of one set would.  The scatter over batches gives every mean its standard
error.  A set that was chosen by some images looks too good on them, as directions do on theirs: judge it on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from growth.groups import ChannelGraph
from growth.pointwise import SOFTPLUS, Curvature
from growth.scorers import GroupScore
from growth.splitting import Batch, SplittingProduct
from growth.surgery import Split

Floats = NDArray[np.float64]

RELIABLE = 2.0  # standard errors that a gain must be away from zero: chance alone gets there in 2 to 4 of 100 judgements


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted change of the loss (nats) and its standard error."""

    change: float
    error: float

    @property
    def reliable(self) -> bool:
        """The loss falls, by more than chance explains."""
        return self.change + RELIABLE * self.error < 0


@dataclass(frozen=True, slots=True)
class FreshIndex:
    """For the C channels of one group: the relative index on fresh images, and its standard error.

    Unbiased, where the index of a ``GroupScore`` is optimistic: 1.3 to 5 times too large.
    """

    relative_index: Floats  # [C]
    error: Floats  # [C]

    @property
    def reliable(self) -> NDArray[np.bool_]:
        """[C], which channels gain on their own account by more than chance explains."""
        return self.relative_index + RELIABLE * self.error < 0


@dataclass(frozen=True, slots=True)
class FreshSample:
    """Fresh images in at least 2 batches, and what they say about every channel."""

    batches: Sequence[Batch]
    indices: Sequence[Floats]  # per group [batches, C], relative index on each batch

    @property
    def images(self) -> int:
        return int(self._sizes.sum())

    @property
    def _sizes(self) -> Floats:
        return np.array([len(classes) for _, classes in self.batches], dtype=np.float64)

    def joined(self, other: FreshSample) -> FreshSample:
        """Both samples as one."""
        indices = [np.concatenate(both) for both in zip(self.indices, other.indices, strict=True)]
        return FreshSample([*self.batches, *other.batches], indices)

    def fresh_indices(self) -> list[FreshIndex]:
        """The index of every channel with its error, per group."""
        return [FreshIndex(*mean_and_error(values, self._sizes)) for values in self.indices]

    def prediction(self, splits: Sequence[Split], split_step: float) -> Prediction:
        """Of these splits together.  Unbiased if these images chose neither channels nor directions."""
        if not splits:
            return Prediction(0.0, 0.0)
        chosen = np.concatenate([self.indices[split.group][:, split.channels.numpy()] for split in splits], axis=1)  # [batches, splits]
        change, error = mean_and_error(0.5 * split_step**2 * chosen.sum(axis=1), self._sizes)
        return Prediction(float(change), float(error))


def measure(
    model: nn.Module, graph: ChannelGraph, scores: Sequence[GroupScore], batches: Sequence[Batch], curvature: Curvature = SOFTPLUS
) -> FreshSample:
    """The relative index of every channel's direction on each of these batches."""
    product = SplittingProduct(model, graph, batches, cross_entropy, curvature, keep_bytes=0)  # each batch is used once
    directions = [score.direction for score in scores]
    found = [product.on_batch(number, directions) for number in range(len(batches))]
    indices = [
        np.stack([_relative(score, image) for image in images])  # [batches, C]
        for score, images in zip(scores, zip(*found, strict=True), strict=True)
    ]
    return FreshSample(batches, indices)


def mean_and_error(values: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Over batches (the first axis), weighted by their sizes: the mean, and its standard error from the scatter."""
    weights = (sizes / sizes.sum()).reshape(-1, *[1] * (values.ndim - 1))
    mean = (weights * values).sum(axis=0)
    variance = ((weights * (values - mean)) ** 2).sum(axis=0) * len(values) / (len(values) - 1)
    return mean, np.sqrt(variance)


def _relative(score: GroupScore, image: Tensor) -> Floats:
    quotient = (score.direction.double() * image.double()).sum(1) * score.parent_norm.double() ** 2  # [C]
    return quotient.detach().to("cpu", torch.float64).numpy()
