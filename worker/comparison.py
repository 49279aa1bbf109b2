"""The runs of one comparison: the grown network, its controls and, where asked for, what was found trained from scratch.

A job makes this comparison once per seed.  Weights, order of the images and scoring samples follow the seed; the split of the data does
not.  The first seed's runs are named for their arm (``grown``, ``uniform``), those of the seeds after it ``grown.1``, ``grown.2``, ...
"""

from __future__ import annotations

from dataclasses import replace

from costs.families import Network
from growth.config import GrowthConfig
from growth.controls import control, retrained
from store.spec import JobSpec
from worker.runs import Runs, Trained

GROWN, RETRAINED = "grown", "retrained"


def arms(spec: JobSpec) -> tuple[str, ...]:
    """What is compared, in the order in which it is trained."""
    return (GROWN, *spec.controls, *((RETRAINED,) if spec.training.final != "inherit" else ()))


def run_name(arm: str, repeat: int) -> str:
    """Name of an arm's run with the ``repeat``-th further seed; 0 is the first seed."""
    return f"{arm}.{repeat}" if repeat else arm


def run_names(spec: JobSpec) -> tuple[str, ...]:
    """All runs of a job, in order."""
    return tuple(run_name(arm, repeat) for repeat in range(spec.seeds) for arm in arms(spec))


def compare(runs: Runs, spec: JobSpec, repeat: int, seed: Network, config: GrowthConfig) -> dict[str, Trained]:
    """Train every arm with one seed; the grown network first, since the others may spend what it was charged."""
    config = replace(config, seed=config.seed + repeat)
    grown = runs.train(run_name(GROWN, repeat), seed, config)
    trained = {GROWN: grown}
    for arm in arms(spec)[1:]:
        plan = retrained(grown.growth, config) if arm == RETRAINED else control(arm, seed, grown.growth, config)
        trained[arm] = runs.train(run_name(arm, repeat), *plan)
    return trained
