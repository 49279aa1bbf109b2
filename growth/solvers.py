"""The lowest eigenvalue (splitting index) and eigenvector (splitting direction) of every channel's splitting matrix, from products S v.

One product serves all channels of all groups, so all of them advance together.

- ``dense``: S itself, column by column, and its eigendecomposition.  The reference; d products.
- ``lanczos``: the best direction in a Krylov space of ``steps`` dimensions; the whole space, so exact, where d is small.  Default.
- ``extremes``: as ``lanczos``, with the highest pair beside the lowest, for signed splits.
- ``rayleigh``: stochastic descent of the Rayleigh quotient, one minibatch per step (Wang et al., arXiv 1910.03103).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

EXACT_BELOW = 6  # a space of at most this many dimensions is searched whole
BREAKDOWN = 1e-10  # what is left of a vector after orthogonalisation, relative to it, that counts as nothing


class Operator(Protocol):
    """A batch-wise mean of symmetric matrices, one per channel: ``growth.splitting.SplittingProduct``."""

    def zeros(self) -> list[Tensor]: ...

    def __call__(self, v: list[Tensor]) -> list[Tensor]: ...

    def on_batch(self, number: int, v: list[Tensor]) -> list[Tensor]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Eigenpairs:
    """For the channels of one group: index lambda [C], unit direction v [C, d], and residual ||S v - lambda v|| [C]."""

    index: Tensor
    direction: Tensor
    residual: Tensor


Solver = Callable[[Operator, torch.Generator], list[Eigenpairs]]


def dense(product: Operator, generator: torch.Generator) -> list[Eigenpairs]:  # noqa: ARG001  # a solver, if without chance
    """Exact, at the price of d products and d^2 numbers per channel."""
    zeros = product.zeros()
    matrices = [zero.new_zeros(*zero.shape, zero.shape[1], dtype=torch.float64) for zero in zeros]  # [C, d, d]
    for column in range(max(zero.shape[1] for zero in zeros)):
        basis = [zero.clone() for zero in zeros]
        for vector in basis:
            vector[:, column : column + 1] = 1  # nothing where d is smaller
        for matrix, image in zip(matrices, product(basis), strict=True):
            if column < matrix.shape[2]:
                matrix[:, :, column] = image
    return [_lowest_of(matrix, zero) for matrix, zero in zip(matrices, zeros, strict=True)]


def _lowest_of(matrix: Tensor, like: Tensor) -> Eigenpairs:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    index, direction = values[:, 0], vectors[:, :, 0]
    residual = ((matrix @ direction.unsqueeze(2)).squeeze(2) - index.unsqueeze(1) * direction).norm(dim=1)
    return Eigenpairs(index.to(like), direction.to(like), residual.to(like))


def lanczos(product: Operator, generator: torch.Generator, steps: int = 5) -> list[Eigenpairs]:
    """The lowest Ritz pairs of ``steps`` dimensions (all d of them where d <= 6), with their true residuals."""
    return [space.pair(0) for space in _spaces(product, generator, steps)]


def extremes(product: Operator, generator: torch.Generator, steps: int = 5) -> list[tuple[Eigenpairs, Eigenpairs]]:
    """As ``lanczos``, from the same products: per group the lowest and the highest Ritz pairs (the same one where d is 1)."""
    return [(space.pair(0), space.pair(-1)) for space in _spaces(product, generator, steps)]


def _spaces(product: Operator, generator: torch.Generator, steps: int) -> list[_Krylov]:
    if steps < 1:
        raise ValueError(f"lanczos got {steps} steps; it needs at least 1")
    spaces = [_Krylov(zero, steps, generator) for zero in product.zeros()]
    for _ in range(max(space.size for space in spaces)):
        for space, image in zip(spaces, product([space.head() for space in spaces]), strict=True):
            space.extend(image)
    return spaces


@dataclass(slots=True)
class _Krylov:
    """An orthonormal basis per channel, grown by the images of its last vectors, in float64 whatever the operator's type is."""

    zero: Tensor  # [C, d]
    steps: int
    generator: torch.Generator
    basis: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._add(self._random())

    @property
    def size(self) -> int:
        d = self.zero.shape[1]
        return d if d <= EXACT_BELOW else min(d, self.steps)

    def head(self) -> Tensor:
        """The vector whose image is wanted next; zero when the space is complete."""
        return self.basis[-1].to(self.zero) if len(self.images) < self.size else self.zero

    def extend(self, image: Tensor) -> None:
        if len(self.images) < self.size:
            self.images.append(image.double())
            if len(self.basis) < self.size:
                self._add(self.images[-1])

    def _add(self, vector: Tensor) -> None:
        """Append the part of ``vector`` outside the space; where none is left (S has low rank), a random one from outside."""
        outside = self._outside(vector)
        nothing = outside.norm(dim=1) <= BREAKDOWN * vector.norm(dim=1)
        if nothing.any():
            outside = torch.where(nothing.unsqueeze(1), self._outside(self._random()), outside)
        self.basis.append(_unit(outside))

    def _outside(self, vector: Tensor) -> Tensor:
        for _ in range(2):  # once leaves rounding errors of the size of what it removed
            for known in self.basis:
                vector = vector - (vector * known).sum(1, keepdim=True) * known
        return vector

    def _random(self) -> Tensor:
        drawn = torch.randn(self.zero.shape, generator=self.generator, dtype=torch.float64, device=self.generator.device)
        return drawn.to(self.zero.device)

    def pair(self, number: int) -> Eigenpairs:
        """The Ritz pair of this number, counted from the lowest."""
        basis, images = torch.stack(self.basis, 1), torch.stack(self.images, 1)  # [C, K, d]
        projected = basis @ images.mT
        values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
        index, mix = values[:, number], vectors[:, None, :, number]  # [C], [C, 1, K]
        direction, image = (mix @ basis).squeeze(1), (mix @ images).squeeze(1)
        residual = (image - index.unsqueeze(1) * direction).norm(dim=1)
        return Eigenpairs(index.to(self.zero), direction.to(self.zero), residual.to(self.zero))


@dataclass(frozen=True, slots=True)
class RayleighSettings:
    """The published settings for CIFAR: RMSprop, and the learning rate times ``decay`` at every second epoch (2, 4, ...)."""

    epochs: int = 10
    learning_rate: float = 1e-3
    alpha: float = 0.9
    momentum: float = 0.9
    decay: float = 0.2
    decay_every: int = 2
    start: float = 0.1  # v begins uniform in (-start, start), then normalised


def rayleigh(product: Operator, generator: torch.Generator, settings: RayleighSettings | None = None) -> list[Eigenpairs]:
    """Index and direction are the means over the last epoch's minibatches, as published; one more product gives the residual."""
    settings = settings or RayleighSettings()
    v = [_uniform(zero, settings.start, generator) for zero in product.zeros()]
    optimizer = torch.optim.RMSprop(v, lr=settings.learning_rate, alpha=settings.alpha, momentum=settings.momentum)
    for epoch in range(1, settings.epochs + 1):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * settings.decay ** (epoch // settings.decay_every)
        quotients = [torch.zeros_like(part[:, 0]) for part in v]
        iterates = [torch.zeros_like(part) for part in v]
        for number in range(len(product)):
            for part, image, quotient, iterate in zip(v, product.on_batch(number, v), quotients, iterates, strict=True):
                current = (part * image).sum(1)
                part.grad = 2 * (image - current.unsqueeze(1) * part)  # of the quotient, at a unit vector
                quotient.add_(current / len(product))
                iterate.add_(part)
            optimizer.step()
            for part in v:
                part.div_(part.norm(dim=1, keepdim=True))
    directions = [_unit(iterate) for iterate in iterates]
    return [
        Eigenpairs(quotient, direction, (image - quotient.unsqueeze(1) * direction).norm(dim=1))
        for quotient, direction, image in zip(quotients, directions, product(directions), strict=True)
    ]


def _uniform(zero: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(zero.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return _unit((2 * limit * drawn - limit).to(zero))


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm(dim=1, keepdim=True)
    return unit


SOLVERS: dict[str, Solver] = {"dense": dense, "lanczos": lanczos, "rayleigh": rayleigh}
