"""What a round predicts, on images that the directions were not fitted to."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from growth import rounds
from growth.groups import find_groups
from growth.scorers import SCORERS, GroupScore
from growth.splitting import Batch, SplittingProduct
from growth.surgery import Split

torch.set_num_threads(1)
STEP = 0.3
FRESH_SIZES = (4, 4, 2)


def batch(samples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 1, 6, 6, generator=generator).double(), torch.randint(2, (samples,), generator=generator)


SCORING, FRESH = [batch(6, 0), batch(6, 1)], [batch(samples, 2 + number) for number, samples in enumerate(FRESH_SIZES)]


def network(scale: float = 1) -> nn.Sequential:
    """``scale`` changes the first convolution's weights and no output: the norm behind it divides it away."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, eps=0), nn.SiLU(),
        nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2),
    ).double()  # fmt: skip
    with torch.no_grad():
        model[0].weight.mul_(scale)
        cast(Tensor, model[1].running_var).mul_(scale**2)
    return model


def scored(model: nn.Module) -> list[GroupScore]:
    generator = torch.Generator().manual_seed(0)
    return SCORERS["exact"](model, find_groups(model, FRESH[0][0]), SCORING, functional.cross_entropy, generator)


def chosen(scores: list[GroupScore]) -> list[Split]:
    return [Split(0, torch.tensor([2, 0]), scores[0].direction[[2, 0]]), Split(1, torch.tensor([1]), scores[1].direction[[1]])]


def test_the_prediction_sums_relative_quotients_and_its_error_weighs_batches_by_their_samples() -> None:
    model = network()
    graph, scores = find_groups(model, FRESH[0][0]), scored(model)
    product = SplittingProduct(model, graph, FRESH, functional.cross_entropy)
    changes = []
    for number in range(len(FRESH)):
        images = product.on_batch(number, [score.direction for score in scores])
        quotients = [(image * score.direction).sum(1) * score.parent_norm**2 for image, score in zip(images, scores, strict=True)]
        changes.append(STEP**2 / 2 * float(quotients[0][2] + quotients[0][0] + quotients[1][1]))
    weights = [samples / sum(FRESH_SIZES) for samples in FRESH_SIZES]
    mean = sum(weight * change for weight, change in zip(weights, changes, strict=True))
    variance = sum((weight * (change - mean)) ** 2 for weight, change in zip(weights, changes, strict=True)) * 3 / 2
    found = rounds.prediction(model, graph, chosen(scores), FRESH, STEP)
    assert found.change == pytest.approx(mean, rel=1e-9)
    assert found.error == pytest.approx(variance**0.5, rel=1e-9)
    assert found.error > 0


@pytest.mark.parametrize("scale", [1e-3, 20.0])
def test_gains_and_prediction_do_not_see_a_rescaled_normalised_layer(scale: float) -> None:
    plain, scaled = network(), network(scale)
    scores, others = scored(plain), scored(scaled)
    for gain, other in zip(rounds.gains(scores, STEP), rounds.gains(others, STEP), strict=True):
        assert other == pytest.approx(gain, rel=1e-6, abs=1e-12)
    graph = find_groups(plain, FRESH[0][0])
    one, two = (rounds.prediction(model, graph, chosen(found), FRESH, STEP) for model, found in ((plain, scores), (scaled, others)))
    assert (two.change, two.error) == pytest.approx((one.change, one.error), rel=1e-6)


def test_nothing_chosen_predicts_nothing() -> None:
    model = network()
    assert rounds.prediction(model, find_groups(model, FRESH[0][0]), [], FRESH, STEP) == rounds.Prediction(0, 0)
