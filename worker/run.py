"""The one bridge from a job's spec to the library."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from costs.families import Network
from costs.model import Budget
from costs.shapes import Wiring
from costs.table import CostTable
from growth.checkpoint import save_network
from growth.config import GrowthConfig
from growth.moments import at_moments
from growth.preprocessing import Preprocessing
from growth.training import Data, size
from profiler.processor import Processor, open_processor
from store import devices, jobs
from store.admission import Admission, LoadTable, admit
from store.database import Database
from store.spec import BudgetSpec, JobSpec
from worker import data
from worker.accounting import Account, accounted
from worker.attempt import Attempt, Reporter
from worker.comparison import compare, run_names
from worker.frontier import frontier_names, seed_advice
from worker.measured import Measurements, measure_energy, measure_latency
from worker.placement import beside
from worker.profile_run import run_profile
from worker.report import Setup, build_report
from worker.runs import Result, Runs, Trained
from worker.trust import check_tables
from worker.verdict import delivered

logger = logging.getLogger(__name__)


def run_attempt(attempt: Attempt) -> None:
    """Carry out a job, going on from what earlier attempts left.  Returns when its results are published."""
    with accounted(attempt) as (reporter, account):
        if attempt.lease.job.kind == "profile":
            run_profile(attempt, reporter)
        else:
            run_growth(attempt, reporter, account)


def run_growth(attempt: Attempt, reporter: Reporter, account: Account) -> None:
    """Train, score and grow; then the controls; all of it again with each further seed; then say what it costs and whether it paid."""
    spec = JobSpec.model_validate(attempt.lease.job.spec)
    torch.set_num_threads(spec.training.threads)
    on = open_processor(attempt.settings.torch_device)
    tables = _tables_of_first_attempt(attempt, spec.budget.device)
    admitted = admit(spec, attempt.db, attempt.settings, tables)
    spec = admitted.spec
    here, begun = attempt.device, bool(jobs.checkpoints(attempt.db, attempt.job_id))
    reporter.tell({"phase": "profiling"})
    checked = check_tables(spec.budgets, here, on, lambda: tables(attempt.db, here), refuse=not begun)
    reporter.tell({"phase": "loading"})
    sets, preprocessing = data.load(spec.data, attempt.settings, spec.training.seed)
    sets = beside(sets, on.device)
    config = growth_config(spec, sets, admitted.wiring, admitted.budgets)
    attempt.stop_if_asked()

    probes = frontier_names(spec, admitted.network, admitted.budgets, config)
    runs = Runs(attempt, reporter, sets, admitted.budgets, (*probes, *run_names(spec)))
    advised = seed_advice(runs, probes, admitted.network, config)
    first, *later = range(spec.seeds)
    trained = compare(runs, spec, first, admitted.network, config)
    repeats = [_results(trained)]
    repeats += [_results(compare(runs, spec, repeat, admitted.network, config)) for repeat in later]

    networks = [admitted.network, *(run.network for repeat in repeats for run in repeat.values())]
    measured = _measure(attempt, reporter, spec, admitted, on, networks)
    reporter.tell({"phase": "report"}, at_once=True)
    chosen = delivered(spec.training.final, {arm: run.finished.selection.loss for arm, run in repeats[0].items()})
    setup = Setup(attempt.lease.job, spec, admitted.network, admitted.budgets, config, preprocessing, sets, advised, checked)
    _publish(attempt, spec, trained[chosen["run"]], preprocessing, build_report(setup, repeats, chosen, measured, account.used()))
    reporter.tell({"phase": "done", "overall_fraction": 1.0, "eta_seconds": 0.0, **trained[chosen["run"]].standing()}, at_once=True)


def _results(trained: dict[str, Trained]) -> dict[str, Result]:
    """Without the weights, of which only the first seed's are delivered: those of all seeds need not fit in memory."""
    return {arm: run.result for arm, run in trained.items()}


def growth_config(spec: JobSpec, sets: Data, seed: Wiring, budgets: Sequence[Budget]) -> GrowthConfig:
    """Epochs become steps, moments as well, and the scoring samples are those there are."""
    training, growth, samples = spec.training, spec.growth, size(sets.train)
    steps_per_epoch = max(1, samples // training.batch_size)
    scoring, fresh = _scoring_samples(growth.scoring_samples, growth.fresh_samples, samples)
    config = GrowthConfig(
        limit=spec.budget.limit,
        rounds=growth.rounds,
        steps_per_round=max(1, round(training.epochs_per_round * steps_per_epoch)),
        final_steps=max(1, round(training.final_epochs * steps_per_epoch)),
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        schedule=training.schedule,
        distillation=training.distillation,
        precision=training.precision,
        memory_format=training.memory_format,
        compiled=training.compiled,
        scorer=growth.scorer,
        operators=growth.operators,
        fill=growth.fill,
        step_rule=growth.step_rule,
        shrink=growth.shrink,
        split_step=growth.split_step,
        softplus_beta=growth.softplus_beta,
        max_growth=growth.max_growth,
        multiple_of=growth.multiple_of,
        scoring_samples=scoring,
        fresh_samples=fresh,
        max_fresh_samples=growth.max_fresh_samples,
        seed=training.seed,
    )
    return config if growth.moments is None else at_moments(seed, budgets, config, growth.moments)


def _scoring_samples(scoring: int, fresh: int, available: int) -> tuple[int, int]:
    """Both as asked for, or both smaller by one factor where the training set has fewer images than one scoring and two fresh samples."""
    if scoring + 2 * fresh <= available:
        return scoring, fresh
    fewer = fresh * available // (scoring + 2 * fresh)
    used = available - 2 * fewer
    logger.warning("%d training images: scoring uses %d, and twice %d fresh ones, not %d and %d", available, used, fewer, scoring, fresh)
    return used, fewer


def _tables_of_first_attempt(attempt: Attempt, first: str) -> LoadTable:
    """Loads the cost tables that the first attempt saw: a device that is profiled again meanwhile must not change a job.

    The one of the device ``first``, the budget's, has the plain name.
    """

    @cache  # asked again when the table is checked
    def load(db: Database, device: str) -> CostTable:
        name = "costs.json" if device == first else f"costs-{device}.json"
        kept = {artifact.name: artifact for artifact in jobs.artifacts(db, attempt.job_id)}.get(name)
        if kept is not None:
            with attempt.artifacts.open(kept.sha256) as file:
                return CostTable.from_json(json.load(file))
        table = devices.load_table(db, device)
        attempt.publish(name, json.dumps(table.to_json()).encode(), "application/json")
        return table

    return load


def _measure(
    attempt: Attempt, reporter: Reporter, spec: JobSpec, admitted: Admission, on: Processor, networks: list[Network]
) -> dict[str, Measurements]:
    """What all networks of the report cost, where this worker is the device they are for: their latency, and energy if that is limited."""
    reporter.tell({"phase": "measuring"}, at_once=True)
    here, stop = attempt.device, attempt.asked_to_stop
    if spec.budget.device == here:
        measured = {"latency_ms": measure_latency(networks, admitted.setting, here, on, stop)}
    else:
        measured = {"latency_ms": _elsewhere(networks, here, spec.budget)}
    for asked, budget in zip(spec.budgets, admitted.budgets, strict=True):
        if asked.cost != "energy_mj" or "energy_mj" in measured:  # the first budget of energy is what the report speaks of
            continue
        if asked.device == here:
            arguments = (networks, budget.cost_model, here, on, attempt.settings, stop)
            measured["energy_mj"] = measure_energy(*arguments, lambda _done, _total, message: reporter.tell({"message": message}))
        else:
            measured["energy_mj"] = _elsewhere(networks, here, asked)
    attempt.stop_if_asked()
    return measured


def _elsewhere(networks: list[Network], here: str, budget: BudgetSpec) -> Measurements:
    return Measurements.none(networks, f"the job ran on {here}, not on {budget.device}")


def _publish(attempt: Attempt, spec: JobSpec, run: Trained, preprocessing: Preprocessing, report: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory(dir=attempt.settings.data_dir) as folder:
        path = Path(folder, "network.safetensors")
        save_network(path, run.growth.network, run.growth.model, preprocessing)
        attempt.publish(path.name, path.read_bytes(), "application/octet-stream")
    attempt.publish("spec.json", spec.model_dump_json(indent=2).encode(), "application/json")
    attempt.publish("report.json", json.dumps(report, indent=2, allow_nan=False).encode(), "application/json")
