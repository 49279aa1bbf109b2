"""New channels with the steepest slope at their incoming weights (Evci et al., "GradMax", arXiv 2201.05125), and the step down it.

With its incoming weights at zero, a new channel's slope there is G^T c for outgoing weights c, with

    G = E[ dL/d(what the consumer writes)  x  d(channel)/d(its row) ]     [outgoing weights, d]

so k channels of given lengths of c are steepest along the top k left singular vectors u of G, and the slope lies along the right ones,
v.  G is never formed: a probe's slopes give G v and G^T c for all channels of a group at once, and a few rounds of orthogonal iteration
their singular vectors.

Each candidate is a pair, read with opposite signs, so that nothing changes at step 0 whatever the activation makes of a zero row (the
paper needs one that is zero there).  Their rows are plus and minus ``step`` times the parent's length along v; that is the step that
the slope is for, without which nothing is gained.  One line search shortens how they all are read; what they gain together is then
shared out by their first-order gains, step * length * 2 sigma, so that gains add up and small steps follow the first-order law.

A row of zeros has no variance to divide by: groups with norms get no candidates.  So do groups with depthwise passengers, where every
channel has a G of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from growth.groups import ChannelGroup
from growth.offspring import Offspring, nobody, theta
from growth.operators.base import Candidates, Evidence, Passes, in_nats
from growth.operators.probe import Probe, Reads, outgoing
from growth.operators.stride import SHORTER, line_search

ROUNDING = 1e-4  # of the largest singular value; directions below it are those of rounding errors
NUDGE = 1e-3  # of the parent's weights, where slopes are linear in rows and in outgoing weights


@dataclass(frozen=True, slots=True)
class GradMax:
    """An operator; ``rounds`` of orthogonal iteration."""

    rounds: int = 4
    claims_gain: ClassVar[bool] = True
    uses_scores: ClassVar[bool] = False
    adds: ClassVar[int] = 2

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]:
        numbers = [number for number, group in enumerate(evidence.graph.groups) if not group.passengers]
        if not numbers:
            return []
        slopes = _Slopes(evidence, numbers)
        right = slopes.start(generator)
        for _ in range(self.rounds):
            left = slopes.forward(right)
            right = slopes.backward([_orthonormal(matrix) for matrix in left])
            right = [_orthonormal(matrix) for matrix in right]
        left = slopes.forward(right)
        return _settled(evidence, [slopes.pair(at, left[at], right[at], step) for at in range(len(numbers))])

    def passes(self, fan_in: int) -> Passes:  # noqa: ARG002
        """Slopes cost three passes at twice the width (four times the compute), the line search passes at three times the width."""
        return Passes(3 * 4 * (3 * self.rounds + 2) + 9 * (len(SHORTER) + 1), 3 * 9)


class _Slopes:
    """G of some groups, as an operator on k rows [k, d] or outgoing weights [k, o] each; k is at most C, d and o."""

    def __init__(self, evidence: Evidence, numbers: Sequence[int]) -> None:
        self.evidence, self.numbers = evidence, numbers
        self.groups: list[ChannelGroup] = [evidence.graph.groups[number] for number in numbers]
        self.thetas = [theta(evidence.model, group) for group in self.groups]
        present = outgoing(evidence.model, evidence.graph)
        self.present = [present[number] for number in numbers]
        self.reads = [_flat(read_by) for read_by in self.present]  # [C, o]
        self.counts = [min(*rows.shape, reads.shape[1]) for rows, reads in zip(self.thetas, self.reads, strict=True)]
        self._nothing: Reads = [tuple(read[:0] for read in read_by) for read_by in present]

    def start(self, generator: torch.Generator) -> list[Tensor]:
        return [
            _orthonormal(torch.randn(k, rows.shape[1], generator=generator, dtype=torch.float64, device=generator.device).to(rows))
            for k, rows in zip(self.counts, self.thetas, strict=True)
        ]

    def forward(self, right: Sequence[Tensor]) -> list[Tensor]:
        """G v for every row v, from the slopes at outgoing weights with rows a little to both sides of zero."""
        nudges = [NUDGE * rows.norm(dim=1).mean() for rows in self.thetas]
        there, back = (
            self._probe([sign * nudge * v for nudge, v in zip(nudges, right, strict=True)]).slopes(self._unread(), 0.0).reads
            for sign in (1, -1)
        )
        return [(_flat(there[number]) - _flat(back[number])) / (2 * nudge) for number, nudge in zip(self.numbers, nudges, strict=True)]

    def backward(self, left: Sequence[Tensor]) -> list[Tensor]:
        """G^T c for every c, up to a factor, from the slopes at rows of zeros read by a little of c."""
        reads = self._unread()
        for number, c, present in zip(self.numbers, left, self.present, strict=True):
            reads[number] = _shaped(NUDGE * c, present)
        slopes = self._probe([torch.zeros_like(rows[:k]) for rows, k in zip(self.thetas, self.counts, strict=True)]).slopes(reads, 1.0)
        return [slopes.rows[number] for number in self.numbers]

    def pair(self, at: int, left: Tensor, right: Tensor, step: float) -> Candidates:
        """The candidates of a group, with their first-order gains."""
        k, rows, reads = self.counts[at], self.thetas[at], self.reads[at]
        sigma, length = left.norm(dim=1, keepdim=True), reads[:k].norm(dim=1, keepdim=True)
        r = step * rows[:k].norm(dim=1, keepdim=True) * right
        moves = torch.stack([torch.zeros_like(r), r - rows[:k], -r - rows[:k]], 1)
        shares = torch.tensor([1.0, 0.0, 0.0]).to(rows).expand(k, 3)
        one = _shaped(-length * left / sigma.clamp_min(torch.finfo(left.dtype).tiny), self.present[at])
        pairs = tuple(torch.cat([read, -read], 1) for read in one)
        gain = 2 * step * rows[:k].norm(dim=1) * (length * sigma).squeeze(1)
        candidates = Candidates("gradmax", Offspring(self.numbers[at], torch.arange(k), moves, shares, pairs), in_nats(gain))
        return candidates.take((sigma.flatten() > ROUNDING * sigma.max()).nonzero().flatten().cpu())

    def _probe(self, rows: Sequence[Tensor]) -> Probe:
        births = [nobody(self.evidence.model, group, number) for number, group in enumerate(self.evidence.graph.groups)]
        for number, wanted, present in zip(self.numbers, rows, self.thetas, strict=True):
            k = len(wanted)
            moves = torch.stack([torch.zeros_like(wanted), wanted - present[:k]], 1)
            births[number] = Offspring(number, torch.arange(k), moves, torch.tensor([1.0, 0.0]).to(present).expand(k, 2))
        return Probe(self.evidence, births)

    def _unread(self) -> Reads:
        reads = list(self._nothing)
        for number, k, present in zip(self.numbers, self.counts, self.present, strict=True):
            reads[number] = tuple(torch.zeros_like(read[:k]) for read in present)
        return reads


def _settled(evidence: Evidence, candidates: Sequence[Candidates]) -> list[Candidates]:
    """Read as the line search says, with the gains that add up to what it found."""
    offspring = [one.offspring for one in candidates]
    stride = line_search(evidence.model, evidence.graph, offspring, evidence.batches, evidence.loss, SHORTER)
    first = sum(float(one.gain.sum()) for one in candidates if one.gain is not None)
    scale, part = (stride.scale, -stride.change / first) if stride.change < 0 < first else (0.0, 0.0)
    return [
        replace(one, offspring=replace(one.offspring, reads=tuple(scale * read for read in one.offspring.reads)), gain=part * one.gain)
        for one in candidates
        if one.gain is not None
    ]


def _flat(reads: Sequence[Tensor]) -> Tensor:
    return torch.cat([read.flatten(1) for read in reads], 1)


def _shaped(flat: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inverse of ``_flat``."""
    parts = torch.split(flat, [read[0].numel() for read in like], dim=1)
    return tuple(part.reshape(len(flat), *read.shape[1:]) for part, read in zip(parts, like, strict=True))


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows, the first along the first; [k, d] with k <= d."""
    q: Tensor = torch.linalg.qr(rows.double().mT)[0]
    return q.mT.to(rows)
