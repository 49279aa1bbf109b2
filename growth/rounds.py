"""The parts of one growth round: its images, its share of the budget, the splits it chooses, and whether their gain is reliable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from costs.model import Cost, CostModel
from costs.shapes import Wiring
from growth.config import GrowthConfig
from growth.events import Outcome, Proposal
from growth.reliability import FreshSample, Prediction
from growth.scorers import GroupScore
from growth.selection import Selection, best_channels, select
from growth.surgery import Split
from growth.training import Batch, Samples, batches, fetch, seeded, size

Floats = NDArray[np.float64]

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
    """Batches of training images to find directions on; another draw in every round."""
    return list(batches(data, _order(data, config, number)[: config.scoring_samples], config.batch_size))


def fresh_batches(data: Samples, config: GrowthConfig, number: int, draw: int) -> list[Batch]:
    """Draw ``draw`` (0, 1, ...) of training images that nothing in this round has seen, in several batches, for an error."""
    sizes = draw_sizes(size(data), config)
    start, images = config.scoring_samples + sum(sizes[:draw]), sizes[draw]
    count = max(min(FRESH_BATCHES, images), math.ceil(images / config.batch_size))
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


def scoring_macs(macs: int, products: int, scoring_images: int, fresh_images: int) -> int:
    """Compute charged for a round's scores: per image 3 times the network's MACs to prepare, and twice per product S v.

    ``products`` are made with each of the scoring images, one with each fresh image.  An upper bound: all are charged for all groups.
    """
    scoring = (3 + 2 * products) * scoring_images if products else 0
    return macs * (scoring + (3 + 2) * fresh_images)


def round_limit(seed_cost: float, config: GrowthConfig, number: int) -> float:
    """The cost allowed in round ``number``: equal factors from the seed's cost to the limit."""
    if number == config.rounds:
        return config.limit
    return seed_cost * math.pow(config.limit / seed_cost, number / config.rounds)


@dataclass(frozen=True, slots=True)
class Room:
    """How far a round may grow: what it may cost, and the ``largest`` width of each group."""

    wiring: Wiring
    cost_model: CostModel
    limit: float
    largest: Sequence[int]

    def select(self, gains: Sequence[Floats]) -> Selection:
        """The channels of largest total gain that fit."""
        return select(gains, self.wiring, self.cost_model, self.limit, self.largest)

    def obstacle(self, gains: Sequence[Floats]) -> tuple[Outcome, str]:
        """Why nothing fits, though something gains."""
        for gain, width, most in zip(gains, self.wiring.widths, self.largest, strict=True):
            if (gain > 0).any() and width < most:
                return "budget", f"no split fits the round's limit of {self.limit:.6g} {self.cost_model.unit}"
        return "widest", "every group with a negative index is as wide as max_growth allows"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a round does and why.  ``predicted`` is the change by the ``selected`` splits; they are made only if ``outcome`` is "split"."""

    outcome: Outcome
    reason: str
    gains: Sequence[Floats]  # by which channels were ranked
    gap: float
    selected: Sequence[Split]
    predicted: Prediction
    judging: FreshSample  # what ``predicted`` was measured on
    fresh: FreshSample  # all fresh images that were used

    @property
    def splits(self) -> Sequence[Split]:
        return self.selected if self.outcome == "split" else ()

    @property
    def split_counts(self) -> tuple[int, ...]:
        """Channels split per group."""
        counts = {split.group: len(split.channels) for split in self.splits}
        return tuple(counts.get(group, 0) for group in range(len(self.gains)))

    def proposal(self, number: int, room: Room, cost_before: Cost, loss_before: float) -> Proposal:
        """The choice as round ``number`` reports it, before anything is split."""
        return Proposal(
            number=number,
            widths_before=room.wiring.widths,
            split_counts=self.split_counts,
            cost_before=cost_before,
            limit=room.limit,
            predicted_change=self.predicted.change,
            predicted_error=self.predicted.error,
            change_at_split=None,
            loss_before=loss_before,
            channels_scored=sum(map(len, self.gains)),
            channels_negative=sum(int((gain > 0).sum()) for gain in self.gains),
            channels_reliable=sum(int(fresh.reliable.sum()) for fresh in self.fresh.fresh_indices()),
            fresh_images=self.fresh.images,
            gap=self.gap,
            outcome=self.outcome,
            reason=self.reason,
        )


def choose(
    scores: Sequence[GroupScore], scoring_images: int, draw: Callable[[int], FreshSample], draws: int, room: Room, split_step: float
) -> Choice:
    """Rank all channels with fresh images, select, judge the selected on others; with more images while their gain is not reliable.

    The best of a ranking look better on its images than they are, so images that ranked never judge.  A sample whose judgement is not
    reliable joins the ranking, and the next one judges a new selection.  When the last of ``draws`` has judged so, nothing is split.
    """
    ranking = draw(0)
    for number in range(1, draws):
        gains = ranked(scores, scoring_images, ranking, split_step)
        selection = room.select(gains)
        if not any(selection.counts):
            return _nothing(gains, selection, room, ranking)
        judging = draw(number)
        choice = _judged(scores, gains, selection, judging, ranking.joined(judging), split_step)
        if choice.predicted.reliable:
            return choice
        ranking = choice.fresh
    return replace(choice, outcome="no_reliable_gain", reason=_doubt(choice))


def ranked(scores: Sequence[GroupScore], scoring_images: int, ranking: FreshSample, split_step: float) -> list[Floats]:
    """Gain of splitting each channel, to rank by; none where the index on the fresh images alone is not negative.

    -1/2 step^2 times the mean relative index over scoring and fresh images.  The scoring images, to which directions were fitted, make
    all gains too large but tell good channels from bad: with both, the best channels chosen are better than by either alone
    (docs/decisions/003).
    """
    fresh_part = ranking.images / (ranking.images + scoring_images)
    return [
        np.where(fresh.relative_index < 0, -0.5 * split_step**2 * (fresh_part * fresh.relative_index + (1 - fresh_part) * fitted), 0.0)
        for fresh, fitted in zip(ranking.fresh_indices(), _fitted(scores), strict=True)
    ]


def take(scores: Sequence[GroupScore], judging: FreshSample, room: Room, split_step: float) -> Choice:
    """What a ranking that claims no gain likes best, whatever fresh images say about it."""
    gains = [-0.5 * split_step**2 * index for index in _fitted(scores)]
    selection = room.select(gains)
    if not any(selection.counts):
        return _nothing(gains, selection, room, judging)
    return _judged(scores, gains, selection, judging, judging, split_step)


def splits(scores: Sequence[GroupScore], gains: Sequence[Floats], selection: Selection) -> list[Split]:
    """The selected number of each group's best channels, with their directions."""
    chosen = []
    for group, (score, values, count) in enumerate(zip(scores, gains, selection.counts, strict=True)):
        if count:
            channels = torch.from_numpy(best_channels(values, count).copy())
            chosen.append(Split(group, channels, score.direction[channels]))
    return chosen


def _fitted(scores: Sequence[GroupScore]) -> list[Floats]:
    """The scorer's own relative indices."""
    return [score.relative_index.detach().to("cpu", torch.float64).numpy() for score in scores]


def _judged(
    scores: Sequence[GroupScore], gains: Sequence[Floats], selection: Selection, judging: FreshSample, fresh: FreshSample, split_step: float
) -> Choice:
    """The selected splits with what other images say about them."""
    selected = splits(scores, gains, selection)
    reason = f"split {sum(selection.counts)} of {sum(map(len, gains))} channels"
    return Choice("split", reason, gains, selection.gap, selected, judging.prediction(selected, split_step), judging, fresh)


def _doubt(choice: Choice) -> str:
    change, error = choice.predicted.change, choice.predicted.error
    return f"no reliable gain: predicted {change:+.4g} ± {error:.2g} nats on {choice.judging.images} fresh images"


def _nothing(gains: Sequence[Floats], selection: Selection, room: Room, fresh: FreshSample) -> Choice:
    """No split, and why."""
    if any((gain > 0).any() for gain in gains):
        outcome, reason = room.obstacle(gains)
    else:
        outcome, reason = "no_gain", "no channel has a negative index"
    return Choice(outcome, reason, gains, selection.gap, [], Prediction(0.0, 0.0), fresh, fresh)


def _order(data: Samples, config: GrowthConfig, number: int) -> Tensor:
    """All training images in the order in which a round draws them."""
    return torch.randperm(size(data), generator=seeded(config.seed, "scoring images", number))
