"""Experiment 4: the change of the loss that each operator's law predicts, against what happens, for steps from 0.001 to 1.

In float64, on the images that candidates were fitted to (the law, not its generalisation), all candidates of a set added at once.
With batch norms and without: GradMax proposes only where no norm follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.growth import tasks
from benchmarks.growth.nets import PYRAMID, small
from benchmarks.growth.records import Key, Results, Values
from costs.model import Macs
from growth.config import GrowthConfig
from growth.groups import find_groups
from growth.loop import Growth
from growth.operators import OPERATORS, Candidates, Evidence
from growth.operators.law import changes
from growth.operators.stride import mean_loss
from growth.scorers import SCORERS
from growth.surgery import add_channels
from growth.training import Batch, batches, seeded

TASK, IMAGES, STEPS_TRAINED = "digits", 512, 150
STEPS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


def law(results: Results, seeds: int = 1) -> None:
    """One result per network, seed, operator and step: one row for each set of its candidates."""
    for norm in (True, False):
        for seed in range(seeds):
            keys: list[tuple[Key, str, float]] = [
                ({"kind": "law", "norm": norm, "seed": seed, "operator": name, "step": step}, name, step)
                for name in OPERATORS
                for step in STEPS
            ]
            if all(results.get(key) for key, _, _ in keys):
                continue
            evidence = trained(norm, seed)
            for key, name, step in keys:
                results.once(key, lambda: {"sets": rows(evidence, name, step, seed)})  # noqa: B023 - called at once


def trained(norm: bool, seed: int) -> Evidence:
    """A briefly trained small network in float64, and what the default scorer finds."""
    data = tasks.load(TASK)
    network = replace(small(PYRAMID, tasks.TASKS[TASK].classes), norm=norm)
    rate = 0.3 if norm else 0.1
    config = GrowthConfig(limit=1e12, rounds=0, steps_per_round=0, final_steps=STEPS_TRAINED, learning_rate=rate, seed=seed)
    run = Growth.start(network, data, Macs(), config)
    for _ in run.events():
        pass
    model = run.model.double().eval()
    seen: list[Batch] = [(images.double(), classes) for images, classes in batches(data.train, range(IMAGES), 64)]
    graph = find_groups(model, seen[0][0][:2])
    scores = SCORERS["splitting"](model, graph, seen, cross_entropy, seeded(seed, "law"))
    return Evidence(model, graph, seen, cross_entropy, scores)


def rows(evidence: Evidence, name: str, step: float, seed: int) -> list[Values]:
    """Predicted and realised change (nats) of each set that can be added in one go."""
    proposed = OPERATORS[name].propose(evidence, step, seeded(seed, f"law {name}"))
    before = mean_loss(evidence.model, evidence.batches, evidence.loss)
    return [
        {
            "adds": added,
            "predicted": predicted(evidence, together),
            "realised": mean_loss(grown(evidence, together), evidence.batches, evidence.loss) - before,
        }
        for added, together in _sets(proposed)
    ]


def predicted(evidence: Evidence, together: list[Candidates]) -> float:
    """By the operator's law, over all images (batches are of one size)."""
    return float(sum(change.mean(0).sum() for change in changes(evidence, together, evidence.batches)))


def grown(evidence: Evidence, together: list[Candidates]) -> nn.Module:
    return add_channels(evidence.model, evidence.graph, [one.offspring for one in together])[0]


def _sets(proposed: Iterable[Candidates]) -> list[tuple[int, list[Candidates]]]:
    """Candidates that add as many channels each: of one group there is one such set."""
    found: dict[int, list[Candidates]] = {}
    for one in proposed:
        if len(one.offspring.parents):
            found.setdefault(one.offspring.added, []).append(one)
    return sorted(found.items())
