"""Every scorer keeps the contract; chance ranks by chance alone; relative indices don't see a rescaled normalised layer."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from growth.groups import ChannelGraph, find_groups
from growth.operators import OPERATORS, Evidence
from growth.pointwise import Softplus
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


def traced() -> tuple[nn.Sequential, ChannelGraph, list[Batch]]:
    model = network()
    return model, find_groups(model, batch(1, 0)[0]), [batch(6, 0), batch(6, 1)]


def score(name: str, seed: int = 0) -> list[GroupScore]:
    model, graph, batches = traced()
    return SCORERS[name](model, graph, batches, functional.cross_entropy, seeded(seed))


@pytest.mark.parametrize("name", SCORERS)
def test_contract(name: str) -> None:
    model, graph, batches = traced()
    scores, again = score(name), score(name)
    assert len(scores) == len(graph.groups)
    product = SplittingProduct(model, graph, batches, functional.cross_entropy)
    images = product([s.direction for s in scores])
    for group, (s, same, image) in enumerate(zip(scores, again, images, strict=True)):
        channels, d = product.shapes[group]
        for vector in (s.index, s.residual, s.parent_norm, s.relative_index):
            assert vector.shape == (channels,)
        assert s.direction.shape == (channels, d)
        torch.testing.assert_close(s.direction.norm(dim=1), torch.ones(channels, dtype=torch.float64))
        weights = model[0 if group == 0 else 6].weight
        torch.testing.assert_close(s.parent_norm, cast(Tensor, weights).detach().flatten(1).norm(dim=1))
        assert torch.equal(s.index, same.index)
        assert torch.equal(s.direction, same.direction)
        assert bool((~s.residual.isnan()).all()) is SCORERS[name].claims_gain
        if SCORERS[name].claims_gain:
            torch.testing.assert_close(s.residual, (image - s.index.unsqueeze(1) * s.direction).norm(dim=1), rtol=1e-6, atol=1e-12)


def test_splitting_matches_exact_where_the_space_is_small() -> None:
    exact, lanczos = score("exact"), score("splitting")
    torch.testing.assert_close(lanczos[1].index, exact[1].index)  # d = 4
    assert (lanczos[0].index >= exact[0].index - 1e-12).all()  # d = 9, five steps


@pytest.mark.parametrize("name", [name for name in SCORERS if name != "exact"])
def test_no_direction_beats_the_exact_one(name: str) -> None:
    model, graph, batches = traced()
    exact, other = score("exact"), score(name)
    images = SplittingProduct(model, graph, batches, functional.cross_entropy)([s.direction for s in other])
    for s, t, image in zip(exact, other, images, strict=True):
        assert ((image * t.direction).sum(1) >= s.index - 1e-12).all()


def test_random_is_random() -> None:
    one, other = score("random", 0), score("random", 1)
    for s, t in zip(one, other, strict=True):
        assert (s.index < 0).all()
        assert s.residual.isnan().all()
        assert not torch.equal(s.index, t.index)
        assert not torch.equal(s.direction, t.direction)


def test_random_ranks_by_chance_whatever_the_norms() -> None:
    """Selection ranks by relative index: the same numbers in [-1, 0) with one channel a thousand times larger than the others."""
    model, graph, batches = traced()
    before = SCORERS["random"](model, graph, batches, functional.cross_entropy, seeded())
    with torch.no_grad():
        model[0].weight[2].mul_(1000)
    after = SCORERS["random"](model, graph, batches, functional.cross_entropy, seeded())
    for s, t in zip(before, after, strict=True):
        torch.testing.assert_close(t.relative_index, s.relative_index)
        assert ((t.relative_index >= -1 - 1e-9) & (t.relative_index < 0)).all()


def test_random_gains_nothing_from_a_channel_of_zeros() -> None:
    model, graph, batches = traced()
    with torch.no_grad():
        model[0].weight[1].zero_()
    (first, _) = SCORERS["random"](model, graph, batches, functional.cross_entropy, seeded())
    assert first.relative_index[1] == 0
    assert (first.relative_index[[0, 2, 3]] < 0).all()


@given(scales=st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
@settings(max_examples=15, deadline=None)
def test_relative_index_does_not_see_a_rescaled_normalised_layer(scales: list[float]) -> None:
    """T18: a convolution's rows times c, its norm's statistics with them: the same function, so the same relative gain."""
    model, graph, batches = traced()
    before = SCORERS["exact"](model, graph, batches, functional.cross_entropy, seeded())
    c = torch.tensor(scales, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(c.view(-1, 1, 1, 1))
        cast(Tensor, model[1].running_mean).mul_(c)
        cast(Tensor, model[1].running_var).mul_(c**2)
    after = SCORERS["exact"](model, graph, batches, functional.cross_entropy, seeded())
    for s, t in zip(before, after, strict=True):
        torch.testing.assert_close(t.relative_index, s.relative_index, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(after[0].index, before[0].index / c**2, rtol=1e-7, atol=0)


@given(scale=st.floats(1e-2, 1e2))
@settings(max_examples=15, deadline=None)
def test_relative_index_does_not_see_a_scale_moved_across_a_homogeneous_activation(scale: float) -> None:
    """T18: relu(c z) = c relu(z), so weights times c before it and over c behind it are the same function.

    The softplus whose curvature stands in for ReLU's is no such function: seen from z it is c times as sharp.  With as many times less
    sharpness, indices and the gains that splits predict are the same.
    """
    model, moved = plain(1.0), plain(scale)
    images, classes = batch(12, 3)
    graph = find_groups(model, images[:1])
    found = []
    for each, curvature in ((model, Softplus(3)), (moved, Softplus(3 / scale))):
        scores = SCORERS["exact"](each, graph, [(images, classes)], functional.cross_entropy, seeded(), curvature)
        evidence = Evidence(each, graph, [(images, classes)], functional.cross_entropy, scores, curvature)
        found.append((scores, OPERATORS["split"].propose(evidence, 0.3, seeded())))
    (before, splits), (after, same) = found
    for s, t in zip(before, after, strict=True):
        torch.testing.assert_close(t.relative_index, s.relative_index, rtol=1e-6, atol=1e-12)
    for one, other in zip(splits, same, strict=True):
        torch.testing.assert_close(other.gain, one.gain, rtol=1e-6, atol=1e-12)


def plain(scale: float) -> nn.Sequential:
    """Two convolutions around a ReLU, a SiLU behind them, no norms; the first ``scale`` times, the second as many times less."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2),
    ).double()  # fmt: skip
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[2].weight.div_(scale)
    return model
