"""The report of a growth job: seed, grown network and controls side by side, what was promised against what came, and a verdict.

``seed``, ``grown``, ``retrained``, ``controls`` and ``rounds`` are those of the first seed; ``arms`` and ``paired`` hold all seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import torch

from costs.families import Network
from costs.model import Budget, CostModel, Macs, Parameters
from costs.shapes import Wiring
from growth.config import GrowthConfig
from growth.events import Round
from growth.preprocessing import FITTING, Preprocessing
from growth.training import Data, Evaluation, size
from store.jobs import Job
from store.spec import JobSpec
from worker.comparison import GROWN, RETRAINED, arms, run_name
from worker.measured import Measurements
from worker.runs import Result
from worker.trust import drift_words
from worker.verdict import paired, spread, verdict

DRIFT_PERCENT = 5.0  # all networks off by this much to one side: more than tables are off by, less than machines change
_RETRAINED_NOTE = (
    "the widths that growing found, trained from scratch with the compute of the whole grown run; finding them cost that much again"
)

MEASURED: Mapping[str, str] = {"latency_ms": "measured_latency", "energy_mj": "measured_energy"}  # where a quantity's measurements stand

Document = dict[str, Any]
Measured = Mapping[str, Measurements]  # by quantity
Repeat = Mapping[str, Result]  # one seed's runs by arm


@dataclass(frozen=True, slots=True)
class Setup:
    """What a job started from."""

    job: Job
    spec: JobSpec
    seed: Network
    budgets: Sequence[Budget]
    config: GrowthConfig
    preprocessing: Preprocessing
    data: Data
    advised: Document | None = None  # on the size of the seed, where asked for
    checked: Sequence[Document] = ()  # the tables of this machine, when the job began


def build_report(setup: Setup, repeats: Sequence[Repeat], delivered: Document, measured: Measured, used: Document) -> Document:
    """Everything there is to say about a finished job, as plain JSON.  Costs carry unit and kind; losses are in nats.

    ``used`` is what the job itself has used by now (``worker.used``)."""
    spec, budgets, first = setup.spec, setup.budgets, repeats[0]
    results = {arm: _result(arm, run, budgets, measured) for arm, run in first.items()}
    seed = {**_seed(setup, first[GROWN]), **_measured(setup.seed, measured)}
    later = {run_name(arm, number): run for number, repeat in enumerate(repeats) for arm, run in repeat.items() if number}
    networks = {"seed": seed, **results, **{name: _priced(run.network, budgets, measured) for name, run in later.items()}}
    asked = [{**one.model_dump(), "unit": each.cost_model.unit} for one, each in zip(spec.budgets, budgets, strict=True)]
    return {
        "job": setup.job.id,
        "name": spec.name,
        "device": spec.budget.device,
        "budget": asked[0],
        "further_budgets": asked[1:],
        "seeds": [setup.config.seed + number for number in range(len(repeats))],
        "seed": seed,
        GROWN: results[GROWN],
        **({RETRAINED: results[RETRAINED]} if RETRAINED in results else {}),
        "controls": {name: results[name] for name in spec.controls},
        "arms": {arm: _arm([repeat[arm] for repeat in repeats], budgets[0].cost_model, measured) for arm in arms(spec)},
        "paired": _paired(repeats, spec),
        "rounds": [_round(taken) for taken in first[GROWN].rounds],
        "control_rounds": {name: [_round(taken) for taken in first[name].rounds] for name in spec.controls},
        "repeat_rounds": {name: [_round(taken) for taken in run.rounds] for name, run in later.items() if run.rounds},
        "verdict": _verdict(setup, repeats, results[GROWN]),
        "delivered": delivered,
        **({"seed_advice": setup.advised} if setup.advised else {}),
        "table_checks": list(setup.checked),
        "predicted_versus_measured": predicted_versus_measured(networks, spec.budget.cost),
        "used": used,
        "config": asdict(setup.config),
        "input": _input(setup.preprocessing),
        "class_names": list(setup.preprocessing.class_names),
        "samples": {name: size(getattr(setup.data, name)) for name in ("train", "selection", "test")},
        "torch": torch.__version__,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _result(arm: str, run: Result, budgets: Sequence[Budget], measured: Measured) -> Document:
    """One run of the first seed, in full."""
    parts = {**_priced(run.network, budgets, measured), **_scores(run.finished.test), "selection_loss": run.finished.selection.loss}
    spent = {"charged_macs": run.finished.charged_macs, "steps": run.finished.steps, "seconds": run.seconds}
    return {**parts, **spent, **({"note": _RETRAINED_NOTE} if arm == RETRAINED else {})}


def _arm(runs: Sequence[Result], cost_model: CostModel, measured: Measured) -> Document:
    """One arm over all seeds: lists have one entry per seed."""
    return {
        "test_loss": spread([run.finished.test.loss for run in runs]),
        "test_accuracy": spread([run.finished.test.accuracy for run in runs]),
        "selection_loss": spread([run.finished.selection.loss for run in runs]),
        "widths": [list(run.network.widths) for run in runs],
        "predicted_cost": [cost_model.network(run.network.wiring().shapes()).value for run in runs],
        **{MEASURED[quantity]: [found.of(run.network) for run in runs] for quantity, found in measured.items()},
        "charged_macs": [run.finished.charged_macs for run in runs],
    }


def _losses(repeats: Sequence[Repeat], arm: str) -> list[float]:
    return [repeat[arm].finished.test.loss for repeat in repeats]


def _paired(repeats: Sequence[Repeat], spec: JobSpec) -> Document:
    """Differences in test loss, by the arm whose they are and the arm that is subtracted."""
    ours = [arm for arm in arms(spec) if arm in (GROWN, RETRAINED)]
    return {
        arm: {other: paired(_losses(repeats, arm), _losses(repeats, other)).document() for other in arms(spec) if other not in (arm, GROWN)}
        for arm in ours
    }


def _verdict(setup: Setup, repeats: Sequence[Repeat], grown: Document) -> Document:
    """By the rule over all seeds; what is said of the budget is said of the first seed's grown network."""
    found = verdict(_losses(repeats, GROWN), {name: _losses(repeats, name) for name in setup.spec.controls})
    means = {arm: fmean(_losses(repeats, arm)) for arm in arms(setup.spec)}
    budget = setup.spec.budget
    words = (
        found["sentence"],
        rounds_words(repeats[0][GROWN].rounds),
        budget_words(grown.get(MEASURED.get(budget.cost, "")), budget.limit),
        drift_words(setup.checked),
    )
    return {**found, "best": min(means, key=lambda arm: means[arm]), "sentence": " ".join(filter(None, words))}


def _input(preprocessing: Preprocessing) -> Document:
    """What the networks expect of an image: fit it, scale it to [0, 1], subtract ``mean`` and divide by ``std`` per channel."""
    shape = {"image_size": preprocessing.image_size, "channels": len(preprocessing.mean), "fitting": FITTING}
    return {**shape, "range": [0, 1], "mean": list(preprocessing.mean), "std": list(preprocessing.std)}


def _seed(setup: Setup, grown: Result) -> Document:
    """The seed network at the end of its own stage: where growth started, in the middle of the schedule; not a control."""
    config, document = setup.config, _network(setup.seed, setup.budgets)
    batch = min(config.batch_size, size(setup.data.train))
    trained = {"charged_macs": 3 * document["macs"] * batch * config.stage_end(0), "steps": config.stage_end(0)}
    scores = _scores(grown.finished.seed) if grown.finished.seed is not None else {}
    return {**document, **scores, **trained, "note": "at the end of its own stage, in the middle of the schedule; not a control"}


def _priced(network: Network, budgets: Sequence[Budget], measured: Measured) -> Document:
    return {**_network(network, budgets), **_measured(network, measured)}


def _measured(network: Network, measured: Measured) -> Document:
    return {MEASURED[quantity]: found.of(network) for quantity, found in measured.items()}


def _network(network: Network, budgets: Sequence[Budget]) -> Document:
    wiring = network.wiring()
    shapes = wiring.shapes()
    costs = [{"quantity": each.cost_model.name, **asdict(each.cost_model.network(shapes))} for each in budgets]
    return {
        "widths": list(network.widths),
        "layers": _layers(wiring),
        "predicted_cost": costs[0],
        "further_costs": costs[1:],
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
    """``predicted_change`` is to be held against ``change_at_growth`` (same images, no training), not against ``realised_change``."""
    return {**asdict(taken), "realised_change": taken.loss_after - taken.loss_before}


def rounds_words(rounds: Sequence[Round]) -> str:
    """A run that grew nowhere says so, and why."""
    if not rounds or any(taken.grew for taken in rounds):
        return ""
    return f"No round added a channel; the last one: {rounds[-1].reason}."


def budget_words(found: Document | None, limit: float) -> str:
    """What the grown network takes on the device; nothing where it was not measured, or is not what is limited."""
    if found is None or "value" not in found:
        return ""
    unit = found["unit"]
    measured = f"Measured, the grown network takes {found['value']:.4g} {unit} [{found['low']:.4g}, {found['high']:.4g}]"
    if found["low"] > limit:
        return f"{measured}, {100 * (found['value'] / limit - 1):.1f} % over the limit of {limit:g} {unit}."
    return f"{measured}; the limit is {limit:g} {unit}."


def predicted_versus_measured(results: Mapping[str, Document], cost: str) -> Document:
    """How far the predicted cost of each whole network is from the measured one; equal widths count once, under their first name."""
    if cost not in MEASURED:
        return {"reason": f"the budget is in {cost}, which is counted: nothing was predicted that could be measured"}
    measured = {name: result[MEASURED[cost]] for name, result in results.items()}
    distinct = {tuple(result["widths"]): name for name, result in reversed(list(results.items()))}
    pairs = {
        name: (result["predicted_cost"]["value"], measured[name]["value"])
        for name, result in results.items()
        if name == distinct[tuple(result["widths"])] and "value" in measured[name]
    }
    if not pairs:
        return {"reason": next(iter(measured.values()))["reason"]}
    errors = {name: 100 * (predicted / found - 1) for name, (predicted, found) in pairs.items()}
    mean = fmean(map(abs, errors.values()))
    return {"error_percent": errors, "mean_absolute_error_percent": mean, "quantity": cost, **_drift(list(errors.values()))}


def _drift(errors: Sequence[float]) -> Document:
    """A note where all networks are off to the same side: then it is the machine that differs, not the networks."""
    nearest = min(map(abs, errors))
    if nearest < DRIFT_PERCENT or len({error > 0 for error in errors}) > 1:
        return {}
    pace, room = ("cheaper", "left part of the budget unused") if errors[0] > 0 else ("dearer", "may have overrun the budget")
    return {
        "note": f"every network was measured at least {nearest:.0f} % {pace} than predicted: the machine is not what it was when it was "
        f"profiled, so growth {room}; profile it again as busy as it will be in use, and submit again"
    }
