"""A report as a growth job writes it."""

import copy
from typing import Any

import pytest

COST = {"value": 1.25, "unit": "ms", "kind": "calibrated_sum", "low": 1.2, "high": 1.3}
RESULT = {
    "widths": [8, 8], "layers": [{"name": "stem", "width": 8}, {"name": "blocks.0.pointwise", "width": 8}], "predicted_cost": COST,
    "measured_latency": {"median_ms": 1.3, "low": 1.28, "high": 1.31, "unit": "ms", "kind": "measured"}, "macs": 150_000, "params": 2_000,
    "test_loss": 0.2, "test_accuracy": 0.961, "charged_macs": 3e9, "steps": 900, "seconds": 20.0,
}  # fmt: skip
REPORT = {
    "job": "j1", "name": "digits", "device": "this-host",
    "budget": {"cost": "latency_ms", "limit": 2.0, "device": "this-host", "batch_size": 32, "threads": 1},
    "seed": RESULT,
    "grown": {**RESULT, "widths": [8, 16], "layers": [{"name": "stem", "width": 8}, {"name": "blocks.0.pointwise", "width": 16}]},
    "controls": {"uniform": RESULT, "cost_only": {**RESULT, "measured_latency": {"reason": "busy"}}},
    "rounds": [{
        "number": 1, "channels_added": [0, 8], "predicted_change": -0.01, "predicted_error": 0.002, "change_at_growth": -0.008,
        "loss_before": 0.3, "loss_after": 0.25, "cost_after": COST, "limit": 2.0, "rolled_back": False, "outcome": "split", "reason": None,
    }],
    "predicted_versus_measured": {"mean_absolute_error_percent": 3.84},
    "verdict": {"sentence": "Growth did not beat the uniform control."},
}  # fmt: skip


@pytest.fixture
def report() -> dict[str, Any]:
    return copy.deepcopy(REPORT)
