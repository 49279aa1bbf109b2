"""The sizes that a seed is held against, trained before the comparison where the spec asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from costs.families import Network
from costs.model import Budget
from growth.config import GrowthConfig
from growth.frontier import advice, point, probe_config, sizes
from growth.training import size
from store.spec import JobSpec
from worker.runs import Runs


def frontier_names(spec: JobSpec, seed: Network, budgets: Sequence[Budget], config: GrowthConfig) -> tuple[str, ...]:
    """The runs' names: ``size.1`` is the seed's."""
    return tuple(f"size.{number}" for number in range(1, len(sizes(seed, budgets, config)) + 1)) if spec.growth.seed_advice else ()


def seed_advice(runs: Runs, names: tuple[str, ...], seed: Network, config: GrowthConfig) -> dict[str, Any] | None:
    """Losses by size, and what they say, as the report holds them.  None where nothing was asked.  Not charged to any arm."""
    if not names:
        return None
    points = []
    for name, network in zip(names, sizes(seed, runs.budgets, config), strict=True):
        trained = runs.train(name, network, probe_config(network, seed, size(runs.data.train), config))
        points.append(point(network, trained.finished.steps, trained.finished.selection.loss))
    return {"points": [asdict(one) for one in points], "sentence": advice(points)}
