"""Experiment 2: how much of the population's gain a scorer finds, per training step that it costs.

The protocol of "score" in docs/growth.md: a reference is fitted to many images, and everything, the reference too, is judged on as
many others; directions are worth the sum of v' S v times the parent's squared norm there, over all channels (relative indices), and
the ranking is worth what the best 35 % by the scorer's own relative index have of that.  A solver's cost is counted in training
steps of the same network and batch, timed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch.nn.functional import cross_entropy

from benchmarks.growth import tasks
from benchmarks.growth.nets import PYRAMID, small, times
from benchmarks.growth.records import Key, Results, Values
from benchmarks.splitting import interleave
from costs.model import Macs
from growth.config import GrowthConfig
from growth.loop import Growth
from growth.scorers.base import parents
from growth.solvers import Eigenpairs, RayleighSettings, Solver, lanczos, rayleigh
from growth.splitting import SplittingProduct
from growth.training import Batch, seeded

TASK, BATCH, STEPS_TRAINED = "digits", 64, 250
POPULATION, TAKEN, KRYLOV = 8192, 0.35, 5
TIMED = 15  # rounds
FAR = 10**6  # seeds of images that only the population has


@dataclass(frozen=True, slots=True)
class Method:
    """A solver on so many images.  ``passes`` over them, each with a product, and preparing them are what it costs.

    The last product of ``rayleigh``, which only gives its residual, is not counted.
    """

    images: int
    passes: int
    solver: Solver


def _descent(epochs: int, rate: float, decay: float) -> Solver:
    return partial(rayleigh, settings=RayleighSettings(epochs=epochs, learning_rate=rate, decay=decay, decay_every=1))


METHODS: dict[str, Method] = {
    f"ours, {n} images": Method(n, KRYLOV, partial(lanczos, steps=KRYLOV)) for n in (256, 512, 1024, 2048, 4096, 8192)
}
METHODS |= {f"rayleigh as published, {n} images": Method(n, RayleighSettings().epochs, rayleigh) for n in (512, 2048, 4096)}
METHODS |= {
    f"rayleigh tuned, rate {rate:g}, {epochs} epochs of {n}": Method(n, epochs, _descent(epochs, rate, 0.5))
    for n, epochs in ((512, 4), (1024, 4), (2048, 4), (4096, 3), (4096, 5))
    for rate in (3e-3, 1e-2, 3e-2)
}


def score(results: Results, seeds: int) -> None:
    """All methods for one trained network per seed."""
    for seed in range(seeds):
        keys: dict[str, Key] = {name: {"kind": "score", "seed": seed, "method": name} for name in METHODS}
        if all(results.get(key) for key in keys.values()):
            continue
        results.clock.check()
        bench = Bench(seed)
        for name, method in METHODS.items():
            results.once(keys[name], lambda: bench.judged(method))  # noqa: B023 - called at once


class Bench:
    """A trained network, its population, and the time of a product in training steps."""

    def __init__(self, seed: int) -> None:
        network = times(small(PYRAMID, tasks.TASKS[TASK].classes), 2)
        config = GrowthConfig(limit=1e12, rounds=0, steps_per_round=0, final_steps=STEPS_TRAINED, learning_rate=0.3, seed=seed)
        self.run, self.seed = Growth.start(network, tasks.load(TASK), Macs(), config), seed
        for _ in self.run.events():
            pass
        self.model, self.graph = self.run.model.eval(), self.run.graph
        self.norms = [theta.square().sum(1) for theta in parents(self.model, self.graph)]
        self.judge = self._product(POPULATION, FAR + 2 * seed)
        self.reference = self._worth(lanczos(self._product(POPULATION, FAR + 2 * seed + 1), seeded(seed, "reference"), KRYLOV + 3))
        self.first, self.further = self._cost()

    def judged(self, method: Method) -> Values:
        """What a method finds on images of its own, as parts of what the reference finds."""
        found = method.solver(self._product(method.images, 1 + self.seed), seeded(self.seed, "scoring"))
        directions, taken = self._worth(found)
        count = method.images / BATCH
        steps = count * (self.first + (method.passes - 1) * self.further)
        return {
            "directions": directions / self.reference[0],
            "taken": taken / self.reference[1],
            "step_equivalents": steps,
            "first": self.first,
            "product": self.further,
        }

    def _worth(self, found: Sequence[Eigenpairs]) -> tuple[float, float]:
        """Gains on the judging images: of all directions, and of the channels taken by the solver's own relative index."""
        images = self.judge([pair.direction for pair in found])
        true = torch.cat([(pair.direction * image).sum(1) * norm for pair, image, norm in zip(found, images, self.norms, strict=True)])
        claimed = torch.cat([pair.index * norm for pair, norm in zip(found, self.norms, strict=True)])
        best = claimed.argsort()[: round(TAKEN * len(claimed))]
        return float(true.sum()), float(true[best].sum())

    def _product(self, images: int, seed: int) -> SplittingProduct:
        pixels, classes = tasks.more(TASK, images, seed)
        parts: list[Batch] = [(pixels[start : start + BATCH], classes[start : start + BATCH]) for start in range(0, images, BATCH)]
        return SplittingProduct(self.model, self.graph, parts, cross_entropy)

    def _cost(self) -> tuple[float, float]:
        """Of the first product on a batch and of each further one, in training steps: medians of ratios within a round."""
        batch, data = self._product(BATCH, 0).batches[0], self.run.data
        directions = [part.normal_(generator=seeded(self.seed, "timing")) for part in self.judge.zeros()]
        product = SplittingProduct(self.model, self.graph, [batch], cross_entropy)
        learner = Growth.start(self.run.network, data, Macs(), self.run.config).learner

        def first() -> None:
            nonlocal product
            product = SplittingProduct(self.model, self.graph, [batch], cross_entropy)
            product(directions)

        calls: dict[str, Callable[[], object]] = {
            "first": first, "next": lambda: product(directions), "step": lambda: learner.step(batch, 0.0, 1)
        }  # fmt: skip
        seconds = interleave(calls, TIMED)
        first_per_step, next_per_step = (
            median(a / b for a, b in zip(seconds[name], seconds["step"], strict=True)) for name in ("first", "next")
        )
        return first_per_step, next_per_step
