"""Everything that was tried to make energy-aware growth win, failures included: variants of its config against the arms to beat.

Explored on the selection images with seeds of its own, at one learning rate and batch size; what looks best is confirmed by the
factorial, on fresh seeds and the test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.growth import tasks
from benchmarks.growth.arms import ARMS, Runs, Setting
from benchmarks.growth.records import Key, Results, Values
from benchmarks.growth.shaped import SHAPED
from growth.training import NotANumber

POINT = (0.3, 64)  # learning rate and batch size
FIRST_SEED = 2000
TO_BEAT = ("uniform/retrained", "pyramid/retrained", "cost_only/retrained", "cost_only/inherited", "random/retrained")
VARIANTS: dict[str, Mapping[str, Any]] = {
    "splits, the rest by cost (default)": {},
    "splits alone": {"fill": False},
    "step 0.3": {"split_step": 0.3},
    "step 0.3, line search": {"split_step": 0.3, "step_rule": "line_search"},
    "widths of splits, zero-output channels": {"operators": ("zero_output",)},
    "signed splits": {"operators": ("signed",)},
    "firefly": {"operators": ("firefly",)},
    "splits, signed splits and firefly, line search": {"operators": ("split", "signed", "firefly"), "step_rule": "line_search"},
    "dear scoring (512 images, 2 048 fresh)": {"scoring_samples": 512, "fresh_samples": 256, "max_fresh_samples": 2048},
    "two rounds, late": {"rounds": 2, "steps_per_round": 100},
    "five rounds": {"rounds": 5, "steps_per_round": 30},
    "shrinking as well": {"shrink": True},
    **{f"{name}, zero-output channels": {"scorer": name, "operators": ("zero_output",)} for name in SHAPED},
}


def tried(results: Results, label: str, setting: Setting, seeds: int) -> None:
    """All variants, seed by seed: as grown, and their widths trained from scratch."""
    data, tuned = tasks.without_test(tasks.load(setting.task)), dict.fromkeys(ARMS, POINT)
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        runs = Runs(setting, data, seed, tuned)
        for arm in TO_BEAT:
            _once(results, label, runs, arm, arm)
        for name, ours in VARIANTS.items():
            runs = Runs(replace(setting, ours=ours), data, seed, tuned)
            for arm in ("energy/inherited", "energy/retrained"):
                _once(results, label, runs, name, arm)


def _once(results: Results, label: str, runs: Runs, name: str, arm: str) -> None:
    key: Key = {"kind": "tried", "setting": label, "task": runs.setting.task, "variant": name, "arm": arm, "seed": runs.seed}

    def values() -> Values:
        try:
            return {name: value for name, value in runs.run(arm).values().items() if not name.startswith("test")}  # none was read
        except NotANumber as error:
            return {"selection_loss": None, "failure": str(error)}

    results.once(key, values)
