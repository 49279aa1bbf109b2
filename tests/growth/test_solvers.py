"""Every solver against eigendecompositions of known matrices; Lanczos where the theory is sharp: small spaces, low rank, zero."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from growth.solvers import EXACT_BELOW, SOLVERS, RayleighSettings, automatic, dense, krylov_size, lanczos, rayleigh, streaming

torch.set_num_threads(1)


@dataclass
class Matrices:
    """An operator with known matrices: per batch, per group, [C, d, d]."""

    batches: list[list[Tensor]]
    products: int = 0
    fits: bool = True

    def zeros(self) -> list[Tensor]:
        return [matrix.new_zeros(matrix.shape[:2]) for matrix in self.batches[0]]

    def on_batch(self, number: int, v: list[Tensor]) -> list[Tensor]:
        return [(matrix @ part.unsqueeze(2)).squeeze(2) for matrix, part in zip(self.batches[number], v, strict=True)]

    def __call__(self, v: list[Tensor]) -> list[Tensor]:
        self.products += 1
        images = [self.on_batch(number, v) for number in range(len(self))]
        return [torch.stack(group).mean(0) for group in zip(*images, strict=True)]

    def __len__(self) -> int:
        return len(self.batches)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(channels: int, d: int, seed: int = 0) -> Tensor:
    matrix = torch.randn(channels, d, d, generator=seeded(seed), dtype=torch.float64)
    return matrix + matrix.mT


def lowest(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values[:, 0], vectors[:, :, 0]


@pytest.mark.parametrize("name", SOLVERS)
def test_contract(name: str) -> None:
    """Shapes, unit directions, true residuals, an index that no solver can push below the lowest eigenvalue, same chance same result."""
    groups = [symmetric(3, 4), symmetric(2, 9, 1), torch.zeros(2, 3, 3, dtype=torch.float64)]
    operator = Matrices([groups, groups])
    found, again = SOLVERS[name](operator, seeded()), SOLVERS[name](operator, seeded())
    for matrix, pairs, same in zip(groups, found, again, strict=True):
        assert (pairs.index.shape, pairs.direction.shape, pairs.residual.shape) == (matrix.shape[:1], matrix.shape[:2], matrix.shape[:1])
        torch.testing.assert_close(pairs.direction.norm(dim=1), torch.ones(len(matrix), dtype=torch.float64))
        image = (matrix @ pairs.direction.unsqueeze(2)).squeeze(2)
        torch.testing.assert_close(pairs.residual, (image - pairs.index.unsqueeze(1) * pairs.direction).norm(dim=1), atol=1e-9, rtol=1e-6)
        assert (pairs.index >= lowest(matrix)[0] - 1e-9).all()
        assert torch.equal(pairs.direction, same.direction)


@given(d=st.integers(1, 12), rank=st.integers(0, 12), channels=st.integers(1, 3), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_lanczos_over_the_whole_space_is_dense(d: int, rank: int, channels: int, seed: int) -> None:
    """Also where S has low rank, so that a Krylov space closes early and has to be left by chance."""
    factor = torch.randn(channels, d, min(d, rank), generator=seeded(seed), dtype=torch.float64)
    signs = torch.randn(channels, 1, min(d, rank), generator=seeded(seed + 1), dtype=torch.float64).sign()
    operator = Matrices([[(factor * signs) @ factor.mT]])
    (exact,), (found,) = dense(operator, seeded()), lanczos(operator, seeded(seed), steps=d)
    scale = operator.batches[0][0].norm() + 1e-30
    torch.testing.assert_close(found.index, exact.index, atol=float(1e-9 * scale), rtol=0)
    assert (found.residual <= 1e-8 * scale).all()


def test_small_spaces_are_searched_whole() -> None:
    groups = [symmetric(4, d, d) for d in (1, 2, EXACT_BELOW, 30)]
    operator = Matrices([groups])
    found = lanczos(operator, seeded(), steps=3)
    assert operator.products == EXACT_BELOW
    for matrix, pairs in zip(groups[:3], found, strict=False):
        torch.testing.assert_close(pairs.index, lowest(matrix)[0])
    assert (found[3].index > lowest(groups[3])[0]).all()


def test_lanczos_improves_with_every_step_and_its_residual_bounds_the_error() -> None:
    matrix = symmetric(5, 40)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    previous = torch.full((5,), torch.inf, dtype=torch.float64)
    for steps in (2, 4, 8, 16, 40):
        (pairs,) = lanczos(Matrices([[matrix]]), seeded(), steps)
        assert (pairs.index <= previous + 1e-9).all()
        nearest = (eigenvalues - pairs.index.unsqueeze(1)).abs().amin(1)
        assert (nearest <= pairs.residual + 1e-9).all()
        previous = pairs.index
    torch.testing.assert_close(previous, eigenvalues[:, 0])


def test_orthogonal_to_rounding_in_float32() -> None:
    """Eigenvalues over six orders of magnitude: without a second orthogonalisation the basis degenerates."""
    basis = torch.linalg.qr(torch.randn(30, 30, generator=seeded(), dtype=torch.float64))[0]
    matrix = (basis * torch.logspace(-3, 3, 30, dtype=torch.float64).neg()) @ basis.T
    (pairs,) = lanczos(Matrices([[matrix.float().unsqueeze(0)]]), seeded(), steps=30)
    assert pairs.index.dtype == torch.float32
    torch.testing.assert_close(pairs.index, torch.tensor([-1e3]), rtol=1e-5, atol=0)


def test_zero_matrix_has_index_zero() -> None:
    (pairs,) = lanczos(Matrices([[torch.zeros(3, 20, 20, dtype=torch.float64)]]), seeded())
    assert not pairs.index.any()
    assert not pairs.residual.any()


def test_rayleigh_descends_to_the_lowest_eigenvalue() -> None:
    """Minibatch matrices scatter around their mean; enough small steps find its lowest eigenvector, and the index is unbiased."""
    mean = symmetric(3, 8)
    noise = [0.1 * symmetric(3, 8, seed) for seed in range(1, 9)]
    centre = torch.stack(noise).mean(0)
    operator = Matrices([[mean + one - centre] for one in noise])
    (pairs,) = rayleigh(operator, seeded(), RayleighSettings(epochs=160, learning_rate=1e-2, decay=0.8, decay_every=8))
    value, vector = lowest(mean)
    torch.testing.assert_close(pairs.index, value, rtol=1e-3, atol=0)
    assert ((pairs.direction * vector).sum(1).abs() > 0.999).all()


def test_rayleigh_with_the_published_settings_takes_the_published_steps() -> None:
    """One epoch, one batch, by hand: RMSprop's first step divides the gradient by its own size over sqrt(1 - alpha)."""
    matrix = symmetric(1, 3)
    start = 0.2 * torch.rand(1, 3, generator=seeded(), dtype=torch.float64) - 0.1
    v = start / start.norm()
    (pairs,) = rayleigh(Matrices([[matrix]]), seeded(), RayleighSettings(epochs=1))
    torch.testing.assert_close(pairs.index, torch.einsum("ci,cij,cj->c", v, matrix, v))
    torch.testing.assert_close(pairs.direction, v)
    (second,) = rayleigh(Matrices([[matrix]]), seeded(), RayleighSettings(epochs=2))
    image = (matrix @ v.unsqueeze(2)).squeeze(2)
    gradient = 2 * (image - (v * image).sum() * v)
    moved = v - 1e-3 * gradient / (gradient.abs() * 0.1**0.5 + 1e-8)
    torch.testing.assert_close(second.direction, moved / moved.norm())


def test_lanczos_needs_a_step() -> None:
    with pytest.raises(ValueError, match="0 steps"):
        lanczos(Matrices([[symmetric(1, 3)]]), seeded(), steps=0)


@pytest.mark.parametrize("d", [27, 64])
def test_lanczos_needs_fewer_products_than_rayleigh_descent(d: int) -> None:
    """T12: for 99 % of the lowest eigenvalue of a random symmetric matrix, about 10 of them against about 100."""
    matrix = symmetric(4, d)
    bound = 0.99 * lowest(matrix)[0]
    (pairs,) = lanczos(Matrices([[matrix]]), seeded(), steps=20)
    assert (pairs.index <= bound).all()
    (pairs,) = rayleigh(Matrices([[matrix]]), seeded(), RayleighSettings(epochs=20, decay=1.0))
    assert (pairs.index > bound).any()
    (pairs,) = rayleigh(Matrices([[matrix]]), seeded(), RayleighSettings(epochs=300, decay=1.0))
    assert (pairs.index <= bound).all()


def noisy(matrix: Tensor, batches: int, seed: int) -> list[list[Tensor]]:
    """Batches whose mean is the matrix but for what is left of their noise."""
    noise = [symmetric(*matrix.shape[:2], seed + number) for number in range(batches)]
    return [[matrix + 4 * part] for part in noise]


def test_a_stream_finds_better_directions_than_its_start_and_an_index_that_is_not_optimistic() -> None:
    """On 64 noisy batches of which Lanczos saw 16; judged on the matrix itself."""
    matrix = symmetric(6, 24)
    batches = noisy(matrix, 64, 100)
    (started,), (streamed,) = lanczos(Matrices(batches[:16]), seeded()), streaming(Matrices(batches), seeded(), learning_rate=1e-2)

    def truth(v: Tensor) -> Tensor:
        return ((matrix @ v.unsqueeze(2)).squeeze(2) * v).sum(1)

    assert truth(streamed.direction).sum() < truth(started.direction).sum()
    optimism = [float((pairs.index - truth(pairs.direction)).sum() / truth(pairs.direction).sum()) for pairs in (started, streamed)]
    assert optimism[0] > 0.05
    assert abs(optimism[1]) < 0.5 * optimism[0]


def test_the_solver_follows_the_memory() -> None:
    batches = noisy(symmetric(2, 12), 8, 0)
    fitting, streamed = Matrices(batches), Matrices(batches, fits=False)
    assert torch.equal(automatic(fitting, seeded())[0].direction, lanczos(fitting, seeded())[0].direction)
    assert torch.equal(automatic(streamed, seeded())[0].direction, streaming(streamed, seeded())[0].direction)


def test_one_batch_leaves_nothing_to_stream() -> None:
    one = Matrices([[symmetric(2, 12)]])
    assert torch.equal(streaming(one, seeded())[0].direction, lanczos(one, seeded())[0].direction)


def test_spaces_grow_with_the_weights() -> None:
    assert [krylov_size(d) for d in (1, 6, 7, 32, 33, 256, 257)] == [1, 6, 4, 4, 5, 5, 8]
