import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from costs.table import UNITS
from profiler.meters import (
    METERS,
    SOURCES,
    CudaEvents,
    EnergyMeter,
    Meter,
    MeterError,
    MeterUnavailable,
    PowerModel,
    Recorder,
    Replay,
    WallClock,
    minor_page_faults,
    scheduler_delay_seconds,
)

Work = Callable[[int], None]


@dataclass
class Bench:
    """A meter and work it can see; the meter reads ``expected`` for one unit of it, where that is known."""

    meter: Meter
    work: Work
    expected: float | None = None


def zone(root: Path, name: str, label: str, microjoules: int = 0, largest: int = 262_143_328_850) -> Path:
    """A powercap zone as the kernel shows it."""
    folder = root / name
    folder.mkdir(parents=True)
    for file, value in (("name", label), ("energy_uj", microjoules), ("max_energy_range_uj", largest)):
        (folder / file).write_text(f"{value}\n")
    return folder


def hwmon(root: Path, **rails: tuple[float, float]) -> Path:
    """An INA3221 as the kernel shows it: label -> (volts, amperes)."""
    folder = root / "ina3221" / "1-0040" / "hwmon" / "hwmon3"
    folder.mkdir(parents=True)
    for n, (label, (volts, amperes)) in enumerate(rails.items(), 1):
        (folder / f"in{n}_label").write_text(label + "\n")
        (folder / f"in{n}_input").write_text(f"{volts * 1e3:.0f}\n")
        (folder / f"curr{n}_input").write_text(f"{amperes * 1e3:.0f}\n")
    return folder


def ready(name: str, stub: Any, fake_cuda: Callable[..., Any], tmp_path: Path) -> Bench:
    """Each meter in a world where it works; one unit of work is 100 W for a second, on its device."""
    time = {"clock": stub.clock, "every": stub.every}

    def gpu_work(n: int) -> None:
        for _ in range(10 * n):
            stub.work((0.1, 100.0), idle=100.0)()

    if name == "wall_clock":
        return Bench(WallClock(), lambda n: [sum(i * i for i in range(20_000)) for _ in range(n)] and None)
    if name == "cuda_events":
        return Bench(CudaEvents(SOURCES["nvml_power"]().state, fake_cuda(iter(stub.clock, None))), gpu_work, 1000)
    if name == "power_model":
        stopwatch = WallClock(stub.clock, lambda: 0.0, lambda: 0)
        return Bench(PowerModel(100.0, stopwatch), gpu_work, 100_000)
    if name == "replay":
        recorder = Recorder(EnergyMeter(SOURCES["nvml_power"](), **time), tmp_path / "log.jsonl")
        for n in (1, 20):
            recorder.start()
            gpu_work(n)
            recorder.stop()
        return Bench(Replay(tmp_path / "log.jsonl"), lambda n: None)
    if name == "ina3221":
        hwmon(tmp_path, VDD_IN=(20.0, 5.0))
        return Bench(EnergyMeter(SOURCES[name](root=tmp_path), **time), gpu_work, 100_000)
    if name.startswith("rapl"):
        file = zone(tmp_path, "intel-rapl:0", name.removeprefix("rapl_") + "-0") / "energy_uj"
        stub.every(0.02, lambda: file.write_text(str(round(stub.clock() * 100e6))))
        return Bench(EnergyMeter(SOURCES[name](root=tmp_path), **time), gpu_work, 100_000)
    return Bench(EnergyMeter(SOURCES[name](), **time), gpu_work, 100_000)


@pytest.mark.parametrize("name", METERS)
def test_a_meter_names_its_quantity_and_origin_and_reads_more_for_more_work(
    name: str, stub: Any, fake_cuda: Callable[..., Any], tmp_path: Path
) -> None:
    bench = ready(name, stub, fake_cuda, tmp_path)
    meter = bench.meter
    assert meter.quantity in UNITS
    assert meter.window_seconds > 0
    readings = []
    for repeats in (1, 20):
        meter.start()
        bench.work(repeats)
        readings.append(meter.stop())
    assert 0 < readings[0].value < readings[1].value
    for reading, units in zip(readings, (1, 20), strict=True):
        origin = reading.origin
        assert origin.meter.removeprefix("replay:") == ("nvml_power" if name == "replay" else name)
        assert origin.scope
        assert origin.device
        assert origin.kind == ("estimated:power_model" if name == "power_model" else "measured")
        assert name == "wall_clock" or reading.disturbed is None
        if bench.expected:
            assert reading.value == pytest.approx(bench.expected * units, rel=0.02)
            assert abs(reading.value - bench.expected * units) <= (reading.resolution or 1e-6) + 0.01 * reading.value


@pytest.mark.parametrize("name", sorted(set(METERS) - {"wall_clock"}))
def test_a_meter_that_cannot_be_used_says_why_and_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch, fake_cuda: Callable[..., Any]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    elsewhere = {"cuda": fake_cuda(iter(()), devices=0)} if name == "cuda_events" else {}
    with pytest.raises(MeterUnavailable, match=r".+; .+"):
        METERS[name](**({"root": Path("/nowhere")} if name.startswith(("rapl", "ina")) else elsewhere))


def test_a_recording_is_replayed_once_in_order_and_keeps_its_origin(stub: Any, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    recorder = Recorder(EnergyMeter(SOURCES["nvml_total_energy"](), clock=stub.clock, every=stub.every), log)
    recorded = []
    for watts in (100.0, 200.0):
        recorder.start()
        stub.work((5.0, watts))()
        recorded.append(recorder.stop())
    replay = Replay(log)
    assert (replay.quantity, replay.window_seconds) == (recorder.quantity, recorder.window_seconds)
    for before in recorded:
        replay.start()
        reading = replay.stop()
        assert (reading.value, reading.resolution) == (before.value, before.resolution)
        assert (reading.origin.meter, reading.origin.device) == ("replay:nvml_total_energy", before.origin.device)
    with pytest.raises(MeterError, match="holds 2 windows, all used; record"):
        replay.stop()


def test_what_disturbs_the_device_disturbs_the_window_of_its_meter(stub: Any) -> None:
    meter = EnergyMeter(SOURCES["nvml_total_energy"](), clock=stub.clock, every=stub.every)
    meter.start()
    stub.set("throttle", 0x40)
    for _ in range(20):
        stub.work((0.1, 100.0))()
    reading = meter.stop()
    assert (reading.disturbed, reading.value) == ("throttled (hardware thermal)", 0.0)


def test_a_power_model_hands_on_what_disturbed_its_stopwatch(stub: Any) -> None:
    waited = iter((0.0, 1.0))
    meter = PowerModel(100.0, WallClock(stub.clock, lambda: next(waited), lambda: 0))
    meter.start()
    stub.sleep(2.0)
    assert meter.stop().disturbed == "waited for a core"


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailable, match="is no log of readings"):
        Replay(tmp_path / "none")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5\n",
        '{"quantity": "energy_mj", "window_seconds": 1}\n5\n',
        "no json\n",
        '{"quantity": "energy_mj"}\n',
        '{"quantity": "energy_mj", "window_seconds": 1}\n{}\n',
    ],
)
def test_what_is_no_log_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(MeterUnavailable, match="is no log of readings"):
        Replay(tmp_path / "log")


@pytest.mark.parametrize("watts", [None, 0.0, -5.0, float("nan")])
def test_watts_are_declared_never_guessed(watts: float | None) -> None:
    with pytest.raises(MeterUnavailable, match="declare what the device draws"):
        PowerModel(watts)


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
