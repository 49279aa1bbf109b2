"""Step rules against golden case T1, where the best step is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from growth.groups import ChannelGraph, find_groups
from growth.offspring import Offspring, Split, apart
from growth.operators.stride import gauss_newton, line_search, scaled

torch.set_num_threads(1)


class Quadratic(nn.Module):
    """f = 1/2 (theta^T x)^2 with y = 1/2 x^T A x, A = diag(1, 1/2), at the stationary theta = (sqrt(1 + 1/6), 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(2, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[(1 + 0.5 / 3) ** 0.5, 0.0]], dtype=torch.float64))
            self.head.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x)
        return self.head(0.5 * z * z)


def half_square(output: Tensor, wanted: Tensor) -> Tensor:
    return 0.5 * functional.mse_loss(output, wanted)


def golden() -> tuple[nn.Module, ChannelGraph, tuple[Tensor, Tensor], Offspring]:
    """The split along e_2 by a step of 1 in weights.  Gauss-Hermite points, their weights as repeated samples."""
    model = Quadratic()
    nodes = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64).repeat_interleave(torch.tensor([1, 4, 1]))
    points = torch.cartesian_prod(nodes, nodes)
    target = 0.5 * (points[:, :1] ** 2 + 0.5 * points[:, 1:] ** 2)
    graph = find_groups(model, points)
    along = Split(0, torch.tensor([0]), torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    norm = model.hidden.weight.norm().item()
    return model, graph, (points, target), apart(model, graph.groups[0], along, 1 / norm)


def test_the_best_step_and_its_change_are_the_golden_ones() -> None:
    """T1: the change is -eps^2 / 3 + 3 / 8 eps^4, lowest at 2 / 3 with -2 / 27."""
    model, graph, batch, offspring = golden()
    found = line_search(model, graph, [offspring], [batch], half_square, [scale / 30 for scale in range(1, 46)])
    assert found.scale == pytest.approx(2 / 3)
    assert found.change == pytest.approx(-2 / 27, abs=1e-9)
    for eps, change in ((0.01, -3.3329583e-5), (0.1, -3.2958333e-3)):
        assert line_search(model, graph, [offspring], [batch], half_square, [eps]).change == pytest.approx(change, rel=1e-6)


def test_gauss_newton_finds_the_golden_step_without_trying_it() -> None:
    """T1: outputs are a quadratic in the step and the loss one in the outputs, so its model is exact; new reads are scaled as well."""
    model, graph, batch, offspring = golden()
    found = gauss_newton(model, graph, [offspring], [batch], half_square)
    assert found.scale == pytest.approx(2 / 3, abs=1e-9)
    assert found.change == pytest.approx(-2 / 27, abs=1e-9)
    halves = [tuple(part[:18] for part in batch), tuple(part[18:] for part in batch)]
    apart_ = gauss_newton(model, graph, [offspring], halves, half_square)
    assert (apart_.scale, apart_.change) == pytest.approx((found.scale, found.change))
    rows, reads = torch.zeros(1, 2, 2, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    rows[0, 1] = torch.tensor([0.0, 1.0]) - model.hidden.weight[0]
    new = Offspring(0, torch.tensor([0]), rows, torch.tensor([[1.0, 0.0]], dtype=torch.float64), (reads,))
    tried = line_search(model, graph, [new], [batch], half_square, [scale / 100 for scale in range(1, 201)])
    found = gauss_newton(model, graph, [new], [batch], half_square)
    assert found.scale == pytest.approx(tried.scale, abs=0.01)
    assert found.change == pytest.approx(tried.change, abs=1e-4)


def test_where_no_step_lowers_the_loss_its_change_is_above_zero() -> None:
    model, graph, batch, offspring = golden()
    assert line_search(model, graph, [offspring], [batch], half_square, [3.0, 2.0]).change > 0


def test_new_rows_do_not_scale_with_what_reads_them() -> None:
    moves = torch.ones(1, 3, 2)
    one = scaled(Offspring(0, torch.tensor([0]), moves, torch.tensor([[0.5, 0.5, 0.0]]), (torch.ones(1, 2, 1, 1),)), 0.25)
    assert one.moves[0, :, 0].tolist() == [0.25, 0.25, 1.0]
    assert one.reads[0].unique().tolist() == [0.25]
