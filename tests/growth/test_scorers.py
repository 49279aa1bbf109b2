"""Every scorer keeps the contract; fresh quotients are what they say; relative indices don't see a rescaled normalised layer."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from growth.groups import ChannelGraph, find_groups
from growth.scorers import SCORERS, GroupScore
from growth.splitting import Batch, SplittingProduct

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, eps=0), nn.SiLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4, eps=0), nn.SiLU(),
        nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2),
    ).double()  # fmt: skip
    for norm in (model[1], model[4], model[7]):
        cast(Tensor, norm.running_var).uniform_(0.5, 2)
        cast(Tensor, norm.running_mean).uniform_(-0.5, 0.5)
    return model


def batch(samples: int, seed: int) -> Batch:
    return torch.randn(samples, 1, 6, 6, generator=seeded(seed)).double(), torch.randint(2, (samples,), generator=seeded(seed))


def traced() -> tuple[nn.Sequential, ChannelGraph, list[Batch], list[Batch]]:
    model = network()
    return model, find_groups(model, batch(1, 0)[0]), [batch(6, 0), batch(6, 1)], [batch(4, 2), batch(4, 3), batch(2, 4)]


def score(name: str, seed: int = 0) -> list[GroupScore]:
    model, graph, batches, fresh = traced()
    return SCORERS[name](model, graph, batches, fresh, functional.cross_entropy, seeded(seed))


@pytest.mark.parametrize("name", SCORERS)
def test_contract(name: str) -> None:
    model, graph, _, fresh = traced()
    scores, again = score(name), score(name)
    assert len(scores) == len(graph.groups)
    product = SplittingProduct(model, graph, fresh, functional.cross_entropy)
    images = product([s.direction for s in scores])
    for group, (s, same, image) in enumerate(zip(scores, again, images, strict=True)):
        channels, d = product.shapes[group]
        for vector in (s.index, s.residual, s.parent_norm, s.fresh_index, s.fresh_error, s.relative_index):
            assert vector.shape == (channels,)
        assert s.direction.shape == (channels, d)
        torch.testing.assert_close(s.direction.norm(dim=1), torch.ones(channels, dtype=torch.float64))
        torch.testing.assert_close(s.fresh_index, (image * s.direction).sum(1), rtol=1e-9, atol=1e-12)
        assert (s.fresh_error > 0).all()
        weights = model[0 if group == 0 else 6].weight
        torch.testing.assert_close(s.parent_norm, cast(Tensor, weights).detach().flatten(1).norm(dim=1))
        assert torch.equal(s.index, same.index)


def test_standard_error_over_unequal_batches() -> None:
    model, graph, _, fresh = traced()
    (s, _) = score("exact")
    product = SplittingProduct(model, graph, fresh, functional.cross_entropy)
    zero = torch.zeros(3, 4, dtype=torch.float64)
    quotients = torch.stack([(product.on_batch(i, [s.direction, zero])[0] * s.direction).sum(1) for i in range(3)])
    weights = torch.tensor([0.4, 0.4, 0.2]).double().unsqueeze(1)
    mean = (weights * quotients).sum(0)
    torch.testing.assert_close(s.fresh_error, ((weights**2 * (quotients - mean) ** 2).sum(0) * 3 / 2).sqrt())


def test_splitting_matches_exact_where_the_space_is_small() -> None:
    exact, lanczos = score("exact"), score("splitting")
    torch.testing.assert_close(lanczos[1].index, exact[1].index)  # d = 4
    assert (lanczos[0].index >= exact[0].index - 1e-12).all()  # d = 9, five steps


def test_no_direction_beats_the_exact_one_on_its_own_sample() -> None:
    model, graph, batches, _ = traced()
    exact, chance = (SCORERS[name](model, graph, batches, batches, functional.cross_entropy, seeded()) for name in ("exact", "random"))
    for s, t in zip(exact, chance, strict=True):
        torch.testing.assert_close(s.fresh_index, s.index)
        assert (t.fresh_index >= s.index).all()


def test_random_is_random() -> None:
    one, other = score("random", 0), score("random", 1)
    for s, t in zip(one, other, strict=True):
        assert (s.index < 0).all()
        assert s.residual.isnan().all()
        assert not torch.equal(s.index, t.index)
        assert not torch.equal(s.direction, t.direction)


@pytest.mark.parametrize("name", SCORERS)
def test_fresh_batches(name: str) -> None:
    model, graph, batches, fresh = traced()
    scores = SCORERS[name](model, graph, batches, [], functional.cross_entropy, seeded())
    assert all(s.fresh_index.isnan().all() and s.relative_fresh.isnan().all() and s.relative_fresh_error.isnan().all() for s in scores)
    with pytest.raises(ValueError, match="at least 2"):
        SCORERS[name](model, graph, batches, fresh[:1], functional.cross_entropy, seeded())


@given(scales=st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
@settings(max_examples=15, deadline=None)
def test_relative_index_does_not_see_a_rescaled_normalised_layer(scales: list[float]) -> None:
    """A convolution's rows times c, its norm's statistics with them: the same function, so the same relative gain."""
    model, graph, batches, fresh = traced()
    before = SCORERS["exact"](model, graph, batches, fresh, functional.cross_entropy, seeded())
    c = torch.tensor(scales, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(c.view(-1, 1, 1, 1))
        cast(Tensor, model[1].running_mean).mul_(c)
        cast(Tensor, model[1].running_var).mul_(c**2)
    after = SCORERS["exact"](model, graph, batches, fresh, functional.cross_entropy, seeded())
    for s, t in zip(before, after, strict=True):
        torch.testing.assert_close(t.relative_index, s.relative_index, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(t.relative_fresh, s.relative_fresh, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(t.relative_fresh_error, s.relative_fresh_error, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(after[0].index, before[0].index / c**2, rtol=1e-7, atol=0)
