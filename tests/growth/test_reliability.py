"""Changes on fresh images against explicit quadratic forms, standard errors against numpy, and judgements that chance seldom passes."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from costs.model import Budget, Macs
from growth.choosing import Room, choose
from growth.groups import find_groups
from growth.operators import OPERATORS, Candidates, Evidence
from growth.operators.choice import Pick
from growth.prediction import RELIABLE, Prediction, mean_and_error
from growth.reliability import FreshChange, FreshSample, measure
from growth.scorers import SCORERS
from growth.splitting import Batch

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
    return model.eval()


def scored(model: nn.Module) -> tuple[Evidence, list[Candidates]]:
    graph, generator = find_groups(model, FRESH[0][0]), torch.Generator().manual_seed(0)
    scores = SCORERS["exact"](model, graph, SCORING, functional.cross_entropy, generator)
    evidence = Evidence(model, graph, SCORING, functional.cross_entropy, scores)
    return evidence, OPERATORS["split"].propose(evidence, STEP, generator)


def measured(model: nn.Module, batches: list[Batch] = FRESH) -> FreshSample:
    return measure(*scored(model), batches)


CHOSEN = [Pick(0, torch.tensor([2, 0])), Pick(1, torch.tensor([1]))]


def splitting_matrix(model: nn.Sequential, group: int, channel: int, batch: Batch) -> Tensor:
    """S of one channel in full, by autograd: the Hessian of <dL/da, a(theta)> at the merge point, a being what the next layer reads."""
    first, consumer = ((0, 3), (3, 8))[group]
    x, target = batch
    read = model[:consumer](x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(functional.cross_entropy(model[consumer:](read), target), read)
    weight = cast(Tensor, model[first].weight).detach()

    def linearised(theta: Tensor) -> Tensor:
        weights = torch.cat([weight[:channel], theta.view_as(weight[:1]), weight[channel + 1 :]])
        a = functional.conv2d(model[:first](x), weights, padding=model[first].padding)  # type: ignore[arg-type]
        return (slope * model[first + 1 : consumer](a)).sum()

    return cast(Tensor, torch.autograd.functional.hessian(linearised, weight[channel].flatten()))


def test_the_change_by_every_split_is_the_quadratic_form_of_its_splitting_matrix() -> None:
    model = network()
    found = measured(model)
    for group, score in enumerate(scored(model)[0].scores):
        for number, fresh in enumerate(FRESH):
            for channel, v in enumerate(score.direction):
                quotient = v @ splitting_matrix(model, group, channel, fresh) @ v
                expected = STEP**2 / 2 * float(quotient * score.parent_norm[channel] ** 2)
                assert found.changes[group][number, channel] == pytest.approx(expected, rel=1e-9, abs=1e-15)


@given(data=st.data(), size=st.integers(1, 64), count=st.integers(2, 20))
def test_with_equal_batches_the_error_is_the_usual_one(data: st.DataObject, size: int, count: int) -> None:
    values = np.array(data.draw(st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=count, max_size=count)))
    mean, error = mean_and_error(values, np.full(count, float(size)))
    assert mean == pytest.approx(values.mean(axis=0), abs=1e-12)
    assert error == pytest.approx(values.std(axis=0, ddof=1) / np.sqrt(count), abs=1e-12)


def test_larger_batches_weigh_more() -> None:
    values, sizes = np.array([1.0, 4.0, 2.0]), np.array(FRESH_SIZES, dtype=float)
    mean, error = mean_and_error(values, sizes)
    assert mean == pytest.approx(np.average(values, weights=sizes))
    assert error == pytest.approx(np.sqrt(sum((size / 10 * (value - 2.4)) ** 2 for size, value in zip(sizes, values, strict=True)) * 3 / 2))


def test_a_set_is_predicted_to_change_the_loss_by_the_sum_of_its_changes() -> None:
    model = network()
    found = measured(model)
    per_batch = found.changes[0][:, 2] + found.changes[0][:, 0] + found.changes[1][:, 1]
    mean, error = mean_and_error(per_batch, np.array(FRESH_SIZES, dtype=float))
    assert found.prediction(CHOSEN) == Prediction(pytest.approx(float(mean)), pytest.approx(float(error)))
    assert error > 0
    assert found.prediction([]) == Prediction(0, 0)


def test_two_samples_joined_are_one() -> None:
    model = network()
    evidence, candidates = scored(model)
    whole = measure(evidence, candidates, FRESH)
    joined = measure(evidence, candidates, FRESH[:1]).joined(measure(evidence, candidates, FRESH[1:]))
    assert joined.images == whole.images == sum(FRESH_SIZES)
    for one, other in zip(joined.each(), whole.each(), strict=True):
        assert np.array_equal(one.change, other.change)
        assert np.array_equal(one.error, other.error)


@given(scale=st.floats(1e-3, 1e3))
@settings(max_examples=10, deadline=None)
def test_nothing_sees_a_rescaled_normalised_layer(scale: float) -> None:
    plain, scaled = network(), network(scale)
    one, other = measured(plain), measured(scaled)
    for found, same in zip(one.each(), other.each(), strict=True):
        assert same.change == pytest.approx(found.change, rel=1e-6, abs=1e-12)
        assert same.error == pytest.approx(found.error, rel=1e-6, abs=1e-12)
    first, second = (found.prediction(CHOSEN) for found in (one, other))
    assert (second.change, second.error) == pytest.approx((first.change, first.error), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-2, 30.0])
def test_no_choice_sees_a_rescaled_normalised_layer(scale: float) -> None:
    """From the weights to the choice: the same channels, the same prediction."""
    choices = []
    for model in (network(), network(scale)):
        graph = find_groups(model, FRESH[0][0])
        room = Room(graph.wiring, [Budget(Macs(), 1.7 * Macs().network(graph.wiring.shapes()).value)], (8, 6))
        draws = [measured(model, [batch(8, 10 * draw + number) for number in range(8)]) for draw in range(3)]
        choices.append(choose(scored(model)[1], 12, draws.__getitem__, len(draws), room))
    plain, scaled = choices
    assert scaled.outcome == plain.outcome
    assert [one.offspring.parents.tolist() for one in scaled.chosen] == [one.offspring.parents.tolist() for one in plain.chosen] != []
    for ranks, same in zip(plain.ranked, scaled.ranked, strict=True):
        assert same.gain.argsort(stable=True).tolist() == ranks.gain.argsort(stable=True).tolist()
    assert (scaled.predicted.change, scaled.predicted.error) == pytest.approx((plain.predicted.change, plain.predicted.error), rel=1e-6)


def test_reliable_is_a_fall_by_more_than_its_errors() -> None:
    assert Prediction(-1.0, 0.99 / RELIABLE).reliable
    assert not Prediction(-1.0, 1.01 / RELIABLE).reliable
    assert not Prediction(1.0, 0.0).reliable
    assert not Prediction(0.0, 0.0).reliable
    fresh = FreshChange(np.array([-1.0, -1.0, 1.0]), np.array([0.4, 0.6, 0.0]))
    assert fresh.reliable.tolist() == [True, False, False]
