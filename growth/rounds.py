"""What a growth round may use: images to score on, fresh ones to judge by, and its share of the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from costs.model import Budget
from costs.shapes import Wiring
from growth import distributed
from growth.config import GrowthConfig
from growth.training import Batch, Samples, batches, fetch, seeded, size

FRESH_BATCHES = 8  # fewer would leave the standard error itself too uncertain


def check_samples(images: int, config: GrowthConfig) -> None:
    """ValueError if there are too few training images to score on."""
    needed = config.scoring_samples + 2 * config.fresh_samples
    if config.rounds and needed > images:
        raise ValueError(
            f"scoring_samples + 2 * fresh_samples is {needed}, more than the {images} training images; "
            "lower them: directions, ranking and prediction need different images"
        )
    if images < 2:
        raise ValueError(f"there are {images} training images; give at least 2")


def scoring_batches(data: Samples, config: GrowthConfig, number: int) -> list[Batch]:
    """Batches of training images to find directions on; another draw in every round.  One is as large as a process's in training."""
    return list(batches(data, _order(data, config, number)[: config.scoring_samples], distributed.per_rank(config.batch_size)))


def fresh_batches(data: Samples, config: GrowthConfig, number: int, draw: int) -> list[Batch]:
    """Draw ``draw`` (0, 1, ...) of training images that nothing in this round has seen, in several batches, for an error."""
    sizes = draw_sizes(size(data), config)
    start, images = config.scoring_samples + sum(sizes[:draw]), sizes[draw]
    count = max(min(FRESH_BATCHES, images), math.ceil(images / distributed.per_rank(config.batch_size)))
    return [fetch(data, part) for part in torch.tensor_split(_order(data, config, number)[start : start + images], count)]


def draw_sizes(images: int, config: GrowthConfig) -> list[int]:
    """How many images each draw has: each but the first as many as all before it, while they last.

    What is left at the end is a draw of its own if it has at least half of the first one's images.
    """
    left = min(images - config.scoring_samples, config.max_fresh_samples)
    sizes = [config.fresh_samples]
    while (more := min(sum(sizes), left - sum(sizes))) >= max(2, config.fresh_samples // 2):
        sizes.append(more)
    return sizes


def shares(seed: Wiring, budgets: Sequence[Budget], number: int, count: int) -> list[Budget]:
    """What the first ``number`` of ``count`` parts of growing may cost: equal factors from the seed's cost to each limit."""
    return [
        replace(budget, limit=_share(budget.cost_model.network(seed.shapes()).value, budget.limit, number, count)) for budget in budgets
    ]


def _share(start: float, limit: float, number: int, count: int) -> float:
    return limit if number == count else start * math.pow(limit / start, number / count)


def _order(data: Samples, config: GrowthConfig, number: int) -> Tensor:
    """All training images in the order in which a round draws them."""
    return torch.randperm(size(data), generator=seeded(config.seed, "scoring images", number))
