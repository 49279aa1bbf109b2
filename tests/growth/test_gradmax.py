"""T15: a new block with zero incoming weights changes nothing, and its slope there is as steep as singular values allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from growth.groups import ChannelGraph, find_groups
from growth.offspring import Offspring, theta
from growth.operators import Evidence
from growth.operators.gradmax import GradMax
from growth.scorers import SCORERS
from growth.surgery import add_channels

torch.set_num_threads(1)
STEP, D, WIDTH, OUT = 1e-4, 6, 4, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def setting(dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, ChannelGraph, Evidence]:
    """tanh D-WIDTH-OUT with biases of zero, where tanh has slope 1, and a teacher's targets."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(D, WIDTH), nn.Tanh(), nn.Linear(WIDTH, OUT)).to(dtype)
        teacher = nn.Sequential(nn.Linear(D, 9), nn.Tanh(), nn.Linear(9, OUT)).to(dtype)
    with torch.no_grad():
        model[0].bias.zero_()
        points = torch.randn(40, D, dtype=torch.float64, generator=seeded()).to(dtype)
        target = 2 * teacher(points)
    graph = find_groups(model, points)
    batches = [(points[:25], target[:25]), (points[25:], target[25:])]
    scores = SCORERS["splitting"](model, graph, batches, functional.mse_loss, seeded())
    return model, graph, Evidence(model, graph, batches, functional.mse_loss, scores)


def slope_of_a_direct_layer(model: nn.Module, evidence: Evidence) -> Tensor:
    """G by autograd: the slope at a linear layer from input to output that is zero, [OUT, D]."""
    points, target = (torch.cat(parts) for parts in zip(*evidence.batches, strict=True))
    direct = torch.zeros(OUT, D, dtype=points.dtype, requires_grad=True)
    return torch.autograd.grad(functional.mse_loss(model(points) + points @ direct.T, target), direct)[0]


def proposed(evidence: Evidence, step: float = STEP) -> tuple[Offspring, Tensor]:
    (candidates,) = GradMax(rounds=30).propose(evidence, step, seeded(1))
    assert candidates.gain is not None
    return candidates.offspring, candidates.gain


def incoming_slope(model: nn.Module, graph: ChannelGraph, evidence: Evidence, offspring: Offspring) -> Tensor:
    """At the new rows, which are zero, [2 n, D]."""
    rows = theta(model, graph.groups[0])[offspring.parents]
    zero = torch.stack([torch.zeros_like(rows), -rows, -rows], 1)
    wider, _ = add_channels(model, graph, [replace(offspring, moves=zero)])
    points, target = (torch.cat(parts) for parts in zip(*evidence.batches, strict=True))
    assert torch.allclose(wider(points), model(points), rtol=0, atol=1e-12)
    return torch.autograd.grad(functional.mse_loss(wider(points), target), wider.get_parameter("0.weight"))[0][WIDTH:]


def test_directions_are_the_singular_vectors() -> None:
    model, graph, evidence = setting()
    u, sigma, v = torch.linalg.svd(slope_of_a_direct_layer(model, evidence))
    offspring, gain = proposed(evidence)
    rows = theta(model, graph.groups[0])[offspring.parents]
    new = (offspring.moves[:, 1] + rows) / (STEP * rows.norm(dim=1, keepdim=True))
    columns = offspring.reads[0][:, 0, :, 0]
    lengths = model[2].weight.detach().norm(dim=0)[offspring.parents]
    torch.testing.assert_close(columns.norm(dim=1), lengths)
    torch.testing.assert_close((new * v[:WIDTH]).sum(1).abs(), torch.ones(WIDTH, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(((columns / lengths.unsqueeze(1)) * u.T[:WIDTH]).sum(1).abs(), torch.ones(WIDTH).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(gain, 2 * STEP * rows.norm(dim=1) * lengths * sigma[:WIDTH], rtol=1e-3, atol=0)


def test_slope_at_the_incoming_weights_is_the_largest_there_is() -> None:
    """sum of c_i^2 sigma_i^2 over the channels, both of each pair; no other orthonormal outgoing weights of these lengths beat it."""
    model, graph, evidence = setting()
    sigma = torch.linalg.svdvals(slope_of_a_direct_layer(model, evidence))
    offspring, _ = proposed(evidence)
    lengths = offspring.reads[0][:, 0].flatten(1).norm(dim=1)
    equal = replace(offspring, reads=(offspring.reads[0] / lengths.view(-1, 1, 1, 1, 1)[..., 0],))
    best = incoming_slope(model, graph, evidence, equal).square().sum().item()
    assert best == pytest.approx(2 * float(sigma[:WIDTH].square().sum()), rel=1e-6)
    for seed in range(20):
        q, _ = torch.linalg.qr(torch.randn(OUT, WIDTH, dtype=torch.float64, generator=seeded(seed)))
        other = q.T.reshape(WIDTH, 1, OUT, 1)
        slope = incoming_slope(model, graph, evidence, replace(offspring, reads=(torch.cat([other, -other], 1),)))
        assert slope.square().sum().item() < best


def test_large_steps_gain_what_they_say_all_together() -> None:
    model, graph, evidence = setting()
    offspring, gain = proposed(evidence, 0.5)
    wider, _ = add_channels(model, graph, [offspring])
    points, target = (torch.cat(parts) for parts in zip(*evidence.batches, strict=True))
    change = functional.mse_loss(wider(points), target) - functional.mse_loss(model(points), target)
    assert change.item() < 0
    assert float(gain.sum()) == pytest.approx(-change.item(), rel=1e-9)


def test_single_precision_finds_the_same_directions() -> None:
    _, _, evidence = setting()
    _, _, single = setting(torch.float32)
    assert proposed(single)[1][:3].tolist() == pytest.approx(proposed(evidence)[1][:3].tolist(), rel=0.05)
