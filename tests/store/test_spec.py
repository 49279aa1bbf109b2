"""What a job spec refuses because its parts don't go together."""

from typing import Any

import pytest
from pydantic import ValidationError

from store.spec import JobSpec

SPEC: dict[str, Any] = {
    "name": "job", "data": {"name": "digits"}, "network": {"family": "plain", "widths": [4, 4]}, "budget": {"cost": "macs", "limit": 1e5},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controls": ["uniform", "uniform"]}, "a control is named twice"),
        ({"controls": ["slimming"], "network": {**SPEC["network"], "norm": False}}, "slimming prunes by the scales of batch norms"),
        (
            {"budget": {"cost": "latency_ms", "limit": 1, "declared_watts": 9}},
            "declared_watts estimates energy, and latency_ms is asked for",
        ),
        ({"growth": {"shrink": True, "step_rule": "line_search"}}, "shrink weighs removals against gains; use step_rule fixed"),
        ({"further_budgets": [{"cost": "macs", "limit": 9e4, "device": "pi-4"}]}, "macs is limited twice in the same setting"),
        ({"growth": {"rounds": 2, "moments": [0.3, 0.2]}}, "give 2 rising shares of the compute, one for each round"),
        ({"growth": {"rounds": 2, "moments": [0.3]}}, r"moments are \[0.3\]; give 2 rising shares"),
        ({"growth": {"shrink": True, "scorer": "random"}}, "shrink weighs removals against gains"),
        ({"growth": {"shrink": True, "operators": ["twins"]}}, "shrink weighs removals against gains"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JobSpec.model_validate({**SPEC, **changes})


def test_shrinking_and_slimming_go_with_the_defaults() -> None:
    spec = JobSpec.model_validate({**SPEC, "growth": {"shrink": True}, "controls": ["slimming"]})
    assert spec.growth.shrink
    assert spec.controls == ("slimming",)


def test_a_quantity_may_be_limited_on_several_devices() -> None:
    further = [{"cost": "latency_ms", "limit": 1, "device": "pi-4"}, {"cost": "latency_ms", "limit": 2}, {"cost": "params", "limit": 9e3}]
    spec = JobSpec.model_validate({**SPEC, "further_budgets": further})
    assert [budget.device for budget in spec.budgets] == ["this-host", "pi-4", "this-host", "this-host"]
