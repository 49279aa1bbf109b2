"""The lowest eigenvalue (splitting index) and eigenvector (splitting direction) of every channel's splitting matrix, from products S v.

One product serves all channels of all groups, so all of them advance together.

- ``dense``: S itself, column by column, and its eigendecomposition.  The reference; d products.
- ``lanczos``: the best direction in a Krylov space of few dimensions; the whole space, so exact, where d is small.
- ``streaming``: Lanczos on some of the batches, then descent along the others, each prepared and used once.
- ``automatic``: ``lanczos`` where prepared batches stay in memory, ``streaming`` where they don't.  Default.
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
STREAM_FROM = 4  # of the batches, one in so many is for Lanczos
AVERAGED = 0.75  # of the stream, at its end
BREAKDOWN = 1e-10  # what is left of a vector after orthogonalisation, relative to it, that counts as nothing


class Operator(Protocol):
    """A batch-wise mean of symmetric matrices, one per channel: ``growth.splitting.SplittingProduct``."""

    def zeros(self) -> list[Tensor]: ...

    def __call__(self, v: list[Tensor]) -> list[Tensor]: ...

    def on_batch(self, number: int, v: list[Tensor]) -> list[Tensor]: ...

    def __len__(self) -> int: ...

    @property
    def fits(self) -> bool:
        """Whether all batches stay prepared, so that a further product with one of them is cheap."""


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


def krylov_size(d: int) -> int:
    """Dimensions that are enough for d weights: samples limit a direction sooner than products do.  Above 256 not measured."""
    return d if d <= EXACT_BELOW else 4 if d <= 32 else 5 if d <= 256 else 8


def automatic(product: Operator, generator: torch.Generator) -> list[Eigenpairs]:
    """By memory."""
    return lanczos(product, generator) if product.fits else streaming(product, generator)


def lanczos(product: Operator, generator: torch.Generator, steps: int | None = None) -> list[Eigenpairs]:
    """The lowest Ritz pairs of ``steps`` dimensions (``krylov_size`` of them by default), with their true residuals."""
    return [space.pair(0) for space in _spaces(product, generator, steps)]


def extremes(product: Operator, generator: torch.Generator, steps: int | None = None) -> list[tuple[Eigenpairs, Eigenpairs]]:
    """As ``lanczos``, from the same products: per group the lowest and the highest Ritz pairs (the same one where d is 1)."""
    return [(space.pair(0), space.pair(-1)) for space in _spaces(product, generator, steps)]


def _spaces(product: Operator, generator: torch.Generator, steps: int | None) -> list[_Krylov]:
    if steps is not None and steps < 1:
        raise ValueError(f"lanczos got {steps} steps; it needs at least 1")
    spaces = [_Krylov(zero, krylov_size(zero.shape[1]) if steps is None else steps, generator) for zero in product.zeros()]
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


@dataclass(frozen=True, slots=True)
class _Part:
    """Some batches of an operator."""

    whole: Operator
    count: int
    fits: bool = True

    def zeros(self) -> list[Tensor]:
        return self.whole.zeros()

    def on_batch(self, number: int, v: list[Tensor]) -> list[Tensor]:
        return self.whole.on_batch(number, v)

    def __len__(self) -> int:
        return self.count

    def __call__(self, v: list[Tensor]) -> list[Tensor]:
        images = [self.on_batch(number, v) for number in range(self.count)]
        return [torch.stack(group).mean(0) for group in zip(*images, strict=True)]


def streaming(product: Operator, generator: torch.Generator, learning_rate: float = 3e-3) -> list[Eigenpairs]:
    """Lanczos on the first batches, then RMSprop down the quotient, its rate falling to zero: one product with each of the others.

    Quotients are taken before each update, on a batch that the direction has not seen, so the index is not optimistic.  Index and
    direction are means over the last part of the stream, and so is the image behind the residual.
    """
    start = max(1, len(product) // STREAM_FROM)
    found = lanczos(_Part(product, start), generator)
    if start == len(product):
        return found
    v = [pairs.direction.clone() for pairs in found]
    optimizer = torch.optim.RMSprop(v, lr=learning_rate, alpha=0.9, momentum=0.9)
    steps = len(product) - start
    kept = max(1, round(AVERAGED * steps))
    means = [tuple(torch.zeros_like(part, dtype=torch.float64) for _ in range(2)) for part in v]  # of v, and of S v
    quotients = [torch.zeros_like(part[:, 0], dtype=torch.float64) for part in v]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        for part, image, (iterates, images), quotient in zip(v, product.on_batch(start + step, v), means, quotients, strict=True):
            current = (part * image).sum(1)
            part.grad = image - current.unsqueeze(1) * part
            if step >= steps - kept:
                iterates.add_(part, alpha=1 / kept)
                images.add_(image, alpha=1 / kept)
                quotient.add_(current, alpha=1 / kept)
        optimizer.step()
        for part in v:
            part.div_(part.norm(dim=1, keepdim=True))
    pairs = []
    for part, quotient, (iterates, images) in zip(v, quotients, means, strict=True):
        length = iterates.norm(dim=1, keepdim=True)
        residual = (images - quotient.unsqueeze(1) * iterates) / length
        pairs.append(Eigenpairs(quotient.to(part), (iterates / length).to(part), residual.norm(dim=1).to(part)))
    return pairs


def _uniform(zero: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(zero.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return _unit((2 * limit * drawn - limit).to(zero))


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm(dim=1, keepdim=True)
    return unit


SOLVERS: dict[str, Solver] = {"dense": dense, "lanczos": lanczos, "streaming": streaming, "rayleigh": rayleigh}
