"""How a round chooses: images that judge have not ranked, more of them while the gain may be chance, and a plain answer when they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from costs.families import Network
from costs.model import Macs
from growth.config import GrowthConfig
from growth.reliability import FreshSample
from growth.rounds import Choice, Room, check_samples, choose, draw_sizes, fresh_batches, ranked, scoring_batches, take
from growth.scorers import GroupScore

STEP = 0.3
WIRING = Network("plain", (4, 4), 8, 1, 3).wiring()
SEED_MACS = Macs().network(WIRING.shapes()).value
ROOM = Room(WIRING, Macs(), 2 * SEED_MACS, (16, 16))
FITTED = [np.array([-4.0, -3.0, -2.0, -1.0]), np.array([-2.0, -2.5, -1.5, -0.5])]


def scores(indices: list[np.ndarray] = FITTED, norms: float = 1.0) -> list[GroupScore]:
    """Scores with these relative indices."""
    return [
        GroupScore(torch.from_numpy(index) / norms**2, torch.eye(4, 9).double(), torch.zeros(4), torch.full((4,), norms))
        for index in indices
    ]


def sample(means: list[np.ndarray], spread: float, seed: int, images: int = 64) -> FreshSample:
    """8 batches whose indices scatter around these means by ``spread``."""
    rng = np.random.default_rng(seed)
    batches = [(torch.zeros(images // 8, 1), torch.zeros(images // 8)) for _ in range(8)]
    return FreshSample(batches, [mean + spread * rng.standard_normal((8, len(mean))) for mean in means])


def drawing(means: list[np.ndarray], spread: float, seed: int) -> tuple[Callable[[int], FreshSample], list[int]]:
    """A draw that doubles, and the numbers of the draws that were asked for."""
    asked: list[int] = []

    def draw(number: int) -> FreshSample:
        asked.append(number)
        return sample(means, spread / 2 ** (max(number - 1, 0) / 2), 1000 * seed + number, 64 * 2 ** max(number - 1, 0))

    return draw, asked


def decide(means: list[np.ndarray], spread: float, seed: int = 0, draws: int = 4) -> tuple[Choice, list[int]]:
    draw, asked = drawing(means, spread, seed)
    return choose(scores(), 64, draw, draws, ROOM, STEP), asked


def test_a_clear_gain_is_split_at_the_first_judgement() -> None:
    choice, asked = decide(FITTED, 0.1)
    assert choice.outcome == "split"
    assert asked == [0, 1]
    assert sum(choice.split_counts) == sum(len(split.channels) for split in choice.splits) > 0
    assert choice.reason == f"split {sum(choice.split_counts)} of 8 channels"
    assert (choice.judging.images, choice.fresh.images) == (64, 128)


def test_noise_is_seldom_split_and_clear_gains_always() -> None:
    """Means of zero: the ranking finds winners all the same, and other images see through them."""
    nothing = [np.zeros(4), np.zeros(4)]
    outcomes = [decide(nothing, 1.0, seed)[0].outcome for seed in range(80)]
    assert outcomes.count("split") / len(outcomes) < 0.15  # three looks at 2 errors with 7 degrees of freedom: 4 % each
    assert outcomes.count("no_reliable_gain") / len(outcomes) > 0.75
    assert {decide(FITTED, 1.0, seed)[0].outcome for seed in range(20)} == {"split"}


def test_a_doubtful_gain_is_judged_with_more_images_until_it_is_sure() -> None:
    looks = [len(decide([0.1 * mean for mean in FITTED], 1.5, seed, draws=9)[1]) - 1 for seed in range(30)]
    assert max(looks) > min(looks) == 1
    assert {decide([0.1 * mean for mean in FITTED], 1.5, seed, draws=12)[0].outcome for seed in range(30)} == {"split"}


def test_judging_images_have_not_ranked() -> None:
    """Each judgement is of the last draw alone, and of the channels that all draws before it rank best."""
    means = [np.full(4, 0.02), np.full(4, 0.02)]
    choice, asked = decide(means, 1.0, seed=5, draws=3)
    draw, _ = drawing(means, 1.0, 5)
    assert choice.outcome == "no_reliable_gain"
    assert asked == [0, 1, 2]
    first, second, last = map(draw, range(3))
    gains = ranked(scores(), 64, first.joined(second), STEP)
    assert all(np.array_equal(one, other) for one, other in zip(choice.gains, gains, strict=True))
    assert choice.predicted == last.prediction(choice.selected, STEP)
    assert (choice.judging.images, choice.fresh.images) == (128, 256)
    change, error = choice.predicted.change, choice.predicted.error
    assert choice.reason == f"no reliable gain: predicted {change:+.4g} ± {error:.2g} nats on 128 fresh images"
    assert (list(choice.splits), choice.split_counts) == ([], (0, 0))
    assert choice.selected


@given(seed=st.integers(0, 10_000), spread=st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_a_channel_that_loses_on_fresh_images_is_never_selected(seed: int, spread: float) -> None:
    draw, _ = drawing([np.zeros(4), np.zeros(4)], spread, seed)
    choice = choose(scores(), 64, draw, 2, ROOM, STEP)
    indices = draw(0).fresh_indices()
    for split in choice.selected:
        assert (indices[split.group].relative_index[split.channels.numpy()] < 0).all()


def test_ranks_weigh_scoring_and_fresh_images_alike() -> None:
    fresh = sample([np.array([-1.0, -4.0, 1.0, -2.0]), np.ones(4)], 0.0, 0, images=128)
    gains = ranked(scores(), 64, fresh, STEP)
    assert gains[0] == pytest.approx(STEP**2 / 2 * np.array([(2 * 1 + 4) / 3, (2 * 4 + 3) / 3, 0, (2 * 2 + 1) / 3]))
    assert gains[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("norms", [1e-3, 1e3])
def test_a_rescaled_layer_changes_no_rank_and_no_selection(norms: float) -> None:
    """Indices times 1/c^2, norms times c: relative indices, and so everything behind them, stay."""
    draw, _ = drawing(FITTED, 1.0, 3)
    plain, scaled = (choose(scores(norms=norm), 64, draw, 3, ROOM, STEP) for norm in (1.0, norms))
    assert (scaled.outcome, scaled.split_counts) == (plain.outcome, plain.split_counts)
    assert scaled.predicted == plain.predicted
    for one, other in zip(plain.selected, scaled.selected, strict=True):
        assert torch.equal(one.channels, other.channels)


def test_reasons_to_split_nothing() -> None:
    good, bad = sample(FITTED, 0.0, 0), sample([np.ones(4), np.ones(4)], 0.0, 0)
    cases: list[tuple[FreshSample, Room, str, str]] = [
        (bad, ROOM, "no_gain", "no channel has a negative index"),
        (good, replace(ROOM, limit=SEED_MACS), "budget", f"no split fits the round's limit of {SEED_MACS:.6g} MACs"),
        (good, replace(ROOM, largest=(4, 4)), "widest", "every group with a negative index is as wide as max_growth allows"),
    ]
    for fresh, room, outcome, reason in cases:
        asked: list[int] = []

        def draw(number: int, fresh: FreshSample = fresh, asked: list[int] = asked) -> FreshSample:
            asked.append(number)
            return fresh

        choice = choose(scores(), 64, draw, 4, room, STEP)
        assert (choice.outcome, choice.reason) == (outcome, reason)
        assert (choice.predicted.change, choice.split_counts, asked) == (0, (0, 0), [0])


def test_a_ranking_that_claims_nothing_is_taken_as_it_is() -> None:
    against = sample([np.ones(4), np.ones(4)], 0.0, 0)
    choice = take(scores(), against, ROOM, STEP)
    assert choice.outcome == "split"
    assert choice.predicted.change == pytest.approx(STEP**2 / 2 * sum(choice.split_counts))
    assert choice.gains[0] == pytest.approx(-(STEP**2) / 2 * FITTED[0])


@given(images=st.integers(10, 3000), scoring=st.integers(2, 600), fresh=st.integers(2, 300), most=st.integers(4, 2000))
def test_draws_double_and_stay_within_what_there_is(images: int, scoring: int, fresh: int, most: int) -> None:
    if most < 2 * fresh or images < scoring + 2 * fresh:
        return
    config = GrowthConfig(limit=1, scoring_samples=scoring, fresh_samples=fresh, max_fresh_samples=most)
    check_samples(images, config)
    sizes = draw_sizes(images, config)
    assert sizes[:2] == [fresh, fresh]
    assert sum(sizes) <= min(most, images - scoring)
    assert all(size == sum(sizes[:number]) for number, size in enumerate(sizes[1:-1], 1))
    assert max(2, fresh // 2) <= sizes[-1] <= sum(sizes[:-1])
    unused = min(most, images - scoring) - sum(sizes)
    assert unused < max(2, fresh // 2)


@given(images=st.integers(40, 300), fresh=st.integers(2, 40), seed=st.integers(0, 9), number=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_all_draws_of_a_round_are_disjoint_and_leave_the_scoring_images_alone(images: int, fresh: int, seed: int, number: int) -> None:
    data = TensorDataset(torch.arange(images).float().view(-1, 1), torch.zeros(images, dtype=torch.long))
    config = GrowthConfig(limit=1, scoring_samples=20, fresh_samples=min(fresh, (images - 20) // 2), batch_size=16, seed=seed)

    def seen(batches: Any) -> list[float]:
        return [float(value) for inputs, _ in batches for value in inputs]

    sizes = draw_sizes(images, config)
    draws = [fresh_batches(data, config, number, draw) for draw in range(len(sizes))]
    used = [*seen(scoring_batches(data, config, number)), *(value for batches in draws for value in seen(batches))]
    assert len(set(used)) == len(used) == 20 + sum(sizes)
    for size, batches in zip(sizes, draws, strict=True):
        counts = [len(classes) for _, classes in batches]
        assert sum(counts) == size
        assert max(counts) <= config.batch_size
        assert len(counts) >= min(size, 8)  # enough for a standard error
        assert max(counts) - min(counts) <= 1
    assert seen(scoring_batches(data, config, number + 1)) != seen(scoring_batches(data, config, number))


@pytest.mark.parametrize(("images", "message"), [(63, "is 64, more than the 63 training images; lower them"), (1, "there are 1 training")])
def test_too_few_images_are_refused(images: int, message: str) -> None:
    config = GrowthConfig(limit=1, scoring_samples=32, fresh_samples=16, rounds=3 if images > 1 else 0)
    with pytest.raises(ValueError, match=message):
        check_samples(images, config)
