"""Images of a round: draws that double, and none that is used twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from costs.families import Network
from costs.model import Budget, Macs, Parameters
from growth.config import GrowthConfig
from growth.rounds import check_samples, draw_sizes, fresh_batches, scoring_batches, shares


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


@given(factors=st.lists(st.floats(1, 9), min_size=2, max_size=2), count=st.integers(1, 6))
def test_every_budget_is_shared_out_in_equal_factors(factors: list[float], count: int) -> None:
    seed = Network("plain", (4, 6), 8, 1, 3).wiring()
    starts = [model.network(seed.shapes()).value for model in (Macs(), Parameters())]
    budgets = [Budget(model, start * factor) for model, start, factor in zip((Macs(), Parameters()), starts, factors, strict=True)]
    parts = [shares(seed, budgets, number, count) for number in range(count + 1)]
    assert parts[-1] == budgets
    for at, (start, factor) in enumerate(zip(starts, factors, strict=True)):
        assert [part[at].limit for part in parts] == pytest.approx([start * factor ** (number / count) for number in range(count + 1)])
