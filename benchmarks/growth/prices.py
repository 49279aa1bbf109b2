"""Latency as the cost: a table of this machine, measured once and kept with the results."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.growth import tasks
from benchmarks.growth.nets import CONSTANT, small
from costs.model import CostModel
from costs.table import CostTable, Setting, TableCost
from profiler.profile import profile_device

SETTING = Setting(batch=32, threads=1)  # with one image a network this small measures call overhead alone
MAX_GROWTH, SECONDS = 5.0, 60.0


def latency(folder: Path, task: str) -> CostModel:
    """Milliseconds of a batch, for every width that any arm can have (2 to 25 channels per group)."""
    classes = tasks.TASKS[task].classes
    kept = folder / f"latency-{classes}-classes.json"
    if not kept.exists():
        profile = profile_device(small(CONSTANT, classes), "this-host", SETTING, MAX_GROWTH, SECONDS)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(profile.table.to_json()))
    return TableCost(CostTable.from_json(json.loads(kept.read_text())), "latency_ms", SETTING)
