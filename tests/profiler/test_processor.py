"""Where work is executed: the contract of every processor that is here, and that everything measured goes through the one that is asked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from costs.families import Network
from costs.table import Setting
from profiler.anchors import measure_networks
from profiler.device import fingerprint
from profiler.drift import measure_drift
from profiler.energy_request import EnergyRequest, open_source
from profiler.meters import SOURCES, CudaEvents, DeviceState, Meter, MeterError, MeterUnavailable, WallClock
from profiler.plan import Plan
from profiler.processor import CPU, PROCESSORS, Cpu, open_processor
from profiler.profile import profile_device
from profiler.timing import Subject, Work

TINY = Network("plain", (4, 4), 8, 1, 3)
ONE = Setting()


class Counting(Cpu):
    """A CPU that counts what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.called, self.waited, self.opened = 0, set[int](), 0, 0

    def ready(self, function: Callable[..., object], *inputs: Tensor) -> Work:
        number = self.given
        self.given += 1

        def counted(*arguments: Tensor) -> None:
            self.called.add(number)
            function(*arguments)

        return super().ready(counted, *inputs)

    def meter(self) -> Meter:
        self.opened += 1
        return WallClock(scheduler_delay=lambda: 0.0, page_faults=lambda: 0)

    def synchronise(self) -> None:
        self.waited += 1


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_executes_times_and_waits(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    on = open_processor(name)
    x = torch.zeros(3, device=on.device)
    work, meter = on.ready(lambda: x.add_(1)), on.meter()
    on.synchronise()
    before = x.clone()
    meter.start()
    work()
    reading = meter.stop()
    on.synchronise()
    assert (x - before).tolist() == [1, 1, 1]
    assert meter.quantity == "latency_ms"
    assert reading.value > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("abacus", "torch_device is 'abacus', which torch does not know; give cpu, cuda or cuda:1"),
        ("meta", "torch_device is 'meta'; work on cpu and cuda can be measured"),
        ("cpu:1", "torch_device is cpu:1; a machine has one cpu: write cpu"),
        ("cuda:99", r"torch_device is cuda:99; torch .* finds \d+ CUDA devices here: .*or use cpu"),
    ],
)
def test_a_processor_that_is_not_here_is_refused_with_the_remedy(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_processor(name)


def test_all_that_a_profile_measures_is_executed_by_its_processor() -> None:
    on = Counting()
    profile = profile_device(TINY, "bench", ONE, 1.5, 1.0, anchors=3, on=on)
    assert on.given >= len(profile.table) + 3 + 1  # layers, whole networks, the sentinel
    assert on.called == set(range(on.given))
    assert on.opened == 1
    assert measure_drift(profile.table, ONE, 0.2, on=on).entries > 0
    assert on.opened == 2
    measure_networks({"a": torch.nn.Identity()}, torch.zeros(1, 3), ONE, 0.1, on=on)
    assert (on.opened, on.called) == (3, set(range(on.given)))


def test_energy_waits_for_the_processor_whose_work_it_measures(stub: Any) -> None:
    on = Counting()
    request = EnergyRequest.by("nvml_total_energy", Plan(), on)
    assert request.on is on
    request.host.synchronise()
    assert on.waited == 1
    assert request.source.origin.device == SOURCES["nvml_total_energy"]().origin.device


@pytest.mark.parametrize(
    ("meter", "device", "options"),
    [
        ("nvml_power", "cuda:1", {"device": "GPU-of-cuda-1"}),
        ("nvml_total_energy", "cuda", {"device": "GPU-of-cuda-0"}),
        ("nvml_power", "cpu", {}),
        ("rapl_package", "cuda:1", {}),
    ],
)
def test_nvidias_meters_are_opened_on_the_gpu_that_does_the_work(
    monkeypatch: pytest.MonkeyPatch, meter: str, device: str, options: dict[str, str]
) -> None:
    monkeypatch.setattr("profiler.energy_request.torch_uuid", lambda index: f"GPU-of-cuda-{index}")
    opened: list[dict[str, str]] = []
    open_source(meter, torch.device(device), {meter: lambda **given: opened.append(given)})  # type: ignore[dict-item, return-value]
    assert opened == [options]


def test_the_cpu_needs_no_word_about_gpus() -> None:
    assert not {"gpu", "gpu_uuid", "tf32"} & fingerprint(1, CPU).keys()


@pytest.mark.parametrize(
    ("state", "disturbed"),
    [
        (DeviceState(), None),
        (DeviceState(throttle=0x4), None),  # the power cap: usual under full load
        (DeviceState(throttle=0x40), "throttled (hardware thermal)"),
        (DeviceState(foreign=frozenset({4242})), "other processes on the device"),
    ],
)
def test_a_window_between_events_is_disturbed_by_what_nvml_sees(
    fake_cuda: Callable[..., Any], state: DeviceState, disturbed: str | None
) -> None:
    meter = CudaEvents(lambda: state, fake_cuda(iter((2.0, 2.5))))
    meter.start()
    reading = meter.stop()
    assert (reading.value, reading.disturbed) == (500.0, disturbed)
    assert (reading.origin.kind, reading.origin.scope) == ("measured", "gpu")


def test_throttling_that_is_over_by_the_end_of_a_window_disturbs_it_as_well(fake_cuda: Callable[..., Any]) -> None:
    states = iter((DeviceState(throttle=0x20), DeviceState()))
    meter = CudaEvents(lambda: next(states), fake_cuda(iter((2.0, 2.5))))
    meter.start()
    assert meter.stop().disturbed == "throttled (software thermal)"


def test_a_device_without_room_for_events_is_an_error_with_a_remedy(fake_cuda: Callable[..., Any]) -> None:
    cuda = fake_cuda(iter(()))

    def no_memory(enable_timing: bool) -> None:
        raise RuntimeError("CUDA error: out of memory")

    cuda.Event = no_memory
    with pytest.raises(MeterError, match="out of memory; see `nvidia-smi`"):
        CudaEvents(lambda: DeviceState(), cuda)


def test_windows_are_filled_by_what_work_takes_and_not_by_what_it_takes_to_queue_it(fake_cuda: Callable[..., Any]) -> None:
    """Work that is queued in no time, and takes 5 ms on a clock that only waiting for it moves."""
    now, queued = [0.0], [0]

    def work() -> None:
        queued[0] += 1

    def wait() -> None:
        now[0] += 5e-3 * queued[0]
        queued[0] = 0

    subject = Subject(work)
    subject.prepare(CudaEvents(lambda: DeviceState(), fake_cuda(iter(()))), lambda: now[0], wait)
    assert subject.calls == 1


def test_without_nvml_the_origin_says_that_nobody_watched(fake_cuda: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    meter = CudaEvents(cuda=fake_cuda(iter((0.0, 1.0))))
    meter.start()
    assert "throttling not watched" in meter.stop().origin.detail


def test_without_cuda_there_are_no_events(fake_cuda: Callable[..., Any]) -> None:
    with pytest.raises(MeterUnavailable, match=r"torch finds no CUDA device; .*wall_clock"):
        CudaEvents(cuda=fake_cuda(iter(()), devices=0))


def test_a_gpu_that_torch_does_not_name_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.energy_request.torch_uuid", lambda _index: None)
    with pytest.raises(MeterUnavailable, match="torch does not say which GPU cuda:1 is; use torch"):
        open_source("nvml_power", torch.device("cuda:1"))
