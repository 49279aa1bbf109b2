"""Experiment 1: {widths by rule} x {inherited, retrained} at equal cost and equal charged compute, with tuned learning rate and batch.

Each arm is tuned alone on the selection images, by seeds that are not used again; then fresh seeds are run once with the test images.
"""

from __future__ import annotations

import math
from statistics import fmean

from benchmarks.growth import tasks
from benchmarks.growth.arms import ARMS, Runs, Setting
from benchmarks.growth.records import Key, Results, Values
from growth.training import NotANumber

RATES, BATCHES = (0.3, 0.6, 1.2), (64, 32)
FIRST_TUNING_SEED = 1000
Tuned = dict[str, tuple[float, int]]


def factorial(results: Results, label: str, setting: Setting, seeds: int, tuning_seeds: int = 1) -> None:
    """All arms of a setting: tuned, then run for ``seeds`` fresh seeds; everything of one seed before the next."""
    tuned = tune(results, label, setting, tuning_seeds)
    for seed in range(seeds):
        runs = Runs(setting, tasks.load(setting.task), seed, tuned)
        for arm in arms_of(setting):
            key: Key = {"kind": "run", "setting": label, "task": setting.task, "arm": arm, "seed": seed}
            results.once(key, lambda: _values(runs, arm))  # noqa: B023 - called at once


def tune(results: Results, label: str, setting: Setting, seeds: int) -> Tuned:
    """For each arm the best learning rate at the first batch size, then the best batch size at that rate, by mean selection loss.

    Arms that go on from another's result do so from its tuned run, so arms are tuned in order.
    """
    tuned: Tuned = {}
    data = tasks.without_test(tasks.load(setting.task))
    shared = [Runs(setting, data, seed, tuned) for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + seeds)]
    for arm in arms_of(setting):

        def mean_loss(point: tuple[float, int], arm: str = arm) -> float:
            return fmean(_tuning_loss(results, label, runs, arm, *point) for runs in shared)

        rate, _ = min(((rate, BATCHES[0]) for rate in RATES), key=mean_loss)
        tuned[arm] = min(((rate, batch) for batch in BATCHES), key=mean_loss)
    return tuned


def _values(runs: Runs, arm: str) -> Values:
    rate, batch = runs.tuned[arm]
    return {**runs.run(arm).values(), "rate": rate, "batch": batch}


def _tuning_loss(results: Results, label: str, runs: Runs, arm: str, rate: float, batch: int) -> float:
    key: Key = {"kind": "tuning", "setting": label, "task": runs.setting.task, "arm": arm, "seed": runs.seed, "rate": rate, "batch": batch}
    return float(results.once(key, lambda: {"selection_loss": _selection_loss(runs, arm, rate, batch)})["selection_loss"])


def _selection_loss(runs: Runs, arm: str, rate: float, batch: int) -> float:
    """Infinite where training diverges."""
    try:
        return runs.at(arm, rate, batch).finished.selection.loss
    except NotANumber:
        return math.inf


def arms_of(setting: Setting) -> list[str]:
    """From the pyramid as seed, the uniform multiple is the expert's network: it is run once."""
    return [arm for arm in ARMS if not (setting.start == "pyramid" and arm.startswith("pyramid"))]
