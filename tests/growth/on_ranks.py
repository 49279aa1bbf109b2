"""What ``test_distributed.py`` runs on several processes: ``torchrun on_ranks.py SCENARIO FOLDER``; each leaves FOLDER/rankN.pt."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from costs.families import Network
from costs.model import Macs
from growth import distributed
from growth.checkpoint import read
from growth.config import GrowthConfig
from growth.events import Event, Round, Scored
from growth.groups import find_groups
from growth.loop import Growth
from growth.networks import build
from growth.operators import OPERATORS, Evidence
from growth.operators.law import changes
from growth.operators.stride import STEP_RULES
from growth.scorers import SCORERS
from growth.shrinking import departures
from growth.splitting import Batch, SplittingProduct
from growth.training import Data, Learner, evaluate, evaluate_batches, seeded, settle_norms

NETWORK = Network("plain", (4, 4), 8, 1, 3)
LIMIT = 3 * Macs().network(NETWORK.wiring().shapes()).value
CONFIG = GrowthConfig(
    limit=LIMIT, rounds=2, steps_per_round=4, final_steps=3, batch_size=12, scoring_samples=36, fresh_samples=16, learning_rate=0.05,
    operators=("split", "firefly"), step_rule="line_search",
)  # fmt: skip


def images(count: int, seed: int) -> TensorDataset:
    """Noisy versions of one pattern per class."""
    patterns = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (count,), generator=generator)
    return TensorDataset(patterns[classes] + 0.3 * torch.randn(count, 1, 8, 8, generator=generator), classes)


DATA = Data(images(90, 0), images(25, 1), images(23, 2))
BATCHES = [(x.double(), y) for x, y in (images(count, 10 + count)[:] for count in (7, 6, 5))]  # of unlike sizes, and an odd number


def found() -> dict[str, Any]:
    """Everything that is reduced across processes, in float64, with and without norms.

    Not more channels before the classifier than its slopes have dimensions (one less than classes): gradmax finds no others but by chance.
    """
    results: dict[str, Any] = {}
    for norm in (True, False):
        model = build(replace(NETWORK, widths=(4, 2), norm=norm), seeded(0, "weights")).double()
        settle_norms(model, BATCHES)
        graph = find_groups(model, BATCHES[0][0])
        evidence = Evidence(model, graph, BATCHES, cross_entropy)
        for name, scorer in SCORERS.items():
            scores = scorer(model, graph, BATCHES, cross_entropy, seeded(0, name))
            results[f"{name} {norm}"] = [score.relative_index for score in scores]
            evidence = replace(evidence, scores=scores) if name == "splitting" else evidence
        for name, operator in OPERATORS.items():
            candidates = operator.propose(evidence, 0.1, seeded(0, name))
            results[f"{name} {norm}"] = [one.gain for one in candidates if one.gain is not None]
            results[f"law of {name} {norm}"] = [torch.from_numpy(change) for change in changes(evidence, candidates, BATCHES)]
            if name == "split":
                for rule, (find, _) in STEP_RULES.items():
                    stride = find(model, graph, [one.offspring for one in candidates], BATCHES, cross_entropy)
                    results[f"{rule} {norm}"] = [torch.tensor([stride.scale, stride.change])]
        gone = departures(model, graph, BATCHES, cross_entropy)
        results[f"departures {norm}"] = [torch.from_numpy(change) for change in gone.changes]
        results[f"buffers {norm}"] = [buffer for buffer in model.buffers() if buffer.dim()]
        everything = TensorDataset(*(torch.cat(parts) for parts in zip(*BATCHES, strict=True)))
        for evaluation in (evaluate(model, everything, 4), evaluate_batches(model, BATCHES)):
            results.setdefault(f"evaluation {norm}", []).append(torch.tensor([evaluation.loss, evaluation.accuracy, evaluation.samples]))
    return results


def stepped() -> list[Tensor]:
    """Weights and losses of three steps, without norms."""
    model = build(replace(NETWORK, norm=False), seeded(0, "weights")).double()
    learner = Learner.of(model, CONFIG)
    for number, (x, y) in enumerate(BATCHES):
        share = distributed.mine(range(len(y) // 2 * 2))
        results = learner.step((x[share], y[share]), 0.1, number)
    return [*model.parameters(), torch.tensor(results)]


def grown(folder: Path) -> dict[str, Any]:
    """An undisturbed run that is saved at every yield; resumed from there, it ends with the same bits."""
    growth = Growth.start(NETWORK, DATA, Macs(), CONFIG)
    events = []
    for event in growth.events():
        events.append(_comparable(event))
        growth.save(folder / str(len(events)))
    growth.save(folder / "end")
    dist.barrier()
    rounds = [event for event in events if isinstance(event, Round)]
    kinds = {type(event): number for number, event in enumerate(events, 1)}  # the last of each
    for number in {2, *kinds.values()} - {len(events)}:
        resumed = Growth.resume(folder / str(number), DATA, Macs())
        assert [_comparable(event) for event in resumed.events()] == events[number:]
        resumed.save(folder / f"end{number}")
        dist.barrier()
        (tensors, state), (others, other) = read(folder / "end"), read(folder / f"end{number}")
        assert state == other
        assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    return {"rounds": [(one.outcome, one.widths_after, one.predicted_change) for one in rounds], "tensors": growth.learner.tensors()}


def _comparable(event: Event) -> Event:
    return replace(event, seconds=0.0) if isinstance(event, Scored) else event


def fitting() -> bool:
    """Whether prepared batches fit where one process keeps two of the three."""
    model = build(NETWORK, seeded(0, "weights")).double()
    graph = find_groups(model, BATCHES[0][0])
    size = SplittingProduct(model, graph, BATCHES, cross_entropy)._prepare(0).size_bytes
    return SplittingProduct(model, graph, BATCHES, cross_entropy, keep_bytes=2 * size).fits


def refused() -> dict[str, str]:
    """What goes wrong on one rank, or is not alike on all, by what was tried."""
    broken: Batch = (torch.full((4, 1, 8, 8), math.nan), torch.zeros(4, dtype=torch.int64))
    good: Batch = (torch.ones(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))
    model = build(NETWORK, seeded(0, "weights"))
    graph = find_groups(model, good[0])

    def product() -> object:
        made = SplittingProduct(model, graph, [good, broken], cross_entropy)
        return made(made.zeros())

    spoilt = DATA.selection[:][0].clone()
    spoilt[3] = math.nan
    tried: dict[str, Callable[[], object]] = {
        "step": lambda: Learner.of(model, CONFIG).step(broken if distributed.rank() else good, 0.1, 5),
        "product": product,
        "evaluation": lambda: evaluate(model, TensorDataset(spoilt, DATA.selection[:][1]), 4),
        "batch": lambda: Growth.start(NETWORK, DATA, Macs(), replace(CONFIG, batch_size=13)),
        "small batch": lambda: Growth.start(NETWORK, DATA, Macs(), replace(CONFIG, batch_size=2)),
        "decision": lambda: distributed.agree("the weather", "sun" if distributed.rank() else "rain"),
    }
    messages = {}
    for name, attempt in tried.items():
        try:
            attempt()
        except Exception as error:
            messages[name] = f"{type(error).__name__}: {error}"
    return messages


SCENARIOS: dict[str, Callable[[Path], object]] = {
    "alike": lambda folder: {"found": found(), "stepped": stepped(), "fits": fitting(), "refused": refused()},
    "grown": grown,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    scenario, out = sys.argv[1], Path(sys.argv[2])
    with distributed.joined(torch.device("cpu")):
        torch.save(SCENARIOS[scenario](out), out / f"rank{distributed.rank()}.pt")
