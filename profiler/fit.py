"""From the sum of a network's layers to the network: a scale, and what each layer takes in a network beyond it.

Measured alone, a layer finds its code and its weights in the nearest caches.  In a network it doesn't: large layers take some percent
longer, and each layer, the smallest most visibly, some microseconds.  The microseconds are fitted only where that predicts networks that
were left out better than the scale alone does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

MIN_FOR_LINE = 6  # networks, for a second number to be fitted

Numbers = Sequence[float]


@dataclass(frozen=True, slots=True)
class Fit:
    """network = ``scale`` * layer sum + ``per_layer`` * number of layers, in the unit of the sum."""

    scale: float
    per_layer: float = 0.0

    def predict(self, layer_sum: float, layers: float) -> float:
        return self.scale * layer_sum + self.per_layer * layers


Fitting = Callable[[Numbers, Numbers, Numbers], Fit]  # layer sums, numbers of layers, measured networks


def best_fit(sums: Numbers, layers: Numbers, measured: Numbers) -> Fit:
    """Whichever of the two predicts networks that were left out better; with few networks, the scale alone."""
    if len(sums) < MIN_FOR_LINE:
        return proportional(sums, layers, measured)
    errors = {fitting: _mean_error(fitting, sums, layers, measured) for fitting in (proportional, with_layers)}
    return min(errors, key=lambda fitting: errors[fitting])(sums, layers, measured)


def proportional(sums: Numbers, _layers: Numbers, measured: Numbers) -> Fit:
    """The scale alone: the median of measured / sum, taken between logarithms; one disturbed network does not move it."""
    return Fit(math.exp(median(math.log(whole / part) for part, whole in zip(sums, measured, strict=True))))


def with_layers(sums: Numbers, layers: Numbers, measured: Numbers) -> Fit:
    """Least squares of the relative errors; the scale alone where that would take time away for each layer, or can't be told."""
    first = [part / whole for part, whole in zip(sums, measured, strict=True)]
    second = [count / whole for count, whole in zip(layers, measured, strict=True)]
    ff, fs, ss = _dot(first, first), _dot(first, second), _dot(second, second)
    determinant = ff * ss - fs * fs
    if determinant <= 1e-9 * ff * ss:  # all sums alike
        return proportional(sums, layers, measured)
    scale, per_layer = (sum(first) * ss - sum(second) * fs) / determinant, (sum(second) * ff - sum(first) * fs) / determinant
    return Fit(scale, per_layer) if scale > 0 and per_layer >= 0 else proportional(sums, layers, measured)


def leave_one_out(sums: Numbers, layers: Numbers, measured: Numbers, fitting: Fitting = best_fit) -> list[float]:
    """Relative error of predicting each network with what was fitted to all others."""
    errors = []
    for i, whole in enumerate(measured):
        fit = fitting(*([*numbers[:i], *numbers[i + 1 :]] for numbers in (sums, layers, measured)))
        errors.append(fit.predict(sums[i], layers[i]) / whole - 1)
    return errors


def _mean_error(fitting: Fitting, sums: Numbers, layers: Numbers, measured: Numbers) -> float:
    return fmean(map(abs, leave_one_out(sums, layers, measured, fitting)))


def _dot(left: Numbers, right: Numbers) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
