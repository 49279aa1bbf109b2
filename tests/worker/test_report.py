"""What the report says of the budget and of predictions; nothing that was not measured has a number."""

from __future__ import annotations

from typing import Any

import pytest

from costs.families import Network
from costs.model import Cost
from growth.events import Outcome, Round
from profiler.timing import Measurement
from worker.measured import Measurements
from worker.report import budget_words, predicted_versus_measured, rounds_words

NETWORK = Network("plain", (3, 4), 8, 1, 10)


def latency(median: float) -> dict[str, Any]:
    return Measurements({NETWORK.widths: Measurement(median, median - 0.1, median + 0.1, 50, 2)}, {}).of(NETWORK)


def closed(outcome: Outcome, reason: str) -> Round:
    cost = Cost(1.0, "MACs", "exact")
    return Round(
        number=1, widths_before=(4,), channels_added=(0,), added_by={}, split_step=0.3, cost_before=cost, limit=2.0,
        predicted_change=-0.1, predicted_error=0.2,
        change_at_growth=None, loss_before=0.5, channels_scored=4, channels_gaining=3, channels_reliable=0, fresh_images=512, gap=0.0,
        outcome=outcome, reason=reason, widths_after=(4,), cost_after=cost, loss_after=0.4, accuracy_after=0.9, rolled_back=False,
    )  # fmt: skip


def test_a_run_that_added_nothing_says_so() -> None:
    doubtful = closed("no_reliable_gain", "no reliable gain: predicted -0.1 ± 0.2 nats on 256 fresh images")
    assert rounds_words([doubtful, doubtful]) == f"No round added a channel; the last one: {doubtful.reason}."
    assert rounds_words([doubtful, closed("grown", "")]) == rounds_words([]) == ""


def test_a_measurement_over_the_limit_is_said() -> None:
    assert "20.0 % over the limit of 1 ms" in budget_words(latency(1.2), 1.0)
    assert "over" not in budget_words(latency(1.05), 1.0)  # its interval holds the limit
    assert budget_words(None, 1.0) == ""
    assert budget_words(Measurements.none([NETWORK], "not here").of(NETWORK), 1.0) == ""


def test_predicted_versus_measured() -> None:
    results = {
        "grown": {"widths": [8], "measured_latency": latency(1.0), "predicted_cost": {"value": 1.1}},
        "random": {"widths": [9], "measured_latency": latency(2.0), "predicted_cost": {"value": 1.8}},
        "twins": {"widths": [8], "measured_latency": latency(1.0), "predicted_cost": {"value": 1.1}},  # the same network
    }
    found = predicted_versus_measured(results, "latency_ms")
    assert found["error_percent"] == pytest.approx({"grown": 10.0, "random": -10.0})
    assert found["mean_absolute_error_percent"] == pytest.approx(10.0)
    assert "note" not in found
    results["random"]["predicted_cost"] = {"value": 2.3}
    assert "at least 10 % cheaper than predicted" in predicted_versus_measured(results, "latency_ms")["note"]
    assert "nothing was predicted" in predicted_versus_measured(results, "macs")["reason"]
    absent = {"widths": [8], "measured_latency": {"reason": "not here"}, "predicted_cost": {"value": 1.1}}
    assert predicted_versus_measured({"grown": absent}, "latency_ms") == {"reason": "not here"}
