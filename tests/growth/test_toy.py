"""T14: one-dimensional regression with radial units, trained to stationarity after every growth of one unit.

There the order of what a step is worth shows in the losses: chance, the split in two, signed splits.  It says nothing of new channels,
which do better still on this task.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from growth.groups import find_groups
from growth.operators import OPERATORS, Candidates, Evidence
from growth.scorers import SCORERS
from growth.splitting import Batch
from growth.surgery import add_channels

SEEDS, GROWN = range(6), 4


class Radial(nn.Module):
    """sum_i w_i exp(-(theta_i . [x, 1])^2 / 2)"""

    def __init__(self, theta: Tensor, w: Tensor) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(2, len(theta), bias=False).double(), nn.Linear(len(theta), 1, bias=False).double()
        with torch.no_grad():
            self.hidden.weight.copy_(theta)
            self.head.weight.copy_(w.view(1, -1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x)
        return self.head(torch.exp(-0.5 * z * z))


def task(seed: int) -> tuple[Batch, nn.Module]:
    """A teacher of 15 units, scaled to unit variance, and a student of one."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = 10 * torch.rand(300, 1, generator=generator, dtype=torch.float64) - 5
    x = torch.cat([x, torch.ones_like(x)], 1)
    with torch.no_grad():
        y = Radial(math.sqrt(3) * drawn(15, 2), math.sqrt(3) * drawn(15))(x)
    return (x, (y - y.mean()) / y.std()), Radial(drawn(1, 2), drawn(1))


def half_square(output: Tensor, wanted: Tensor) -> Tensor:
    return 0.5 * functional.mse_loss(output, wanted)


def settle(model: nn.Module, batch: Batch) -> float:
    """To stationarity; the loss there."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=400, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = half_square(model(batch[0]), batch[1])
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return float(half_square(model(batch[0]), batch[1]))


def best(found: list[Candidates]) -> Candidates:
    """The one candidate of largest gain among those that add one channel."""
    single = [
        (float(gain), number, row) for number, one in enumerate(found) if one.offspring.added == 1 for row, gain in enumerate(one.gain)
    ]
    _, number, row = max(single)
    return found[number].take(torch.tensor([row]))


@cache
def losses(scorer: str, operators: tuple[str, ...]) -> float:
    """log10 of the loss after growing, mean over the seeds."""
    total = 0.0
    for seed in SEEDS:
        batch, model = task(seed)
        generator = torch.Generator().manual_seed(seed)
        settle(model, batch)
        for _ in range(GROWN):
            graph = find_groups(model, batch[0][:1])
            scores = SCORERS[scorer](model, graph, [batch], half_square, generator)
            evidence = Evidence(model, graph, [batch], half_square, scores)
            found = [one for name in operators for one in OPERATORS[name].propose(evidence, 0.1, generator)]
            model, _ = add_channels(model, graph, [best(found).offspring])
            after = settle(model, batch)
        total += math.log10(after) / len(SEEDS)
    return total


def test_a_split_is_worth_more_than_chance_and_a_signed_split_more_still() -> None:
    chance, split, signed = losses("random", ("split",)), losses("exact", ("split",)), losses("exact", ("split", "signed"))
    assert signed < split < chance


@pytest.mark.parametrize("operators", [("split",), ("split", "signed")])
def test_growing_fits_better_than_not_growing(operators: tuple[str, ...]) -> None:
    alone = sum(math.log10(settle(model, batch)) for batch, model in map(task, SEEDS)) / len(SEEDS)
    assert losses("exact", operators) < alone
