"""What candidates do to the loss on images that they were not fitted to, each on its own and batch by batch, processes sharing the batches.

Offspring that move apart by mu_i with shares w_i, of one parent, change it to second order, through the parent's splitting matrix:

    change = 1/2 sum_i w_i mu_i^T S mu_i          (arXiv 1910.02366, equation 5; arXiv 2003.10392 for other shares than 1/2)

New channels change it to first order, by how they are read; with the slope half-way, all of a set descending together, their changes
add up to that of the set to second order (a set: what one operator proposes for all groups):

    change = <reads, dL/dreads at reads / 2>      (the midpoint of Firefly's integral, arXiv 2102.08574)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growth import distributed
from growth.offspring import Offspring, nobody
from growth.operators.base import Candidates, Evidence
from growth.operators.probe import Probe, Reads, outgoing
from growth.splitting import Batch, SplittingProduct

Floats = NDArray[np.float64]
_T = TypeVar("_T")


def changes(evidence: Evidence, candidates: Sequence[Candidates], batches: Sequence[Batch]) -> list[Floats]:
    """For each set of n candidates [batches, n]: the change of the loss (nats) that each predicts on each batch, in eval mode."""
    offspring, found = [one.offspring for one in candidates], [np.zeros((len(batches), len(one.offspring.parents))) for one in candidates]
    with distributed.same_fate():
        _add_moves(evidence, offspring, batches, found)
        for operator in dict.fromkeys(one.operator for one in candidates):
            reading = [at for at, one in enumerate(candidates) if one.operator == operator and one.offspring.reads]
            for together in _rounds([(offspring[at].group, at) for at in reading]):
                _add_reads(evidence, together, offspring, batches, found)
    return [values.numpy() for values in distributed.total([torch.from_numpy(values) for values in found])]


def _add_moves(evidence: Evidence, offspring: Sequence[Offspring], batches: Sequence[Batch], found: list[Floats]) -> None:
    """The second-order law; one product S mu serves one move of every group."""
    rounds = _rounds([(one.group, (at, shares, moves)) for at, one in enumerate(offspring) for shares, moves in _distinct_moves(one)])
    for number, batch in distributed.mine(list(enumerate(batches if rounds else ()))):
        product = SplittingProduct(evidence.model, evidence.graph, [batch], evidence.loss, evidence.curvature)
        for taken in rounds:
            directions = product.zeros()
            for group, (at, _, moves) in taken.items():
                directions[group][offspring[at].parents.to(moves.device)] = moves.to(directions[group])
            images = product.on_batch(0, directions)
            for group, (at, shares, moves) in taken.items():
                image = images[group][offspring[at].parents.to(moves.device)]
                found[at][number] += _on_cpu(0.5 * shares.double() * (moves.double() * image.double()).sum(1))


def _distinct_moves(one: Offspring) -> list[tuple[Tensor, Tensor]]:
    """Shares [n] and moves [n, d] of the offspring that have a share and move; a move and its opposite count once."""
    distinct: list[tuple[Tensor, Tensor]] = []
    for shares, moves in zip(one.shares.unbind(1), (one.moves * (one.shares != 0).unsqueeze(2)).unbind(1), strict=True):
        if not moves.any():
            continue
        for at, (before, same) in enumerate(distinct):
            if torch.equal(same, moves) or torch.equal(same, -moves):
                distinct[at] = (before + shares, same)
                break
        else:
            distinct.append((shares, moves))
    return distinct


def _add_reads(
    evidence: Evidence, together: Mapping[int, int], offspring: Sequence[Offspring], batches: Sequence[Batch], found: list[Floats]
) -> None:
    """The first-order law; one probe serves at most one set of every group, ``together`` by group."""
    births = [nobody(evidence.model, group, number) for number, group in enumerate(evidence.graph.groups)]
    reads: Reads = [tuple(read[:0] for read in read_by) for read_by in outgoing(evidence.model, evidence.graph)]
    for group, at in together.items():
        births[group] = replace(offspring[at], reads=())
        reads[group] = tuple(read.flatten(0, 1).unsqueeze(1) for read in offspring[at].reads)
    probe = Probe(evidence, births)
    for number, batch in distributed.mine(list(enumerate(batches))):
        slopes = probe.slopes_on(batch, reads, 0.5).reads
        for group, at in together.items():
            along = torch.stack([(slope * read).flatten(1).sum(1) for slope, read in zip(slopes[group], reads[group], strict=True)])
            found[at][number] += _on_cpu(along.double().sum(0).view(-1, offspring[at].added).sum(1))


def _rounds(items: Sequence[tuple[int, _T]]) -> list[dict[int, _T]]:
    """Items by group, distributed so that each round has at most one of a group."""
    rounds: list[dict[int, _T]] = []
    for group, item in items:
        free = next((taken for taken in rounds if group not in taken), None)
        if free is None:
            rounds.append(free := {})
        free[group] = item
    return rounds


def _on_cpu(values: Tensor) -> Floats:
    return values.detach().cpu().numpy()
