"""New channels that go down the loss together at once: random rows bent towards what the loss lacks, outgoing weights against its slope.

After Wu, Liu, Stone, Liu, "Firefly Neural Architecture Descent" (arXiv 2102.08574): one new channel beside every present one, all of
them descending jointly; then each is scored by its integrated slope along the way that all of them went,

    gain_k = - <reads_k, 1/n sum_z dL/dreads_k at (2 z - 1) / (2 n) of the way>,

and these gains add up to what all of them gain together, up to the error of n midpoints.  For small steps that is the first-order
law.  The way is at most ``step`` times how strongly the parent is read, and one line search for all shortens it: many new channels
correct the same error, and too far together they overshoot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from growth.offspring import Offspring, theta
from growth.operators.base import Candidates, Evidence, Passes, in_nats
from growth.operators.newborn import newborn, with_statistics
from growth.operators.probe import Probe, Reads, outgoing
from growth.operators.stride import SHORTER

NUDGE = 1e-3  # of a step, where the loss is still linear in the outgoing weights


@dataclass(frozen=True, slots=True)
class Firefly:
    """An operator: ``descents`` of the rows, each turning them by ``turn`` of their length; ``midpoints`` of the integrated slope."""

    descents: int = 1
    turn: float = 0.5
    midpoints: int = 3
    claims_gain: ClassVar[bool] = True
    uses_scores: ClassVar[bool] = False
    adds: ClassVar[int] = 1

    def propose(self, evidence: Evidence, step: float, generator: torch.Generator) -> list[Candidates]:
        births = with_statistics(evidence, newborn(evidence, generator))
        for _ in range(self.descents):
            births = with_statistics(evidence, self._turned(evidence, births))
        probe = Probe(evidence, births)
        reads = downhill(evidence, probe, step)
        scale = _line_search(probe, reads)
        gains = self._integrated(probe, reads, scale)
        return [
            Candidates("firefly", replace(birth, reads=tuple(scale * read for read in read_by)), gain)
            for birth, read_by, gain in zip(births, reads, gains, strict=True)
        ]

    def passes(self, fan_in: int) -> Passes:  # noqa: ARG002
        """At twice the width everywhere a pass costs four times as much, and slopes cost three passes."""
        settle, slopes = 4, 3 * 4
        scoring = settle + self.descents * (settle + 2 * slopes) + slopes + 4 * (len(SHORTER) + 1) + self.midpoints * slopes
        return Passes(scoring, slopes)

    def _turned(self, evidence: Evidence, births: Sequence[Offspring]) -> list[Offspring]:
        """Rows turned against the slope that they see once they are read, their length kept."""
        probe = Probe(evidence, births)
        slopes = probe.slopes(downhill(evidence, probe, NUDGE), 1.0).rows
        turned = []
        for birth, slope, group in zip(births, slopes, evidence.graph.groups, strict=True):
            old = theta(evidence.model, group)
            rows = old + birth.moves[:, 1]
            length = rows.norm(dim=1, keepdim=True)
            down = rows - self.turn * length * _unit(slope)
            moves = torch.stack([birth.moves[:, 0], length * _unit(down) - old], 1)
            turned.append(replace(birth, moves=moves, statistics=()))
        return turned

    def _integrated(self, probe: Probe, reads: Reads, scale: float) -> list[Tensor]:
        """By group, [n] in nats."""
        gains = [in_nats(torch.zeros(len(read_by[0]))) for read_by in reads]
        if scale:
            for number in range(self.midpoints):
                slopes = probe.slopes(reads, scale * (2 * number + 1) / (2 * self.midpoints)).reads
                for gain, slope_by, read_by in zip(gains, slopes, reads, strict=True):
                    for slope, read in zip(slope_by, read_by, strict=True):
                        gain.sub_(in_nats((slope * read).flatten(1).sum(1)), alpha=scale / self.midpoints)
        return gains


def downhill(evidence: Evidence, probe: Probe, step: float) -> Reads:
    """Outgoing weights against their slope, ``step`` times as long as those of the parent."""
    present = outgoing(evidence.model, evidence.graph)
    none = [tuple(torch.zeros_like(read) for read in read_by) for read_by in present]
    slopes = probe.slopes(none, 0.0).reads
    return [
        tuple(-step * _ratio(present_by, slope_by).view(-1, *[1] * (slope.dim() - 1)) * slope for slope in slope_by)
        for present_by, slope_by in zip(present, slopes, strict=True)
    ]


def _line_search(probe: Probe, reads: Reads) -> float:
    """The scale of the lowest loss, 0 where none is lower than without."""
    losses = {scale: probe.loss(reads, scale) for scale in (0.0, *reversed(SHORTER))}
    return min(losses, key=losses.__getitem__)


def _ratio(present: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """How much longer the outgoing weights of each channel are than their slope, [n]; 0 where there is no slope."""
    length, steepness = (torch.cat([part.flatten(1) for part in parts], 1).norm(dim=1) for parts in (present, slopes))
    return torch.where(steepness > 0, length / steepness, 0.0)


def _unit(rows: Tensor) -> Tensor:
    """Each row by its length; zeros stay."""
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return unit
