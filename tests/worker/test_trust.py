"""Whether a job may trust its table: a machine as it was, one that has changed a little or a lot, and one that can't tell."""

from typing import Any

import pytest

from costs.table import CostTable
from profiler.drift import Drift
from profiler.processor import CPU, Processor
from profiler.timing import NoResult
from store.spec import BudgetSpec
from worker import trust
from worker.causes import explain
from worker.trust import REFUSE, WARN, TableOutdated, check_tables, drift_words

HERE = "this-host"
LATENCY = {"cost": "latency_ms", "limit": 4.0, "device": HERE}


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> list[float | Exception]:
    """What the drift check finds, setting by setting."""
    found: list[float | Exception] = []

    def measured(*_table_and_setting: object, on: Processor) -> Drift:
        ratio = found.pop(0)
        if isinstance(ratio, Exception):
            raise ratio
        return Drift(ratio, 0.98 * ratio, 1.02 * ratio, 12)

    monkeypatch.setattr(trust, "measure_drift", measured)
    return found


def checked(*budgets: dict[str, Any], refuse: bool = True) -> list[dict[str, Any]]:
    return check_tables([BudgetSpec(**{"threads": 1, **budget}) for budget in budgets], HERE, CPU, lambda: CostTable(HERE), refuse)


@pytest.mark.parametrize("ratio", [1.0, 0.99 * WARN, 1.01 / WARN])
def test_a_machine_as_it_was_is_not_worth_a_word(pace: list[float | Exception], ratio: float) -> None:
    pace.append(ratio)
    (found,) = checked(LATENCY)
    assert (found["device"], found["batch"], found["ratio"], found["entries"]) == (HERE, 1, ratio, 12)
    assert "note" not in found
    assert drift_words([found]) == ""


@pytest.mark.parametrize("ratio", [1.01 * WARN, 0.99 / WARN, 0.99 * REFUSE, 1.01 / REFUSE])
def test_a_machine_at_another_pace_is_said_so_with_the_numbers(pace: list[float | Exception], ratio: float) -> None:
    pace.append(ratio)
    found = checked(LATENCY)
    assert f"{ratio:.2f} times as long" in drift_words(found)
    assert "12 layers measured again" in drift_words(found)


@pytest.mark.parametrize("ratio", [1.01 * REFUSE, 0.99 / REFUSE])
def test_a_machine_far_from_its_table_is_refused_with_the_remedy(pace: list[float | Exception], ratio: float) -> None:
    pace.append(ratio)
    with pytest.raises(
        TableOutdated, match=rf"{ratio:.2f} times as long .* more than a factor of 1.5: measure it again .*wattle profile"
    ) as error:
        checked(LATENCY)
    assert explain(error.value, None)[0] == "device_error"  # type: ignore[arg-type]


def test_a_job_that_has_been_working_goes_on_with_a_note(pace: list[float | Exception]) -> None:
    pace.append(3.0)
    assert "3.00 times as long" in drift_words(checked(LATENCY, refuse=False))


@pytest.mark.parametrize("reason", [NoResult("0 entries could be measured again"), ValueError("threads is 64")])
def test_a_machine_that_can_not_tell_gives_the_reason_and_the_job_goes_on(pace: list[float | Exception], reason: Exception) -> None:
    pace.append(reason)
    (found,) = checked(LATENCY)
    assert found["reason"] == str(reason)
    assert drift_words([found]) == ""


def test_what_is_counted_or_belongs_elsewhere_is_not_measured(pace: list[float | Exception]) -> None:
    assert checked({**LATENCY, "cost": "macs"}, {**LATENCY, "device": "pi-4"}) == []
    assert pace == []


def test_each_setting_is_checked_once(pace: list[float | Exception]) -> None:
    pace += [1.0, 1.1]
    found = checked(LATENCY, {**LATENCY, "cost": "energy_mj"}, {**LATENCY, "batch_size": 32})
    assert [each["batch"] for each in found] == [1, 32]
    assert "batch 32" in drift_words(found)
