import mmap
from collections.abc import Callable

import pytest

from costs.table import UNITS
from profiler.meters import METERS, Meter, WallClock, minor_page_faults, scheduler_delay_seconds


@pytest.mark.parametrize("name", METERS)
def test_a_meter_names_its_quantity_and_reads_more_for_more_work(name: str) -> None:
    meter: Meter = METERS[name]()
    assert meter.quantity in UNITS
    assert meter.window_seconds > 0
    readings = []
    for repeats in (1, 20):
        meter.start()
        sum(i * i for _ in range(repeats) for i in range(20_000))
        readings.append(meter.stop())
    assert 0 < readings[0].value < readings[1].value
    assert all(reading.disturbed is None or reading.disturbed for reading in readings)


def steps(*values: float) -> Callable[[], float]:
    remaining = iter(values)
    return lambda: next(remaining)


@pytest.mark.parametrize(
    ("delay_seconds", "faults", "disturbed"),
    [(0.0, 0, None), (0.19, 0, None), (0.21, 0, "waited for a core"), (0.0, 58_000, None), (0.0, 60_000, "page faults")],
)
def test_a_window_is_disturbed_when_more_than_two_percent_of_it_went_elsewhere(
    delay_seconds: float, faults: int, disturbed: str | None
) -> None:
    fault_counts = iter((5, 5 + faults))
    meter = WallClock(steps(100.0, 110.0), steps(1.0, 1.0 + delay_seconds), lambda: next(fault_counts))
    meter.start()
    reading = meter.stop()
    assert reading.value == pytest.approx(10_000)
    assert reading.disturbed == disturbed


def test_the_kernels_counters_do_not_run_backwards() -> None:
    before = (scheduler_delay_seconds(), minor_page_faults())
    with mmap.mmap(-1, 2**20) as fresh:  # pages of its own: an allocator that keeps freed memory gives no fault
        fresh[:] = bytes(len(fresh))
    after = (scheduler_delay_seconds(), minor_page_faults())
    assert after[0] >= before[0] >= 0
    assert after[1] > before[1]
