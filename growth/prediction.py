"""A predicted change of the loss with its standard error, and how both follow from batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RELIABLE = 2.0  # standard errors that a gain must be away from zero: chance alone gets there in 2 to 4 of 100 judgements


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted change of the loss (nats) and its standard error."""

    change: float
    error: float

    @property
    def reliable(self) -> bool:
        """The loss falls, by more than chance explains."""
        return self.change + RELIABLE * self.error < 0


def mean_and_error(values: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Over batches (the first axis), weighted by their sizes: the mean, and its standard error from the scatter."""
    weights = (sizes / sizes.sum()).reshape(-1, *[1] * (values.ndim - 1))
    mean = (weights * values).sum(axis=0)
    variance = ((weights * (values - mean)) ** 2).sum(axis=0) * len(values) / (len(values) - 1)
    return mean, np.sqrt(variance)
