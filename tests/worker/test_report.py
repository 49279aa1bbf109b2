"""The verdict follows its rule, also where growth did not pay; nothing that was not measured has a number."""

from __future__ import annotations

from typing import Any

import pytest

from costs.model import Cost
from growth.events import Outcome, Round
from profiler.timing import Measurement
from worker.report import Measurements, predicted_versus_measured, verdict


def result(test_loss: float, **parts: Any) -> dict[str, Any]:
    return {"test_loss": test_loss, "measured_latency": {"reason": "not here"}, **parts}


def latency(median: float) -> dict[str, Any]:
    return Measurements({"net": Measurement(median, median - 0.1, median + 0.1, 50, 2)}, {}).of("net")


@pytest.mark.parametrize(
    ("controls", "paid", "best", "words"),
    [
        ({"uniform": 0.3, "random": 0.4}, True, "grown", "Growing paid"),
        ({"uniform": 0.1, "random": 0.4}, False, "uniform", "Growing did not pay: uniform did no worse"),
        ({"uniform": 0.2, "random": 0.4}, False, "grown", "Growing did not pay: uniform did no worse"),
        ({"uniform": 0.1, "random": 0.15}, False, "uniform", "uniform and random did no worse"),
        ({}, None, "grown", "No control was run"),
    ],
)
def test_verdict(controls: dict[str, float], paid: bool | None, best: str, words: str) -> None:
    results = {"grown": result(0.2), **{name: result(loss) for name, loss in controls.items()}}
    found = verdict(results, 1.0, None)
    assert (found["paid"], found["best"]) == (paid, best)
    assert words in found["sentence"]
    assert set(found["better_than"]) | set(found["not_better_than"]) == set(controls)


def closed(outcome: Outcome, reason: str) -> Round:
    cost = Cost(1.0, "MACs", "exact")
    return Round(
        number=1, widths_before=(4,), split_counts=(0,), cost_before=cost, limit=2.0, predicted_change=-0.1, predicted_error=0.2,
        change_at_split=None, loss_before=0.5, channels_scored=4, channels_negative=3, channels_reliable=0, fresh_images=512, gap=0.0,
        outcome=outcome, reason=reason, widths_after=(4,), cost_after=cost, loss_after=0.4, accuracy_after=0.9, rolled_back=False,
    )  # fmt: skip


def test_a_run_that_split_nothing_says_so() -> None:
    doubtful = closed("no_reliable_gain", "no reliable gain: predicted -0.1 ± 0.2 nats on 256 fresh images")
    found = verdict({"grown": result(0.2)}, 1.0, None, [doubtful, doubtful])["sentence"]
    assert found.endswith(f"No round split a channel; the last one: {doubtful.reason}.")
    assert "No round split" not in verdict({"grown": result(0.2)}, 1.0, None, [doubtful, closed("split", "")])["sentence"]


def test_a_measurement_over_the_limit_is_said() -> None:
    over = verdict({"grown": result(0.2, measured_latency=latency(1.2))}, 1.0, "ms")["sentence"]
    assert "20.0 % over the limit of 1 ms" in over
    within = verdict({"grown": result(0.2, measured_latency=latency(1.05))}, 1.0, "ms")["sentence"]
    assert "over" not in within  # its interval holds the limit


def test_predicted_versus_measured() -> None:
    results = {
        "grown": result(0.2, measured_latency=latency(1.0), predicted_cost={"value": 1.1}),
        "random": result(0.2, measured_latency=latency(2.0), predicted_cost={"value": 1.8}),
    }
    found = predicted_versus_measured(results, "latency_ms")
    assert found["error_percent"] == pytest.approx({"grown": 10.0, "random": -10.0})
    assert found["mean_absolute_error_percent"] == pytest.approx(10.0)
    assert "nothing was predicted" in predicted_versus_measured(results, "macs")["reason"]
    assert predicted_versus_measured({"grown": result(0.2)}, "latency_ms") == {"reason": "not here"}
