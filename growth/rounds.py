"""The parts of one growth round: its samples, its share of the budget, the splits it chooses, the change it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from costs.shapes import Wiring
from growth.config import GrowthConfig
from growth.groups import ChannelGraph
from growth.pointwise import SOFTPLUS, Curvature
from growth.scorers import GroupScore
from growth.scorers.base import parents
from growth.selection import Selection, best_channels
from growth.solvers import EXACT_BELOW, RayleighSettings
from growth.splitting import SplittingProduct
from growth.surgery import Split
from growth.training import Batch, Samples, batches, seeded, size

Floats = NDArray[np.float64]

FRESH_BATCHES = 8  # fewer would leave the standard error itself too uncertain
# How many products with the scoring images a scorer makes, at most, for channels of this many weights.
PRODUCTS: dict[str, Callable[[int], int]] = {
    "splitting": lambda fan_in: min(fan_in, EXACT_BELOW),
    "rayleigh": lambda _: RayleighSettings().epochs + 1,
    "exact": lambda fan_in: fan_in,
    "random": lambda _: 0,
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted change of the loss (nats) and its standard error."""

    change: float
    error: float


def check_samples(images: int, config: GrowthConfig) -> None:
    """ValueError if there are too few training images to score on."""
    needed = config.scoring_samples + config.fresh_samples
    if config.rounds and needed > images:
        raise ValueError(
            f"scoring_samples + fresh_samples is {needed}, more than the {images} training images; "
            "lower them: directions and predictions need different images"
        )
    if images < 2:
        raise ValueError(f"there are {images} training images; give at least 2")


def scoring_batches(data: Samples, config: GrowthConfig, number: int) -> tuple[list[Batch], list[Batch]]:
    """Batches of training images to score on, and of others to predict on (several, for an error); another draw in every round."""
    order = torch.randperm(size(data), generator=seeded(config.seed, "scoring images", number))
    scoring = order[: config.scoring_samples]
    fresh = order[config.scoring_samples : config.scoring_samples + config.fresh_samples]
    fresh_size = min(config.batch_size, max(1, config.fresh_samples // FRESH_BATCHES))
    return list(batches(data, scoring, config.batch_size)), list(batches(data, fresh, fresh_size))


def scoring_macs(macs: int, fan_ins: Sequence[int], config: GrowthConfig) -> int:
    """Compute charged for a round's scores and prediction: per image 3 times the network's MACs to prepare, and twice per product.

    An upper bound: every product is charged for all groups.  ``fan_ins`` has the number of weights of one channel, per group.
    """
    products = max(PRODUCTS[config.scorer](fan_in) for fan_in in fan_ins)
    scoring = (3 + 2 * products) * config.scoring_samples if products else 0
    return macs * (scoring + (3 + 2) * config.fresh_samples)


def round_limit(seed_cost: float, config: GrowthConfig, number: int) -> float:
    """The cost allowed in round ``number``: equal factors from the seed's cost to the limit."""
    if number == config.rounds:
        return config.limit
    return seed_cost * math.pow(config.limit / seed_cost, number / config.rounds)


def gains(scores: Sequence[GroupScore], split_step: float) -> list[Floats]:
    """Gain of splitting each channel, to rank by: -1/2 step^2 times the relative index on the scoring images.

    The sign and the order are what counts; the size is too good, since the directions were fitted to those images.
    """
    return [-0.5 * split_step**2 * _numbers(score.relative_index) for score in scores]


def splits(scores: Sequence[GroupScore], gain: Sequence[Floats], selection: Selection) -> list[Split]:
    """The selected number of each group's best channels, with their directions."""
    chosen = []
    for group, (score, values, count) in enumerate(zip(scores, gain, selection.counts, strict=True)):
        if count:
            channels = torch.from_numpy(best_channels(values, count).copy())
            chosen.append(Split(group, channels, score.direction[channels]))
    return chosen


def prediction(
    model: nn.Module,
    graph: ChannelGraph,
    chosen: Sequence[Split],
    fresh: Sequence[Batch],
    split_step: float,
    curvature: Curvature = SOFTPLUS,
) -> Prediction:
    """1/2 step^2 times the sum of the chosen channels' relative indices on fresh images; its error from the scatter over batches."""
    if not chosen:
        return Prediction(0.0, 0.0)
    thetas = parents(model, graph)
    moves = [torch.zeros_like(theta) for theta in thetas]
    for split in chosen:
        norms = thetas[split.group][split.channels].norm(dim=1, keepdim=True)
        moves[split.group][split.channels] = split_step * norms * split.directions
    product = SplittingProduct(model, graph, fresh, cross_entropy, curvature, keep_bytes=0)  # each batch is used once
    changes = np.array([
        sum(0.5 * float((move.double() * image).sum()) for move, image in zip(moves, product.on_batch(number, moves), strict=True))
        for number in range(len(fresh))
    ])  # fmt: skip
    sizes = np.array([len(classes) for _, classes in fresh])
    weights = sizes / sizes.sum()
    mean, count = float(weights @ changes), len(fresh)
    return Prediction(mean, math.sqrt(float(((weights * (changes - mean)) ** 2).sum()) * count / (count - 1)))


def reason(gain: Sequence[Floats], selection: Selection, wiring: Wiring, largest: Sequence[int], limit: float) -> str:
    """What the selection did, or why it did nothing, as a sentence."""
    scored = sum(map(len, gain))
    useful = [bool((values > 0).any()) for values in gain]
    if split := sum(selection.counts):
        return f"split {split} of {scored} channels"
    if not any(useful):
        return "split nothing: no channel has a negative index"
    if not any(may and width < most for may, width, most in zip(useful, wiring.widths, largest, strict=True)):
        return "split nothing: every group with a negative index is as wide as max_growth allows"
    return f"split nothing: no split fits the round's limit of {limit:.6g} {selection.cost.unit}"


def _numbers(values: Tensor) -> Floats:
    return values.detach().to("cpu", torch.float64).numpy()
