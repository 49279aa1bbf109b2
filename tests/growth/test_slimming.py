"""Slimming: scales are drawn to zero, the smallest go first until the limit is kept, and a run that was stopped goes on bit for bit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from costs.families import Network
from costs.model import Budget, Macs, Parameters
from growth.checkpoint import read
from growth.config import GrowthConfig
from growth.events import Round, Scored, Step
from growth.groups import find_groups
from growth.loop import Growth
from growth.networks import build
from growth.slimming import scales, slimmest
from growth.training import Data, Learner, fetch

WIDE = Network("mobilenet_v1", (4, 6, 6, 6, *[4] * 10), 8, 1, 3)
COST = Macs().network(WIDE.wiring().shapes()).value
CONFIG = GrowthConfig(
    limit=0.6 * COST, rounds=1, steps_per_round=4, final_steps=4, batch_size=16, scoring_samples=32, fresh_samples=16,
    learning_rate=0.05, slimming=1e-2,
)  # fmt: skip


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 1, 8, 8, generator=generator) + classes.view(-1, 1, 1, 1), classes)


DATA = Data(images(70, 0), images(24, 1), images(24, 2))


def start(network: Network = WIDE, **changes: Any) -> Growth:
    return Growth.start(network, DATA, Macs(), replace(CONFIG, **changes))


def scaled(network: Network = WIDE) -> nn.Module:
    """With scales of its norms by chance, of both signs."""
    model, generator = build(network, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1, generator=generator)
    return model


def test_a_channels_scale_is_the_mean_over_the_norms_that_it_passes() -> None:
    model = scaled()
    found = scales(model, find_groups(model, torch.zeros(1, 1, 8, 8)))
    of = {name: module.weight.detach().abs() for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert torch.allclose(found[0], (of["stem.norm"] + of["blocks.0.depthwise.norm"]) / 2)
    assert torch.equal(found[-1], of["blocks.12.pointwise.norm"])
    assert [len(one) for one in found] == list(WIDE.widths)


@pytest.mark.parametrize("cost_model", [Macs(), Parameters()], ids=["macs", "params"])
@pytest.mark.parametrize("part", [1.0, 0.9, 0.6, 0.45])
def test_the_smallest_of_all_scales_go_and_no_more_than_needed(cost_model: Macs | Parameters, part: float) -> None:
    model = scaled()
    graph = find_groups(model, torch.zeros(1, 1, 8, 8))
    limit = part * cost_model.network(graph.wiring.shapes()).value
    removals = slimmest(model, graph, [Budget(cost_model, limit)])
    widths = [width - sum(len(one.channels) for one in removals if one.group == g) for g, width in enumerate(graph.wiring.widths)]
    assert cost_model.network(graph.wiring.shapes(widths)).value <= limit
    assert min(widths) >= 2
    found = scales(model, graph)
    gone = {(one.group, channel) for one in removals for channel in one.channels.tolist()}
    assert bool(gone) == (part < 1)
    if gone:
        bar, group, _ = max((found[g][c].item(), g, c) for g, c in gone)
        stays = [found[g][c].item() for g, one in enumerate(found) for c in range(len(one)) if (g, c) not in gone and widths[g] > 2]
        assert min(stays, default=bar) >= bar
        widths[group] += 1
        assert cost_model.network(graph.wiring.shapes(widths)).value > limit


def test_a_limit_that_no_widths_keep_and_groups_without_norms_are_refused() -> None:
    model = scaled()
    with pytest.raises(ValueError, match="still costs more than the limit of 10; raise the limit"):
        slimmest(model, find_groups(model, torch.zeros(1, 1, 8, 8)), [Budget(Macs(), 10)])
    with pytest.raises(ValueError, match=r"channel group 0 \(blocks.0.conv.conv\) passes no batch norm with a scale"):
        start(Network("plain", (4, 4), 8, 1, 3, norm=False))
    with pytest.raises(ValueError, match="slimming is 2; it must lie between 0 and 1"):
        replace(CONFIG, slimming=2)
    with pytest.raises(ValueError, match="slimming and planned_widths both say what rounds do"):
        replace(CONFIG, planned_widths=[(4,)])


def test_the_penalty_is_the_gradient_of_the_sum_of_all_scales() -> None:
    """Against autograd, for one step of plain gradient descent."""
    batch, rate, strength = fetch(DATA.train, range(16)), 0.1, 0.05
    config = replace(CONFIG, momentum=0.0, weight_decay=0.0)
    ours, theirs = scaled(), scaled()
    Learner.of(ours, config).step(batch, rate, 1, penalty=strength)
    loss = nn.functional.cross_entropy(theirs(batch[0]), batch[1])
    loss = loss + strength * sum(module.weight.abs().sum() for module in theirs.modules() if isinstance(module, nn.BatchNorm2d))
    loss.backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other - rate * other.grad, atol=1e-6)


def test_a_run_slims_to_the_limit_once_and_goes_on_training_what_is_left() -> None:
    growth = start()
    events = list(growth.events())
    (closed,) = growth.rounds
    assert (closed.outcome, closed.rolled_back, closed.widths_before) == ("slimmed", False, WIDE.widths)
    assert closed.cost_before.value == COST > CONFIG.limit >= closed.cost_after.value
    assert closed.widths_after == tuple(map(sum, zip(closed.widths_before, closed.channels_added, strict=True))) == growth.network.widths
    gone = -sum(closed.channels_added)
    assert closed.added_by == {"slimming": -gone}
    assert closed.reason == f"slimmed: {gone} of {sum(WIDE.widths)} channels had the smallest scales and were removed"
    kinds = [type(event) for event in events if not isinstance(event, Step)]
    assert kinds[:2] == [Scored, Round]
    assert growth.step == growth.total_steps == 12


def test_it_is_kept_however_much_worse_it_makes_things() -> None:
    x, y = images(24, 1).tensors
    growth = Growth.start(WIDE, replace(DATA, selection=TensorDataset(x, (y + 1) % 3)), Macs(), replace(CONFIG, limit=0.5 * COST))
    list(growth.events())
    assert growth.rounds[0].loss_after > growth.rounds[0].loss_before
    assert growth.network.widths != WIDE.widths


def test_several_rounds_slim_little_by_little() -> None:
    growth = start(rounds=3)
    list(growth.events())
    costs = [COST, *(closed.cost_after.value for closed in growth.rounds)]
    assert all(after < before for before, after in pairwise(costs))
    assert costs[-1] <= CONFIG.limit < costs[-2]


def test_the_penalty_acts_until_the_last_slimming_and_draws_scales_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda *given: (seen.append(given[-1]), step(*given))[1])
    list(start(rounds=2, limit=0.8 * COST).events())
    assert seen == [CONFIG.slimming] * 8 + [0.0] * 8

    def mean_scale(strength: float) -> float:
        growth = start(slimming=strength, steps_per_round=20)
        next(event for event in growth.events() if isinstance(event, Scored))
        return float(torch.cat(scales(growth.model, growth.graph)).mean())

    assert mean_scale(5e-2) < 0.9 * mean_scale(0.0)


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 9, 10])  # before slimming, at it, between, at the check, in the final stage
def test_a_run_stopped_at_any_yield_goes_on_as_if_it_had_not(stop: int, tmp_path: Path) -> None:
    whole = start()
    list(whole.events())
    whole.save(tmp_path / "whole")
    cut = start()
    for number, _ in enumerate(cut.events(), 1):
        if number == stop:
            cut.save(tmp_path / "cut")
            break
    resumed = Growth.resume(tmp_path / "cut", DATA, Macs())
    list(resumed.events())
    resumed.save(tmp_path / "resumed")
    one, other = read(tmp_path / "whole"), read(tmp_path / "resumed")
    assert one[1] == other[1]
    assert all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())
