"""Whether the tasks tell networks apart: the pyramid at three sizes, trained alike, on the selection images."""

from __future__ import annotations

from benchmarks.growth import tasks
from benchmarks.growth.arms import EPOCHS
from benchmarks.growth.nets import PYRAMID, macs, small, times
from benchmarks.growth.records import Key, Results, Values
from costs.model import Macs
from growth.config import GrowthConfig
from growth.events import Finished
from growth.loop import Growth
from growth.training import size

FACTORS = (1, 2, 4)
BATCH, RATE = 64, 0.3


def saturation(results: Results, seeds: int) -> None:
    """One result per task, size and seed."""
    for task in tasks.TASKS:
        for factor in FACTORS:
            for seed in range(seeds):
                key: Key = {"kind": "tasks", "task": task, "factor": factor, "seed": seed}
                results.once(key, lambda: trained(task, factor, seed))  # noqa: B023 - called at once


def trained(task: str, factor: int, seed: int) -> Values:
    """For as many epochs as the final network of the comparisons could have."""
    network, data = times(small(PYRAMID, tasks.TASKS[task].classes), factor), tasks.without_test(tasks.load(task))
    steps = EPOCHS * size(data.train) // BATCH
    config = GrowthConfig(limit=1e12, rounds=0, steps_per_round=0, final_steps=steps, batch_size=BATCH, learning_rate=RATE, seed=seed)
    *_, last = Growth.start(network, data, Macs(), config).events()
    assert isinstance(last, Finished)
    return {"macs": macs(network), "selection_loss": last.selection.loss, "selection_accuracy": last.selection.accuracy}
