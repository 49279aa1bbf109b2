"""What candidates are worth on fresh images: training images that none of them was fitted to.

Each candidate's change of the loss is measured on every batch of them (``growth.operators.law``), so the scatter over batches gives
every mean its standard error.  A set that was chosen by some images looks too good on them, as directions do on theirs: judge it on
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growth.operators.base import Candidates, Evidence
from growth.operators.choice import Pick
from growth.operators.law import changes
from growth.prediction import RELIABLE, Floats, Prediction, mean_and_error
from growth.removal import Removal
from growth.shrinking import Departures
from growth.splitting import Batch


@dataclass(frozen=True, slots=True)
class FreshChange:
    """For the n candidates of a set: the change of the loss that each makes by itself, and its standard error.

    Unbiased, where the gain of ``Candidates`` is optimistic: 1.3 to 5 times too large.
    """

    change: Floats  # [n] nats
    error: Floats  # [n]

    @property
    def reliable(self) -> NDArray[np.bool_]:
        """[n], which gain on their own account by more than chance explains."""
        return self.change + RELIABLE * self.error < 0


@dataclass(frozen=True, slots=True)
class FreshSample:
    """Fresh images in at least 2 batches, and what they say about every candidate."""

    batches: Sequence[Batch]
    changes: Sequence[Floats]  # per set of candidates [batches, n], in nats
    departures: Departures | None = None  # where channels may also go

    @property
    def images(self) -> int:
        return int(self._sizes.sum())

    @property
    def _sizes(self) -> Floats:
        return np.array([len(classes) for _, classes in self.batches], dtype=np.float64)

    def joined(self, other: FreshSample) -> FreshSample:
        """Both samples as one."""
        return FreshSample(
            [*self.batches, *other.batches],
            [np.concatenate(both) for both in zip(self.changes, other.changes, strict=True)],
            self.departures and other.departures and self.departures.joined(other.departures),
        )

    def each(self) -> list[FreshChange]:
        """The change by every candidate with its error, per set."""
        return [FreshChange(*mean_and_error(values, self._sizes)) for values in self.changes]

    def prediction(self, picks: Sequence[Pick], removals: Sequence[Removal] = ()) -> Prediction:
        """Of these candidates and removals together.  Unbiased if these images neither chose nor shaped them."""
        if not picks:
            return Prediction(0.0, 0.0)
        chosen = np.concatenate([self.changes[pick.source][:, pick.rows.numpy()] for pick in picks], axis=1)  # [batches, picked]
        gone = 0.0 if self.departures is None else self.departures.total(removals)
        change, error = mean_and_error(chosen.sum(axis=1) + gone, self._sizes)
        return Prediction(float(change), float(error))


def measure(evidence: Evidence, candidates: Sequence[Candidates], batches: Sequence[Batch]) -> FreshSample:
    """What every candidate does to the loss on each of these batches."""
    return FreshSample(batches, changes(evidence, candidates, batches))
