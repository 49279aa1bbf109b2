"""One session for many pieces of work on the NVML stub, whose clock moves only by work and sleep: what each draws is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from profiler.meters import SOURCES, DeviceLost
from profiler.timing import NoResult
from profiler.windows import Energies, Host, Plan, measure_energies

TRUTH = {"small": 0.01 * 90.0, "middle": 0.02 * 150.0, "large": 0.05 * 260.0}  # joules
SHORT = replace(Plan.of(1.0, 240.0), precision=0.05)


@pytest.fixture
def work(stub: Any) -> dict[str, Callable[[], None]]:
    stub.set("period", 0.02)  # a counter fast enough for windows of a second
    return {"small": stub.work((0.01, 90.0)), "middle": stub.work((0.02, 150.0)), "large": stub.work((0.05, 260.0))}


def session(stub: Any, host: Host, work: Any, plan: Plan = SHORT, **more: Any) -> Energies[str]:
    return measure_energies(work, SOURCES["nvml_total_energy"](), plan, host, sentinel=stub.work((0.02, 120.0)), **more)


def test_each_piece_of_work_has_its_own_energy(stub: Any, host: Host, work: Any) -> None:
    found = session(stub, host, work)
    assert found.missing == {}
    for name, joules in TRUTH.items():
        energy = found.results[name]
        assert energy.gross.low <= joules <= energy.gross.high
        assert energy.gross.value == pytest.approx(joules, rel=0.02)
        assert energy.net.value == pytest.approx(joules - 30.0 * energy.seconds, rel=0.03)
        whole = energy.measurement()
        assert whole.median == 1e3 * energy.gross.value
        assert whole.net is not None
        assert (whole.origin.meter, whole.origin.scope, whole.repetitions) == ("nvml_total_energy", "gpu", energy.windows)


def test_rounds_are_in_random_order_and_repeatable(stub: Any, host: Host, work: Any) -> None:
    def order(seed: int) -> list[str]:
        stub.reset()
        stub.set("period", 0.02)
        seen: list[str] = []

        def noting(name: str, call: Callable[[], None]) -> Callable[[], None]:
            return lambda: (seen.append(name), call())[1]  # type: ignore[func-returns-value]

        session(stub, host, {name: noting(name, call) for name, call in work.items()}, seed=seed)
        return [name for name, before in zip(seen, ["", *seen], strict=False) if name != before]

    assert order(1) == order(1) != order(2)


def test_sentinel_and_twin_agree_on_a_steady_device_and_tell_when_it_changes(stub: Any, host: Host, work: Any) -> None:
    steady = session(stub, host, work)
    assert steady.drift == pytest.approx(0.0, abs=0.02)
    assert steady.twin == pytest.approx(0.0, abs=0.02)
    stub.reset()
    stub.set("period", 0.02)
    stub.every(0.5, lambda: stub.set("gain", 1 + 0.1 * min(1.0, stub.clock() / 30)))  # the sensor slowly reads 10 % more
    drifting = session(stub, host, work, replace(SHORT, idle_drift_watts=10.0))
    assert drifting.drift is not None
    assert drifting.drift > 0.02


def test_twins_with_too_few_windows_say_nothing(stub: Any, host: Host, work: Any) -> None:
    found = session(stub, host, work, should_stop=lambda: stub.clock() > 12)
    assert (found.twin, found.drift) == (None, None)


def test_a_long_session_looks_at_the_idle_device_again(stub: Any, host: Host, work: Any) -> None:
    level = [30.0]
    stub.every(0.1, lambda: level.__setitem__(0, 30.0 + 0.05 * stub.clock()))
    rising = {name: (lambda s=seconds, w=watts: (stub.set("watts", level[0] + w), stub.sleep(s), stub.set("watts", level[0])))
              for name, seconds, watts in (("small", 0.01, 100.0), ("large", 0.05, 200.0))}  # fmt: skip
    found = measure_energies(rising, SOURCES["nvml_power"](), replace(SHORT, idle_every_seconds=5.0), host)
    for name, net in (("small", 1.0), ("large", 10.0)):
        assert found.results[name].net.value == pytest.approx(net, rel=0.03)


@pytest.mark.parametrize("moment", [0.1, 6.0, 15.0, 30.0])
def test_a_lost_device_ends_the_session_and_leaves_no_number(stub: Any, host: Host, work: Any, moment: float) -> None:
    stub.at(moment, lambda: stub.set("lost", 1))
    with pytest.raises(DeviceLost, match=r"GPU-.*GPU is lost; the GPU fell off the bus: .*reset it"):
        session(stub, host, work)


def test_only_what_is_throttled_has_no_number(stub: Any, host: Host, work: Any) -> None:
    """The large one runs into the power brake; its windows are dropped, and nobody else's."""
    calm = work["large"]

    def hot() -> None:
        stub.set("throttle", 0x80)
        calm()

    def unthrottled(call: Callable[[], None]) -> Callable[[], None]:
        return lambda: (stub.set("throttle", 0), call())[1]  # type: ignore[func-returns-value]

    found = session(stub, host, {"small": unthrottled(work["small"]), "large": hot})
    assert set(found.results) == {"small"}
    assert "x throttled (power brake)" in str(found.missing["large"])


def test_whoever_stops_it_gets_no_numbers(stub: Any, host: Host, work: Any) -> None:
    found = session(stub, host, work, should_stop=lambda: stub.clock() > 12)
    assert found.results == {}
    assert stub.clock() < 16


def test_a_time_budget_too_small_for_all_is_refused(stub: Any, host: Host, work: Any) -> None:
    found = session(stub, host, work, replace(SHORT, seconds=20.0))
    assert set(found.missing) == set(TRUTH)
    assert "25 windows" in str(found.missing["small"])
    assert "a time budget of at least" in str(found.missing["small"])
    assert isinstance(found.missing["small"], NoResult)


def test_progress_counts_windows(stub: Any, host: Host, work: Any) -> None:
    told: list[tuple[int, int, str]] = []
    session(stub, host, work, progress=lambda *now: told.append(now))
    assert told[0][2] == "energy, 0 of 25 windows"
    assert all(done <= total == 240 for done, total, _ in told)


@pytest.mark.parametrize("window_seconds", [0.3, 1.0, 5.0])
def test_a_plan_holds_as_many_as_it_says(window_seconds: float) -> None:
    plan = Plan.of(window_seconds, 300.0)
    assert plan.seconds_for(plan.subjects()) <= 300.0 < plan.seconds_for(plan.subjects() + 1)
    assert replace(Plan.of(5.0, 180.0), overtime=1.0) == Plan()
