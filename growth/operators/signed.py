"""Signed splits: offspring may be read with negative shares, so that a positive index can be used as well (Wu, Ye, Lei, Lee, Liu,
"Steepest Neural Architecture Descent", arXiv 2003.10392).

Shares w_i and moves eps delta_i of unit parents' norm change the loss by eps^2 / 2 sum_i w_i delta_i^T S delta_i, where

    sum_i w_i = 1,    sum_i |w_i| <= c,    sum_i w_i delta_i = 0,    ||delta_i|| <= 1.

With the extreme eigenpairs (low, v) and (high, u) of S, the best for two, three and four offspring are the ``Scheme``s below, where
b = (c - 1) / (c + 1); c = 1 leaves the split in two.  Four reach the bound for any number, (c + 1) / 2 low - (c - 1) / 2 high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from growth.offspring import Offspring, theta
from growth.operators.base import Candidates, Evidence, Passes, in_nats
from growth.solvers import Eigenpairs, extremes, krylov_size
from growth.splitting import SplittingProduct


@dataclass(frozen=True, slots=True)
class Scheme:
    """Offspring i has share w_i and goes ``along_lowest[i]`` v + ``along_highest[i]`` u."""

    shares: tuple[float, ...]
    along_lowest: tuple[float, ...]
    along_highest: tuple[float, ...]

    def value(self, lowest: Tensor, highest: Tensor) -> Tensor:
        """sum_i w_i delta_i^T S delta_i, for orthogonal v and u; negative where the loss falls."""
        of_lowest = sum(w * a * a for w, a in zip(self.shares, self.along_lowest, strict=True))
        of_highest = sum(w * a * a for w, a in zip(self.shares, self.along_highest, strict=True))
        return of_lowest * lowest + of_highest * highest

    @property
    def mixes(self) -> bool:
        """It takes both directions, so they must be two."""
        return any(self.along_lowest) and any(self.along_highest)


def schemes(c: float) -> list[Scheme]:
    """All closed forms at this c.  The first offspring, which keeps the parent's place and momentum, has a positive share."""
    more, less, b = (c + 1) / 2, (c - 1) / 2, (c - 1) / (c + 1)
    a = math.sqrt(1 - b * b)
    return [
        Scheme((0.5, 0.5), (1, -1), (0, 0)),
        Scheme((more, -less), (0, 0), (b, 1)),
        Scheme((more / 2, more / 2, -less), (1, -1, 0), (0, 0, 0)),
        Scheme((more, -less / 2, -less / 2), (0, 0, 0), (0, 1, -1)),
        Scheme((more / 2, more / 2, -less), (a, -a, 0), (-b, -b, -1)),
        Scheme((more / 2, more / 2, -less / 2, -less / 2), (1, -1, 0, 0), (0, 0, 1, -1)),
    ]


@dataclass(frozen=True, slots=True)
class Signed:
    """An operator: for each channel the best binary, triplet and quartet.  ``c`` bounds the sum of the shares' sizes."""

    c: float = 3.0
    claims_gain: ClassVar[bool] = True
    uses_scores: ClassVar[bool] = False
    adds: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not 1 <= self.c < math.inf:
            raise ValueError(f"c is {self.c}; the shares' sizes add up to at least 1, so give a finite number from 1 on")

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]:
        product = SplittingProduct(evidence.model, evidence.graph, evidence.batches, evidence.loss, evidence.curvature)
        candidates = []
        for number, (low, high) in enumerate(extremes(product, generator)):
            rows = theta(evidence.model, evidence.graph.groups[number])
            for size in (2, 3, 4):
                fitting = [s for s in schemes(self.c) if len(s.shares) == size and not (s.mixes and rows.shape[1] == 1)]
                if fitting:
                    candidates.append(_best(number, rows, low, high, fitting, step))
        return candidates

    def passes(self, fan_in: int) -> Passes:
        """On fresh images a product for each of a binary's, a triplet's and a quartet's moves."""
        return Passes(3 + 2 * krylov_size(fan_in), 3 + 2 * (2 + 3 + 4))


def _best(number: int, rows: Tensor, low: Eigenpairs, high: Eigenpairs, fitting: Sequence[Scheme], step: float) -> Candidates:
    """For each channel the scheme of the lowest value."""
    values = torch.stack([scheme.value(low.index, high.index) for scheme in fitting])  # [schemes, C]
    value, best = values.min(0)

    def of_best(part: Callable[[Scheme], tuple[float, ...]]) -> Tensor:
        return torch.tensor([part(scheme) for scheme in fitting], dtype=rows.dtype, device=rows.device)[best]  # [C, m]

    lowest, highest = of_best(lambda scheme: scheme.along_lowest), of_best(lambda scheme: scheme.along_highest)
    directions = lowest.unsqueeze(2) * low.direction.unsqueeze(1) + highest.unsqueeze(2) * high.direction.unsqueeze(1)  # [C, m, d]
    norm = rows.norm(dim=1)
    offspring = Offspring(
        number, torch.arange(len(rows)), step * norm.view(-1, 1, 1) * directions, of_best(lambda scheme: scheme.shares)
    )  # fmt: skip
    return Candidates("signed", offspring, -0.5 * step**2 * in_nats(value * norm**2))
