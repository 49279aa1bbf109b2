"""The stub itself: its truth must be true before anything is tested against it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler.meters import SOURCES


def energy_of(stub: Any, seconds: float) -> float:
    before = stub.get("true_joules")
    stub.sleep(seconds)
    return float(stub.get("true_joules") - before)


@pytest.mark.parametrize(
    ("points", "seconds", "joules"),
    [
        (((0.0, 100.0), (1.0, 100.0)), 3.0, 300.0),
        (((0.0, 0.0), (2.0, 200.0)), 2.0, 200.0),  # a ramp
        (((0.0, 50.0), (0.25, 50.0), (0.25, 350.0), (1.0, 350.0)), 4.0, 4 * (12.5 + 262.5)),  # a square wave
        (((0.0, 20.0), (1.0, 20.0), (1.0, 30.0), (3.0, 30.0), (3.0, 25.0), (4.0, 25.0)), 4.0, 105.0),  # idle steps
    ],
)
def test_power_follows_its_trace(stub: Any, points: tuple[tuple[float, float], ...], seconds: float, joules: float) -> None:
    stub.trace(points)
    assert energy_of(stub, seconds) == pytest.approx(joules, rel=1e-3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.floats(0.01, 0.5), st.lists(st.tuples(st.floats(0.001, 0.7), st.floats(1, 500)), min_size=1, max_size=20))
def test_the_counter_shows_the_truth_as_of_its_last_step_in_whole_millijoules(
    stub: Any, period: float, parts: list[tuple[float, float]]
) -> None:
    stub.reset()
    stub.set("period", period)
    start, most, elapsed = stub.get("counter_joules"), max(watts for _, watts in parts), 0.0
    for seconds, watts in parts:
        stub.set("watts", watts)
        stub.sleep(seconds)
        elapsed += seconds
    shown = (SOURCES["nvml_total_energy"]().joules() or 0.0) - start
    assert shown <= stub.get("true_joules") + 1e-6
    assert shown >= stub.get("true_joules") - period * most - 2e-3
    assert elapsed >= period or shown == 0


def test_a_short_window_reads_nothing_or_a_whole_step(stub: Any) -> None:
    """Zeus 0.16 on such a counter reports 0 J or 20 J for 10 J."""
    source = SOURCES["nvml_total_energy"]()
    stub.set("watts", 200)
    stub.sleep(1.02)
    seen = []
    for _ in range(4):
        before = source.joules() or 0.0
        stub.sleep(0.05)
        seen.append(round((source.joules() or 0.0) - before, 3))
    assert seen == [0.0, 20.0, 0.0, 20.0]


def test_a_partly_sampled_sensor_takes_a_part_for_the_whole(stub: Any) -> None:
    source = SOURCES["nvml_total_energy"]()
    stub.set("fraction", 0.25)
    stub.set("phase", 0.05)
    before = source.joules() or 0.0
    stub.trace(((0.0, 100.0), (0.05, 100.0), (0.05, 400.0), (0.1, 400.0)))
    assert energy_of(stub, 10.0) == pytest.approx(2500, rel=5e-3)
    assert (source.joules() or 0.0) - before == pytest.approx(4000, rel=0.03)


def test_gain_noise_and_averages_are_those_of_the_sensor(stub: Any) -> None:
    stub.set("gain", 0.9)
    stub.set("watts", 200)
    stub.sleep(5.0)
    source = SOURCES["nvml_power"]()
    assert source.watts() == pytest.approx(180)
    stub.set("watts", 100)
    stub.sleep(0.1)
    assert source.watts() == pytest.approx(90)
    stub.fail("field:186:0", 3)
    assert (SOURCES["nvml_power"]().watts() or 0.0) > 150  # the mean of the last second lags behind
    stub.set("noise", 0.1)
    stub.fail("field:186:0", 0)
    readings = {(stub.sleep(0.025), SOURCES["nvml_power"]().watts())[1] for _ in range(20)}
    assert len(readings) == 20


def test_calls_fail_when_told_to_and_heal(stub: Any) -> None:
    source = SOURCES["nvml_total_energy"]()
    stub.fail("nvmlDeviceGetTotalEnergyConsumption", 999, after=2)
    source.joules()
    source.joules()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="Unknown Error"):
            source.joules()
    stub.fail("nvmlDeviceGetTotalEnergyConsumption", 0)
    assert source.joules() == 1000
