"""How much any rule for widths could win: widths drawn at random at one cost, trained alike, and a fit of the loss to their logarithms.

If the best that was drawn, or that the fit can name, is no better than a rule's widths, then no score can beat that rule here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict

from benchmarks.growth import tasks
from benchmarks.growth.arms import EPOCHS, FINAL
from benchmarks.growth.nets import CONSTANT, PYRAMID, macs, small
from benchmarks.growth.records import Key, Results, Values
from costs.model import Macs
from growth.config import GrowthConfig
from growth.controls import Widths
from growth.events import Finished
from growth.loop import Growth
from growth.training import size

RATE, BATCH = 0.6, 32  # where most arms of the factorial did best
KNOWN: dict[str, Widths] = {
    "pyramid": tuple(int(FINAL * width) for width in PYRAMID),
    "cost_only": (5, 6, 20, 25, 25, 25),
    "uniform": tuple(2 * width for width in CONSTANT),
}
NARROWEST, SEEDS, FIRST_SEED = 2, 3, 3000
Floats = NDArray[np.float64]


def landscape(results: Results, task: str, count: int) -> None:
    """The known rules' widths with three seeds, then ``count`` draws with one each, and the best by the fit with three."""
    classes = tasks.TASKS[task].classes
    for name, widths in KNOWN.items():
        _seeds(results, task, name, widths)
    for number, widths in enumerate(_draws(classes, count), start=len(KNOWN)):
        _once(results, task, "drawn", widths, FIRST_SEED + number % SEEDS)
    rows = [row for row in results.all() if row["task"] == task]
    _seeds(results, task, "best by the fit", Fit.of(rows).best(classes))


def _seeds(results: Results, task: str, name: str, widths: Widths) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        _once(results, task, name, widths, seed)


def _once(results: Results, task: str, name: str, widths: Widths, seed: int) -> None:
    key: Key = {"kind": "landscape", "task": task, "name": name, "widths": " ".join(map(str, widths)), "seed": seed}
    results.once(key, lambda: _trained(task, widths, seed))


def _trained(task: str, widths: Widths, seed: int) -> Values:
    """From scratch, for the compute that every arm of the factorial is charged; judged on the selection images."""
    data, classes = tasks.without_test(tasks.load(task)), tasks.TASKS[task].classes
    network = small(widths, classes)
    steps = EPOCHS * size(data.train) * _limit(classes) // (macs(network) * BATCH)
    config = GrowthConfig(
        limit=1e12, rounds=0, steps_per_round=0, final_steps=steps, batch_size=BATCH, learning_rate=RATE, seed=seed
    )  # fmt: skip
    *_, last = Growth.start(network, data, Macs(), config).events()
    assert isinstance(last, Finished)
    return {"selection_loss": last.selection.loss, "selection_accuracy": last.selection.accuracy, "macs": macs(network)}


def _limit(classes: int) -> int:
    return macs(replace(small(CONSTANT, classes), widths=KNOWN["pyramid"]))


def _draws(classes: int, count: int) -> Iterator[Widths]:
    """Log-uniform between 3 and 40 channels, then scaled to the limit."""
    drawn, limit = random.Random(7), _limit(classes)
    for _ in range(count):
        shape = [math.exp(drawn.uniform(math.log(3), math.log(40))) for _ in CONSTANT]
        low, high = 0.05, 20.0
        for _ in range(40):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if macs(small(_times(shape, middle), classes)) <= limit else (low, middle)
        yield _times(shape, low)


def _times(shape: list[float], factor: float) -> Widths:
    return tuple(max(NARROWEST, round(width * factor)) for width in shape)


@dataclass(frozen=True)
class Fit:
    """log loss = constant + sum over groups of a quadratic in log width; ``explained`` is its cross-validated R squared."""

    model: RidgeCV
    centre: Floats
    explained: float

    @classmethod
    def of(cls, rows: list[Values]) -> Fit:
        """Over everything but what a fit has named itself."""
        own = [row for row in rows if row["name"] != "best by the fit"]
        logs = np.log([widths_of(row) for row in own])
        losses = np.log([row["selection_loss"] for row in own])
        model, inputs = RidgeCV(alphas=np.logspace(-3, 2, 20)), _inputs(logs - logs.mean(0))
        missed = losses - cross_val_predict(model, inputs, losses, cv=10)
        return cls(model.fit(inputs, losses), logs.mean(0), float(1 - missed.var() / losses.var()))

    def loss(self, widths: list[Widths]) -> Floats:
        """In nats, [n]."""
        found: Floats = np.exp(self.model.predict(_inputs(np.log(widths) - self.centre)))
        return found

    def slopes(self) -> Floats:
        """By group, the change of the log of the loss per log width, at the centre of the draws."""
        found: Floats = self.model.coef_[: len(self.centre)]
        return found

    def best(self, classes: int) -> Widths:
        """Of least fitted loss among many draws within the limit."""
        drawn, limit = np.random.default_rng(0), _limit(classes)
        logs = drawn.uniform(np.log(3), np.log(45), (20_000, len(self.centre)))
        some: list[Widths] = [tuple(int(width) for width in one) for one in np.exp(logs).round()]
        fitting = [widths for widths in some if 0.85 * limit <= macs(small(widths, classes)) <= limit]
        return fitting[int(self.loss(fitting).argmin())]


def _inputs(logs: Floats) -> Floats:
    return np.concatenate([logs, logs**2], axis=1)


def widths_of(row: Values) -> Widths:
    return tuple(map(int, row["widths"].split()))
