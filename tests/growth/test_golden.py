"""Known answers: closed forms, identities, and what real splits do to the loss.  Float64 throughout.

Splitting is written out here: offspring theta +- eps v of every channel, averaged where their consumer reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from growth.groups import find_groups
from growth.pointwise import POINTWISE, Pointwise, Softplus
from growth.reference import reference_product
from growth.solvers import Eigenpairs, dense
from growth.splitting import Batch, Loss, SplittingProduct

torch.set_num_threads(1)
CHANCE = torch.Generator()  # dense leaves nothing to it


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(model: nn.Module, batch: Batch, loss: Loss) -> list[Eigenpairs]:
    return dense(SplittingProduct(model, find_groups(model, batch[0]), [batch], loss), CHANCE)


# --- T1, T8: one neuron, expectations by quadrature ---------------------------------------------------------------------------------


class HalfSquare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x**2


@pytest.fixture(autouse=True)
def half_square() -> Iterator[None]:
    POINTWISE[HalfSquare] = Pointwise("half_square", lambda y: 0.5 * y**2, lambda y: (y.clone(), torch.ones_like(y)))
    yield
    del POINTWISE[HalfSquare]


def neuron(theta: Tensor, activation: nn.Module) -> nn.Sequential:
    """Rows of ``theta``, and the mean of what they compute."""
    model = nn.Sequential(nn.Linear(2, len(theta), bias=False), activation, nn.Linear(len(theta), 1, bias=False)).double()
    model[0].weight.data, model[2].weight.data = theta, torch.full((1, len(theta)), 1 / len(theta), dtype=torch.float64)
    return model


def weighted_square(scores: Tensor, target: Tensor) -> Tensor:
    """E (f - y)^2 / 2, with y and the quadrature weight in the target's columns."""
    return (target[:, 1] * 0.5 * (scores[:, 0] - target[:, 0]) ** 2).sum()


def quadratic(a: tuple[float, float]) -> Batch:
    """x ~ N(0, I), y = x^T diag(a) x / 2, on a grid that is exact for polynomials of degree 23."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    x = torch.cartesian_prod(torch.tensor(nodes), torch.tensor(nodes))
    weight = torch.cartesian_prod(*[torch.tensor(weights / weights.sum())] * 2).prod(1)
    return x, torch.stack([0.5 * (x**2 @ torch.tensor(a, dtype=torch.float64)), weight], 1)


def test_closed_form_of_a_quadratic_neuron() -> None:
    """T1: at the stationary point S = diag(0, -4 a2 / 3), and splitting changes the loss by -eps^2 / 3 + 3 eps^4 / 8."""
    batch, theta = quadratic((1, 0.5)), torch.tensor([[1.0801234497, 0]], dtype=torch.float64)
    loss = weighted_square(neuron(theta, HalfSquare())(batch[0]), batch[1])
    assert loss.item() == pytest.approx(1 / 12, abs=1e-12)
    (pairs,) = exact(neuron(theta, HalfSquare()), batch, weighted_square)
    assert pairs.index.item() == pytest.approx(-2 / 3, abs=1e-9)
    torch.testing.assert_close(pairs.direction.abs(), torch.tensor([[0.0, 1.0]], dtype=torch.float64), atol=1e-9, rtol=0)
    for eps, change in ((0.01, -3.3329583e-5), (0.1, -3.2958333e-3), (2 / 3, -2 / 27)):
        offspring = torch.cat([theta + eps * pairs.direction, theta - eps * pairs.direction])
        moved = weighted_square(neuron(offspring, HalfSquare())(batch[0]), batch[1]) - loss
        assert moved.item() == pytest.approx(change, rel=1e-7)
        assert moved.item() == pytest.approx(-(eps**2) / 3 + 3 * eps**4 / 8, rel=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_closed_form_away_from_stationarity(seed: int) -> None:
    """T1: S = B + tr(B) I / 2 with B = theta theta^T - A, anywhere."""
    theta, eye = double(1, 2, seed=seed), torch.eye(2, dtype=torch.float64)
    model, batch = neuron(theta, HalfSquare()), quadratic((1, 0.5))
    product = SplittingProduct(model, find_groups(model, batch[0]), [batch], weighted_square)
    B = theta.T @ theta - torch.diag(torch.tensor([1, 0.5], dtype=torch.float64))
    for column in range(2):
        torch.testing.assert_close(product([eye[column : column + 1]])[0][0], (B + 0.5 * B.trace() * eye)[column], rtol=1e-12, atol=1e-12)


def test_a_stable_neuron_has_no_negative_index() -> None:
    """T2: a = (1, -1/2) gives S = diag(0, 2/3)."""
    batch, theta = quadratic((1, -0.5)), torch.tensor([[math.sqrt(1 - 0.5 / 3), 0]], dtype=torch.float64)
    model = neuron(theta, HalfSquare())
    product = SplittingProduct(model, find_groups(model, batch[0]), [batch], weighted_square)
    for column, value in enumerate((0, 2 / 3)):
        image = product([torch.eye(2, dtype=torch.float64)[column : column + 1]])[0][0, column].item()
        assert image == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("t", "beta", "value"),
    [
        (1, 1, -0.3446), (1, 3, -0.6228), (1, 10, -0.7586), (1, 30, -0.7873),
        (0.5, 1, -0.4276), (0.5, 3, -0.9842), (0.5, 10, -1.4548), (0.5, 30, -1.5662),
    ],
)  # fmt: skip
def test_relu_surrogate_and_its_bias(t: float, beta: float, value: float) -> None:
    """T8: relu(t x1) against y = x2^2 - 1; the exact second entry is -2 / (t sqrt(2 pi))."""
    points = torch.linspace(-9, 9, 6001, dtype=torch.float64)
    density = torch.exp(-0.5 * points**2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    x = torch.cartesian_prod(points, torch.tensor(nodes))
    weight = torch.cartesian_prod(density / density.sum(), torch.tensor(weights / weights.sum())).prod(1)
    batch = x, torch.stack([x[:, 1] ** 2 - 1, weight], 1)
    model = neuron(torch.tensor([[t, 0]], dtype=torch.float64), nn.ReLU())
    product = SplittingProduct(model, find_groups(model, x), [batch], weighted_square, Softplus(beta))
    found = product([torch.tensor([[0, 1]], dtype=torch.float64)])[0][0, 1].item()
    assert found == pytest.approx(value, abs=6e-5)
    assert -2 / (t * math.sqrt(2 * math.pi)) < found < 0  # biased towards zero


# --- T9: slopes and curvatures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", {phi.name: phi for phi in POINTWISE.values()}.values(), ids=lambda phi: phi.name)
def test_derivatives_are_autograds(function: Pointwise) -> None:
    y = torch.linspace(-6, 6, 400, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function.value(y).sum(), y, create_graph=True)
    ours, second = function.derivatives(y.detach())
    torch.testing.assert_close(ours, slope.detach(), rtol=0, atol=1e-12)
    if second is not None:
        torch.testing.assert_close(second, torch.autograd.grad(slope.sum(), y)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [1, 3, 10])
def test_surrogate_is_softplus(beta: float) -> None:
    y = torch.linspace(-4, 4, 100, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(functional.softplus(y, beta, threshold=1000).sum(), y, create_graph=True)
    torch.testing.assert_close(Softplus(beta)(y.detach()), torch.autograd.grad(slope.sum(), y)[0], rtol=0, atol=1e-12)


# --- T3, T4, T7: convolutions -------------------------------------------------------------------------------------------------------


def frozen_norm(channels: int, seed: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).double()
    for number, value in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
        assert value is not None
        value.data = torch.rand(channels, generator=torch.Generator().manual_seed(10 * seed + number)).double() + 0.5
    return norm.eval()


def convolutions(depthwise: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """(what lies before the merge point, what lies behind)."""
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), frozen_norm(4, 1), nn.SiLU())
    if depthwise:
        front.extend([nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), frozen_norm(4, 2), nn.SiLU()])
    return front.double(), nn.Sequential(nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def images(samples: int = 6) -> Batch:
    return double(samples, 2, 6, 6), torch.arange(samples) % 3


def own_output_product(front: nn.Sequential, back: nn.Module, batch: Batch, v: Tensor) -> Tensor:
    """The published product: S taken at the neuron's own output, with an auxiliary y whose gradient at 0 is S v; by im2col."""
    x, target = batch
    conv, norm = front[0], front[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    patches = functional.unfold(x, conv.kernel_size, padding=1)  # [B, d, H W]
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    z = norm(conv(x))
    s = torch.sigmoid(z)
    curvature = 2 * s * (1 - s) + z * s * (1 - s) * (1 - 2 * s)
    y = torch.zeros_like(v, requires_grad=True)
    auxiliary = (y @ patches).view_as(z) * (v @ patches).view_as(z) * curvature * (scale**2).view(-1, 1, 1)
    rest = nn.Sequential(*front[3:], back)
    (gradient,) = torch.autograd.grad(functional.cross_entropy(rest(functional.silu(z) + auxiliary), target), y)
    return gradient


def split_change(front: nn.Sequential, back: nn.Module, batch: Batch, v: Tensor, eps: float) -> float:
    """What splitting every channel of the first convolution does to the loss."""
    x, target = batch
    theta = front[0].weight.detach()
    step = eps * v.view_as(theta)
    with torch.no_grad():
        merged = sum(functional_call(front, {"0.weight": theta + sign * step}, (x,)) / 2 for sign in (1, -1))
        before, after = functional.cross_entropy(back(front(x)), target), functional.cross_entropy(back(merged), target)
    return (after - before).item()


def test_three_ways_to_the_same_product() -> None:
    """T3: where the merge point is the neuron's output, the published trick, double backward and ours agree; so does the Hessian."""
    front, back = convolutions(depthwise=False)
    model, batch, v = nn.Sequential(*front, back), images(), double(4, 18, seed=3)
    graph = find_groups(model, batch[0])
    (ours,) = SplittingProduct(model, graph, [batch], functional.cross_entropy)([v])
    (twice,) = reference_product(model, graph, batch, functional.cross_entropy, [v])
    trick = own_output_product(front, back, batch, v)
    assert (ours - twice).norm() < 1e-12 * ours.norm()
    assert (ours - trick).norm() < 1e-12 * ours.norm()


def test_the_loss_follows_the_index_at_the_merge_point_only() -> None:
    """T4: with a depthwise convolution behind the split one, S at the neuron's own output predicts something else."""
    (front, back), batch = convolutions(depthwise=True), images()
    model = nn.Sequential(*front, back)
    (pairs, *_) = exact(model, batch, functional.cross_entropy)
    predicted = pairs.index.sum().item() / 2
    changes = [split_change(front, back, batch, pairs.direction, eps) / eps**2 for eps in (1e-1, 3e-2, 1e-2, 3e-3)]
    errors = [abs(change - predicted) for change in changes]
    assert errors == sorted(errors, reverse=True)
    assert changes[-1] == pytest.approx(predicted, rel=1e-4)

    basis = torch.eye(18, dtype=torch.float64)
    matrices = torch.stack([own_output_product(front, back, batch, column.expand(4, 18)) for column in basis], 2)  # [C, d, d]
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    own = values[:, 0].sum().item() / 2
    actual = split_change(front, back, batch, vectors[:, :, 0], 3e-3) / 3e-3**2
    assert abs(actual - own) > 0.03 * abs(own)


def test_error_of_a_symmetric_split_is_fourth_order() -> None:
    """T7: |change / eps^2 - index / 2| falls a hundredfold when eps falls tenfold."""
    (front, back), batch = convolutions(depthwise=True), images()
    (pairs, *_) = exact(nn.Sequential(*front, back), batch, functional.cross_entropy)
    predicted = pairs.index.sum().item() / 2
    coarse, fine = (abs(split_change(front, back, batch, pairs.direction, eps) / eps**2 - predicted) for eps in (3e-2, 3e-3))
    assert coarse / fine == pytest.approx(100, rel=0.1)


# --- T5: two consecutive layers -----------------------------------------------------------------------------------------------------


def test_layers_add_up_when_directions_are_halved_with_the_weights() -> None:
    """T5: tanh layers 6-5-5-1, both split.  On duplicated inputs the direction is halved too; if not, its layer counts four times."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, target = double(40, 6), 3 * double(40, 1, seed=1)
    first, second = exact(model, (x, target), functional.mse_loss)

    def loss(eps: float, factor: float) -> float:
        """``factor`` is 1 where the second layer's direction is halved on its duplicated inputs, 2 where it is not."""
        with torch.no_grad():
            hidden = sum(torch.tanh(model[0](x) + sign * eps * x @ first.direction.T) / 2 for sign in (1, -1))
            step = factor * eps * hidden @ second.direction.T
            merged = sum(torch.tanh(model[2](hidden) + sign * step) / 2 for sign in (1, -1))
            return functional.mse_loss(model[4](merged), target).item()

    one, two = first.index.sum().item() / 2, second.index.sum().item() / 2
    assert one < 0 > two
    for factor in (1, 2):
        change = (loss(3e-3, factor) - loss(0, factor)) / 3e-3**2
        assert change == pytest.approx(one + factor**2 * two, rel=1e-3)


# --- T16: identities ----------------------------------------------------------------------------------------------------------------


def normalised() -> tuple[nn.Sequential, Batch]:
    """Convolutions without bias behind which a norm forgets their scale (a vanishing eps makes that exact)."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, eps=1e-300), nn.SiLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4, eps=1e-300), nn.SiLU(),
        nn.Conv2d(4, 5, 1, bias=False), nn.BatchNorm2d(5, eps=1e-300), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).double()  # fmt: skip
    return model, images(8)


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_scale_invariance_under_batch_statistics(batch_statistics: bool) -> None:
    """T16: with the batch's statistics S theta = -gradient and theta^T S theta = 0; with frozen ones neither."""
    model, batch = normalised()
    graph = find_groups(model, batch[0])
    convolution = [model[0], model[6]]
    thetas = [layer.weight.detach().flatten(1) for layer in convolution]
    images = reference_product(model, graph, batch, functional.cross_entropy, thetas, batch_statistics)
    model.train(batch_statistics)
    functional.cross_entropy(model(batch[0]), batch[1]).backward()
    for layer, theta, image in zip(convolution, thetas, images, strict=True):
        gradient = layer.weight.grad.flatten(1)
        assert ((image + gradient).norm() < 1e-12 * gradient.norm()) == batch_statistics
        assert ((theta * image).sum(1).abs().max() < 1e-14) == batch_statistics


def test_product_follows_the_loss() -> None:
    """T16: S is linear in the loss, and another loss has another S."""
    model, batch = normalised()
    graph = find_groups(model, batch[0])

    def product(loss: Loss) -> Tensor:
        return SplittingProduct(model, graph, [batch], loss)([double(4, 18), double(5, 4)])[0]

    plain = product(functional.cross_entropy)
    torch.testing.assert_close(product(lambda scores, target: 3 * functional.cross_entropy(scores, target)), 3 * plain)
    smoothed = product(lambda scores, target: functional.cross_entropy(scores, target, label_smoothing=0.1))
    assert (smoothed - plain).norm() > 0.01 * plain.norm()
