"""T13 and T2: the closed forms of signed splits, their bounds, and what they do where no positive split helps."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional

from growth.groups import ChannelGraph, find_groups
from growth.operators.base import Evidence
from growth.operators.signed import Scheme, Signed, schemes
from growth.scorers import SCORERS
from growth.solvers import dense, extremes
from growth.surgery import add_channels

torch.set_num_threads(1)
cs = st.floats(1, 20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(seed: int, d: int, shift: float = 0) -> Tensor:
    drawn = torch.randn(d, d, dtype=torch.float64, generator=seeded(seed))
    return (drawn + drawn.T) / 2 + shift * torch.eye(d, dtype=torch.float64)


def deltas(scheme: Scheme, S: Tensor) -> Tensor:
    """[m, d]"""
    _, vectors = torch.linalg.eigh(S)
    lowest, highest = (torch.tensor(part, dtype=torch.float64) for part in (scheme.along_lowest, scheme.along_highest))
    return lowest.unsqueeze(1) * vectors[:, 0] + highest.unsqueeze(1) * vectors[:, -1]


def best(S: Tensor, c: float, size: int) -> float:
    low, *_, high = torch.linalg.eigvalsh(S)
    return min(float(scheme.value(low, high)) for scheme in schemes(c) if len(scheme.shares) == size)


@given(c=cs, seed=st.integers(0, 10**6), d=st.integers(2, 8))
@settings(max_examples=50, deadline=None)
def test_schemes_keep_the_constraints_and_have_their_value(c: float, seed: int, d: int) -> None:
    S = symmetric(seed, d)
    low, *_, high = torch.linalg.eigvalsh(S)
    for scheme in schemes(c):
        w, delta = torch.tensor(scheme.shares, dtype=torch.float64), deltas(scheme, S)
        assert w.sum().item() == pytest.approx(1)
        assert w.abs().sum().item() <= c * (1 + 1e-12)
        assert (w @ delta).abs().max() < 1e-9 * c
        assert delta.norm(dim=1).max() < 1 + 1e-9
        value = torch.einsum("i,id,de,ie->", w, delta, S, delta)
        torch.testing.assert_close(value, scheme.value(low, high), rtol=1e-9, atol=1e-9 * c)


@given(c=cs, seed=st.integers(0, 10**6), d=st.integers(2, 8), shift=st.sampled_from([-5.0, 0.0, 5.0]))
@settings(max_examples=50, deadline=None)
def test_bounds(c: float, seed: int, d: int, shift: float) -> None:
    S = symmetric(seed, d, shift)
    lowest, *_, highest = torch.linalg.eigvalsh(S).tolist()
    low, high = min(lowest, 0), max(highest, 0)
    bound = (c + 1) / 2 * low - (c - 1) / 2 * high
    reached = {size: min(best(S, c, n) for n in range(2, size + 1)) for size in (2, 3, 4)}
    assert min(reached[2], 0) == pytest.approx(min(low, -(c - 1) / (c + 1) * high), abs=1e-9)
    pure = min((c + 1) / 2 * low, -(c - 1) / 2 * high)
    mixed = 2 * c / (c + 1) * lowest - (c - 1) / (c + 1) * highest
    assert min(reached[3], 0) == pytest.approx(min(pure, mixed, 0), abs=1e-9)
    assert reached[4] >= bound - 1e-9
    assert min(reached[4], 0) == pytest.approx(bound, abs=1e-9)


@given(seed=st.integers(0, 10**6), d=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_with_shares_that_are_all_positive_more_offspring_gain_nothing(seed: int, d: int) -> None:
    S = symmetric(seed, d)
    lowest = min(0.0, torch.linalg.eigvalsh(S)[0].item())
    assert [min(0.0, best(S, 1, size)) for size in (2, 3, 4)] == pytest.approx([lowest] * 3, abs=1e-9)


def test_a_mixed_triplet_can_beat_both_pure_ones() -> None:
    S = torch.diag(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64))
    assert best(S, 3, 3) == pytest.approx(-2.5)
    assert best(S, 3, 2) == pytest.approx(-1.0)
    assert best(S, 3, 4) == pytest.approx(-4.0)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_numeric_search_beats_the_closed_forms(size: int) -> None:
    """SLSQP over shares and moves, from many starts, with every pattern of signs."""
    c, S = 3.0, torch.diag(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64))
    matrix = S.numpy()
    generator = torch.Generator().manual_seed(0)

    def value(x: object) -> float:
        w, delta = x[:size], x[size:].reshape(size, 3)
        return float(sum(w[i] * delta[i] @ matrix @ delta[i] for i in range(size)))

    found = 0.0
    for signs in itertools.product([1, -1], repeat=size):
        constraints = [
            {"type": "eq", "fun": lambda x: x[:size].sum() - 1},
            {"type": "eq", "fun": lambda x: x[:size] @ x[size:].reshape(size, 3)},
            {"type": "ineq", "fun": lambda x, signs=signs: c - (x[:size] * signs).sum()},
            {"type": "ineq", "fun": lambda x: 1 - (x[size:].reshape(size, 3) ** 2).sum(1)},
        ]
        bounds = [(0, None) if sign > 0 else (None, 0) for sign in signs] + [(-1, 1)] * (3 * size)
        for _ in range(4):
            start = torch.randn(4 * size, dtype=torch.float64, generator=generator).numpy()
            result = minimize(value, start, method="SLSQP", bounds=bounds, constraints=constraints, options={"maxiter": 200})
            if result.success:
                found = min(found, result.fun)
    assert found >= best(S, c, size) - 1e-4
    assert found <= 0.9 * best(S, c, size)


class Quadratic(nn.Module):
    """f = 1/2 (theta^T x)^2, golden case T2: only the highest eigenvalue has a side to fall to."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[first, 0.0]]))
            self.head.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x)
        return self.head(0.5 * z * z)


def stable() -> tuple[nn.Module, ChannelGraph, Tensor, Tensor]:
    """y = 1/2 x^T A x with A = diag(1, -1/2), at the stationary theta; Gauss-Hermite points, their weights as repeated samples."""
    nodes = torch.tensor([-(3**0.5), 0, 3**0.5], dtype=torch.float64).repeat_interleave(torch.tensor([1, 4, 1]))
    points = torch.cartesian_prod(nodes, nodes)  # exact to degree 5; S is of degree 4
    model = Quadratic((1 - 0.5 / 3) ** 0.5).double()
    target = 0.5 * (points[:, :1] ** 2 - 0.5 * points[:, 1:] ** 2)
    return model, find_groups(model, points), points, target


def test_where_no_positive_split_helps_signed_ones_do() -> None:
    """T2: S = diag(0, 2/3).  Binary at c = 3: change -1/6 eps^2; triplet -1/3."""
    model, graph, points, target = stable()

    def half_square(output: Tensor, wanted: Tensor) -> Tensor:
        return 0.5 * functional.mse_loss(output, wanted)

    scores = SCORERS["exact"](model, graph, [(points, target)], half_square, seeded())
    assert float(scores[0].index) >= -1e-9
    evidence = Evidence(model, graph, [(points, target)], half_square, scores)
    step = 1e-2
    norm2 = 1 - 0.5 / 3
    expected = {1: -1 / 6, 2: -1 / 3, 3: -1 / 3}
    for candidates in Signed(c=3).propose(evidence, step, seeded()):
        wider, _ = add_channels(model, graph, [candidates.offspring])
        with torch.no_grad():
            change = float(half_square(wider(points), target) - half_square(model(points), target))
        assert change / (step**2 * norm2) == pytest.approx(expected[candidates.offspring.added], rel=1e-2)
        assert float(candidates.gain) == pytest.approx(-(step**2) * norm2 * expected[candidates.offspring.added], rel=1e-6)


def test_extremes_are_the_dense_ones_where_the_space_is_small() -> None:
    class Matrices:
        """Two channels of 4 weights."""

        S = torch.stack([symmetric(0, 4), symmetric(1, 4)])

        def zeros(self) -> list[Tensor]:
            return [torch.zeros(2, 4, dtype=torch.float64)]

        def __call__(self, v: list[Tensor]) -> list[Tensor]:
            return [torch.einsum("cij,cj->ci", self.S, v[0])]

        def on_batch(self, number: int, v: list[Tensor]) -> list[Tensor]:
            return self(v)

        def __len__(self) -> int:
            return 1

    ((low, high),) = extremes(Matrices(), seeded())
    torch.testing.assert_close(low.index, dense(Matrices(), seeded())[0].index)
    torch.testing.assert_close(high.index, torch.linalg.eigvalsh(Matrices.S)[:, -1])
    assert high.residual.max() < 1e-9


def test_a_channel_of_one_weight_has_one_direction_and_no_quartet() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    points = torch.randn(9, 1, dtype=torch.float64, generator=seeded())
    graph, batch = find_groups(model, points), (points, torch.arange(9) % 2)
    scores = SCORERS["exact"](model, graph, [batch], functional.cross_entropy, seeded())
    found = Signed().propose(Evidence(model, graph, [batch], functional.cross_entropy, scores), 1e-3, seeded())
    assert [candidates.offspring.added for candidates in found] == [1, 2]
    for candidates in found:
        wider, _ = add_channels(model, graph, [candidates.offspring])
        change = functional.cross_entropy(wider(points), batch[1]) - functional.cross_entropy(model(points), batch[1])
        assert change.item() / float(candidates.gain.sum()) == pytest.approx(-1, abs=0.01)


def test_c_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"c is 0\.5"):
        Signed(c=0.5)
