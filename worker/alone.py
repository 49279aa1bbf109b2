"""One growth job without the service, on one process or several:

    python -m worker.alone SPEC --output DIR
    torchrun --nproc-per-node N -m worker.alone SPEC --output DIR

Grows the network of a job spec and leaves ``network.safetensors`` and ``rounds.json`` in DIR, beside the spec and the last checkpoint,
from which the same command goes on after a crash.  Controls, repeated seeds and retraining are the service's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from costs.model import EXACT, Budget, CostModel
from costs.table import CostTable, NoCost, Setting
from growth import distributed
from growth.checkpoint import save_network
from growth.events import Event, Finished, Round, Step
from growth.loop import Growth
from growth.preprocessing import Preprocessing
from growth.training import size
from store import images
from store.admission import cost_model, seed_network
from store.settings import Settings
from store.spec import BudgetSpec, JobSpec
from worker import data
from worker.leash import die_with
from worker.placement import beside
from worker.run import growth_config

Say = Callable[[str], object]


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 with a message when the job can't be done."""
    options = _parse(arguments)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with(os.getppid())  # torchrun, which gives its processes sessions of their own
    try:
        device = _device()
        with distributed.joined(device):
            run(_spec(options.spec), options.output, options.table, device, _say if distributed.rank() == 0 else lambda _: None)
    except (ValueError, NoCost, FloatingPointError, OSError, yaml.YAMLError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def run(spec: JobSpec, output: Path, table: Path | None, device: torch.device, say: Say) -> None:
    """Grow the network of ``spec``, from wherever ``output`` has it."""
    settings = Settings()
    torch.set_num_threads(spec.training.threads)
    network = seed_network(spec.network, images.describe(spec.data, settings, decode=1))
    first, *further = budgets = _budgets(spec, table)
    sets, preprocessing = data.load(spec.data, settings, spec.training.seed)
    sets = beside(sets, device)
    path = _checkpoint_of(spec, output)
    resumes = path.exists()
    growth = (
        Growth.resume(path, sets, first.cost_model, further)
        if resumes
        else Growth.start(network, sets, first.cost_model, growth_config(spec, sets, network.wiring(), budgets), further)
    )
    distributed.agree("where the run stands", _standing(growth))  # all have looked for a checkpoint: from here on there may be one
    say(f"{spec.name}: from step {growth.step} of {growth.total_steps}, {distributed.ranks()} processes on {device.type}, no controls")
    if distributed.rank() == 0:
        _write(output / "spec.json", spec.model_dump_json(indent=2))
    finished = _events(growth, path, settings.checkpoint_seconds, say)
    if distributed.rank() == 0:
        _publish(growth, finished, preprocessing, output)
    say(f"test loss {finished.test.loss:.4f}, accuracy {finished.test.accuracy:.4f}; {output / 'network.safetensors'}")


def _events(growth: Growth, path: Path, checkpoint_seconds: float, say: Say) -> Finished:
    """To the end, with a checkpoint at each round, at the last step, and when the last one is old enough."""
    saved = time.monotonic()
    for event in growth.events():
        if isinstance(event, Finished):
            return event
        if isinstance(event, Round):
            say(_line(event))
        if _ends_stage(growth, event) or time.monotonic() - saved >= checkpoint_seconds:
            growth.save(path)
            saved = time.monotonic()
    raise AssertionError("the run ended without a result")


def _standing(growth: Growth) -> str:
    """What all processes must have alike; those of another machine may see another folder."""
    widths, sizes = growth.network.widths, (size(growth.data.train), size(growth.data.selection))
    return f"step {growth.step} with widths {widths} on {sizes} images, torch {torch.__version__}"


def _ends_stage(growth: Growth, event: Event) -> bool:
    return isinstance(event, Round) or (isinstance(event, Step) and growth.step == growth.total_steps)


def _line(closed: Round) -> str:
    """A round in one line."""
    cost = f"{closed.cost_after.value:.6g} {closed.cost_after.unit} of {closed.limit:.6g}"
    change = f"loss {closed.loss_before:.4f} -> {closed.loss_after:.4f} (predicted at growth {closed.predicted_change:+.4f})"
    return f"round {closed.number}: {closed.reason}; {cost}; {change}; widths {' '.join(map(str, closed.widths_after))}"


def _publish(growth: Growth, finished: Finished, preprocessing: Preprocessing, output: Path) -> None:
    save_network(output / "network.safetensors", growth.network, growth.model, preprocessing)
    story = {"processes": distributed.ranks(), "rounds": [asdict(closed) for closed in growth.rounds], "finished": asdict(finished)}
    _write(output / "rounds.json", json.dumps(story, indent=2, allow_nan=False))


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _spec(path: Path) -> JobSpec:
    return JobSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def _checkpoint_of(spec: JobSpec, output: Path) -> Path:
    """Where its checkpoint is or will be.  ValueError if ``output`` holds the run of another spec."""
    output.mkdir(parents=True, exist_ok=True)
    kept = output / "spec.json"
    if kept.exists() and JobSpec.model_validate_json(kept.read_text()) != spec:
        raise ValueError(f"{output} holds a run of another spec ({kept}); give another folder, or remove that one")
    return output / "checkpoint.safetensors"


def _budgets(spec: JobSpec, path: Path | None) -> list[Budget]:
    """ValueError, also where one table is not enough."""
    devices = {budget.device for budget in spec.budgets if budget.cost not in EXACT}
    if len(devices) > 1:
        raise ValueError(f"budgets name {len(devices)} devices ({', '.join(sorted(devices))}), and --table is of one; use the service")
    return [Budget(_prices(budget, path), budget.limit) for budget in spec.budgets]


def _prices(budget: BudgetSpec, path: Path | None) -> CostModel:
    """Exact counts, or those of the cost table in a file.  ValueError where a table is needed and none is given."""
    setting = Setting(budget.batch_size, budget.threads or 1)  # no device is there to be asked for its own
    if budget.cost in EXACT:
        return cost_model(budget.cost, CostTable(budget.device), setting)
    if path is None:
        remedy = "give its cost table with --table (costs.json of a job, or the output of `python -m profiler`), or limit macs or params"
        raise ValueError(f"budget.cost is {budget.cost} on {budget.device}, which is measured, not counted; {remedy}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return cost_model(budget.cost, CostTable.from_json(content.get("table", content)), setting)


def _device() -> torch.device:
    """A GPU of its own for each process of this machine, if it has GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise ValueError(f"process {number + 1} of this machine finds {there} GPUs; start one process for each, or hide them all")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.alone", description="Run one growth job without the service.")
    parser.add_argument("spec", type=Path, help="job spec, YAML or JSON")
    parser.add_argument("--output", type=Path, required=True, help="folder for network, rounds and checkpoint; a run in it goes on")
    parser.add_argument("--table", type=Path, help="cost table of the budget's device, for latency_ms and energy_mj")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
