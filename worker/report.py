"""The report of a growth job: seed, grown network and controls side by side, what was promised against what came, and a verdict.

The verdict is computed by one stated rule and says so when growth did not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import torch

from costs.families import Network
from costs.model import CostModel, Macs, Parameters
from costs.shapes import Wiring
from costs.table import Setting
from growth.config import GrowthConfig
from growth.events import Round
from growth.networks import build
from growth.training import Evaluation, size
from profiler.anchors import measure_networks
from profiler.timing import Measurement
from store.jobs import Job
from store.spec import JobSpec
from worker.runs import Trained

SECONDS_PER_NETWORK = 2.0
RULE = (
    "Growing paid if the grown network's mean cross-entropy on the test images is lower than that of every control. "
    "All had the same budget and the same compute, scoring included. One seed: no statement about significance."
)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measured latencies of whole networks by name, and why the others have none."""

    results: Mapping[str, Measurement]
    reasons: Mapping[str, str]
    device: str = ""
    setting: Setting = Setting()  # noqa: RUF009 - frozen

    def of(self, name: str) -> Document:
        """The latency of one network, or the reason why there is none."""
        if name not in self.results:
            return {"reason": self.reasons[name]}
        found = self.results[name]
        numbers = {"median_ms": found.median, "low": found.low, "high": found.high, "unit": "ms", "kind": "measured"}
        return {**numbers, "repetitions": found.repetitions, "rejected": found.rejected, "device": self.device, **asdict(self.setting)}


def measure(networks: Mapping[str, Network], setting: Setting, device: str, should_stop: Callable[[], bool]) -> Measurements:
    """Measure the networks on this machine, interleaved, so that all meet the same machine.  Weights don't matter for the time."""
    modules = {name: build(network).eval() for name, network in networks.items()}
    shape = next(iter(networks.values()))
    example = torch.randn(setting.batch, shape.in_channels, shape.image_size, shape.image_size)
    try:
        session = measure_networks(modules, example, setting, SECONDS_PER_NETWORK * len(modules), should_stop=should_stop)
    except ValueError as error:  # more threads than cores, say
        return Measurements({}, dict.fromkeys(networks, str(error)))
    return Measurements(session.results, {name: str(reason) for name, reason in session.missing.items()}, device, setting)


def build_report(
    job: Job, spec: JobSpec, seed: Network, cost_model: CostModel, config: GrowthConfig,
    grown: Trained, controls: Mapping[str, Trained], measured: Measurements,
) -> Document:  # fmt: skip
    """Everything there is to say about a finished job, as plain JSON.  Costs carry unit and kind; losses are in nats."""

    def result(name: str, run: Trained) -> Document:
        network = run.growth.network
        parts = {**_network(network, cost_model), "measured_latency": measured.of(name), **_scores(run.finished.test)}
        spent = {"charged_macs": run.finished.charged_macs, "steps": run.finished.steps, "seconds": run.seconds}
        return {**parts, "selection_loss": run.finished.selection.loss, **spent}

    results = {"grown": result("grown", grown), **{name: result(name, run) for name, run in controls.items()}}
    seed_result = {**_seed(seed, grown, config, cost_model), "measured_latency": measured.of("seed")}
    return {
        "job": job.id,
        "name": spec.name,
        "device": spec.budget.device,
        "budget": {**spec.budget.model_dump(), "unit": cost_model.unit},
        "seed": seed_result,
        "grown": results["grown"],
        "controls": {name: results[name] for name in controls},
        "rounds": [_round(taken) for taken in grown.growth.rounds],
        "control_rounds": {name: [_round(taken) for taken in run.growth.rounds] for name, run in controls.items()},
        "verdict": verdict(results, spec.budget.limit, cost_model.unit if spec.budget.cost == "latency_ms" else None, grown.growth.rounds),
        "predicted_versus_measured": predicted_versus_measured({"seed": seed_result, **results}, spec.budget.cost),
        "config": asdict(config),
        "samples": {name: size(getattr(grown.growth.data, name)) for name in ("train", "selection", "test")},
        "torch": torch.__version__,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _seed(seed: Network, grown: Trained, config: GrowthConfig, cost_model: CostModel) -> Document:
    """The seed network at the end of its own stage: where growth started, in the middle of the schedule; not a control."""
    document = _network(seed, cost_model)
    batch = min(config.batch_size, size(grown.growth.data.train))
    trained = {"charged_macs": 3 * document["macs"] * batch * config.steps_per_round, "steps": config.steps_per_round}
    scores = _scores(grown.finished.seed) if grown.finished.seed is not None else {}
    return {**document, **scores, **trained, "note": "at the end of its own stage, in the middle of the schedule; not a control"}


def _network(network: Network, cost_model: CostModel) -> Document:
    wiring = network.wiring()
    shapes = wiring.shapes()
    return {
        "widths": list(network.widths),
        "layers": _layers(wiring),
        "predicted_cost": {"quantity": cost_model.name, **asdict(cost_model.network(shapes))},
        "macs": int(Macs().network(shapes).value),
        "params": int(Parameters().network(shapes).value),
    }


def _layers(wiring: Wiring) -> list[Document]:
    """One line per channel group, named for the first layer that produces it."""
    producers: dict[int, str] = {}
    for unit in wiring.units:
        if unit.output is not None and unit.output != unit.input:
            producers.setdefault(unit.output, unit.name)
    return [{"name": producers[group], "width": width} for group, width in enumerate(wiring.widths)]


def _scores(test: Evaluation) -> Document:
    return {"test_loss": test.loss, "test_accuracy": test.accuracy, "test_samples": test.samples}


def _round(taken: Round) -> Document:
    """``predicted_change`` is to be held against ``change_at_split`` (same images, no training), not against ``realised_change``."""
    return {**asdict(taken), "realised_change": taken.loss_after - taken.loss_before}


def verdict(results: Mapping[str, Document], limit: float, latency_unit: str | None, rounds: Sequence[Round] = ()) -> Document:
    """Did growing pay?  By ``RULE``, in numbers and in a sentence.  ``latency_unit`` is None where latency is not what is limited."""
    grown, controls = results["grown"]["test_loss"], {name: r["test_loss"] for name, r in results.items() if name != "grown"}
    better_than = sorted(name for name, loss in controls.items() if grown < loss)
    best = min(results, key=lambda name: (results[name]["test_loss"], name != "grown"))
    paid = len(better_than) == len(controls) if controls else None
    return {
        "paid": paid,
        "best": best,
        "better_than": better_than,
        "not_better_than": sorted(set(controls) - set(better_than)),
        "rule": RULE,
        "sentence": " ".join(
            filter(None, (_paid_words(paid, grown, controls), _rounds_words(rounds), _budget_words(results["grown"], limit, latency_unit)))
        ),
    }


def _paid_words(paid: bool | None, grown: float, controls: Mapping[str, float]) -> str:
    if paid is None:
        return f"The grown network's test loss is {grown:.4f}. No control was run, so whether growing paid is not known."
    ranked = sorted(controls, key=lambda name: controls[name])
    listed = ", ".join(f"{name} {controls[name]:.4f}" for name in ranked)
    caution = "One seed: not a significance statement."
    if paid:
        claim = f"Growing paid: its test loss of {grown:.4f} is lower than that of every control"
        return f"{claim} with the same budget and compute ({listed}). {caution}"
    better = [name for name in ranked if controls[name] <= grown]
    return (
        f"Growing did not pay: {' and '.join(better)} did no worse with the same budget and compute "
        f"(test loss {grown:.4f}; controls: {listed}). {caution}"
    )


def _rounds_words(rounds: Sequence[Round]) -> str:
    """A run that grew nowhere says so, and why."""
    if not rounds or any(taken.outcome == "split" for taken in rounds):
        return ""
    return f"No round split a channel; the last one: {rounds[-1].reason}."


def _budget_words(grown: Document, limit: float, latency_unit: str | None) -> str:
    latency = grown["measured_latency"]
    if latency_unit is None or "median_ms" not in latency:
        return ""
    measured = f"Measured, the grown network takes {latency['median_ms']:.4g} {latency_unit} [{latency['low']:.4g}, {latency['high']:.4g}]"
    if latency["low"] > limit:
        return f"{measured}, {100 * (latency['median_ms'] / limit - 1):.1f} % over the limit of {limit:g} {latency_unit}."
    return f"{measured}; the limit is {limit:g} {latency_unit}."


def predicted_versus_measured(results: Mapping[str, Document], cost: str) -> Document:
    """How far the predicted latency of each whole network is from the measured one."""
    if cost != "latency_ms":
        return {"reason": f"the budget is in {cost}; nothing was predicted in milliseconds"}
    pairs = {
        name: (result["predicted_cost"]["value"], result["measured_latency"]["median_ms"])
        for name, result in results.items()
        if "median_ms" in result["measured_latency"]
    }
    if not pairs:
        return {"reason": next(iter(results.values()))["measured_latency"]["reason"]}
    errors = {name: 100 * (predicted / measured - 1) for name, (predicted, measured) in pairs.items()}
    return {"error_percent": errors, "mean_absolute_error_percent": fmean(map(abs, errors.values())), "quantity": "latency_ms"}
