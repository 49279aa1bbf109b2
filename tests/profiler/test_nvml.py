"""The NVML meters on the stub library, through the real pynvml."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from profiler.meters import METERS, SOURCES, DeviceLost, EnergyMeter, MeterError, MeterUnavailable
from profiler.meters.nvml import Gpu, cuda_uuid, find_gpu, refuse_impostor

FIRST, SECOND = "GPU-00000001-0000-4000-8000-000000000000", "GPU-00000002-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (3, MeterUnavailable, r"Not Supported; .*ina3221"),
        (4, MeterUnavailable, r"Insufficient Permissions; .*/dev/nvidia"),
        (9, MeterUnavailable, r"Driver Not Loaded; load the NVIDIA driver"),
        (12, MeterUnavailable, r"Not Found; .*--gpus"),
        (13, MeterUnavailable, r"Function Not Found; .*update it"),
        (15, DeviceLost, r"GPU is lost; .*reset"),
        (16, DeviceLost, r"; reset the GPU"),
        (18, MeterUnavailable, r"version mismatch.*; .*reboot"),
        (999, MeterError, r"Unknown Error; .*dmesg"),
    ],
)
def test_an_error_of_nvml_is_ours_with_a_remedy(stub: Any, code: int, kind: type[MeterError], words: str) -> None:
    stub.fail("nvmlInitWithFlags", code)
    with pytest.raises(kind, match=words) as caught:
        METERS["nvml_total_energy"]()
    assert type(caught.value) is kind


def test_the_loader_finds_the_library_or_says_what_is_missing(nvml_library: Path) -> None:
    """The real way: the loader's path, another process, real time."""
    program = (
        "from profiler.meters import METERS\n"
        "try:\n meter = METERS['nvml_total_energy'](); print(meter.source.origin.device)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environ = {key: value for key, value in os.environ.items() if key not in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")}
    environ["PYTHONPATH"] = os.pathsep.join(sys.path)

    def run(**more: str) -> str:
        return subprocess.run([sys.executable, "-c", program], env=environ | more, capture_output=True, text=True, check=True).stdout

    assert run(LD_LIBRARY_PATH=str(nvml_library.parent), NVML_STUB="real_time=1,watts=200") == FIRST + "\n"
    if not Path("/dev/nvidiactl").exists():
        assert run().startswith("MeterUnavailable NVML: NVML Shared Library Not Found; install the NVIDIA driver")


def test_the_retired_pynvml_package_is_refused() -> None:
    package = ModuleType("pynvml")
    package.__path__, package.__file__ = [], "/site-packages/pynvml/__init__.py"  # type: ignore[attr-defined]
    with pytest.raises(MeterUnavailable, match=r"pynvml/__init__.py is the retired package pynvml.*pip install nvidia-ml-py"):
        refuse_impostor(package)
    old = ModuleType("pynvml")
    old.__file__ = "/site-packages/pynvml.py"
    with pytest.raises(MeterUnavailable, match="older than driver 525"):
        refuse_impostor(old)


class TestIdentity:
    def test_one_gpu_needs_no_naming(self, stub: Any) -> None:
        assert find_gpu().uuid == FIRST

    def test_a_gpu_is_found_by_uuid_and_nothing_else(self, stub: Any) -> None:
        stub.reset(2)
        assert find_gpu(SECOND).name == "Stub 1"
        with pytest.raises(MeterUnavailable, match=rf"no GPU GPU-9; this machine has {FIRST} \(Stub 0\), {SECOND}"):
            find_gpu("GPU-9")

    def test_cudas_own_order_is_not_guessed(self, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        stub.reset(2)
        with pytest.raises(MeterUnavailable, match=f"fastest first; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by UUID: {FIRST}"):
            find_gpu()
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        assert find_gpu().uuid == FIRST

    def test_pci_order_is_by_bus_address_not_by_the_drivers_list(self, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        stub.reset(2)
        stub.name(FIRST, "late", "00000000:C1:00.0", 0)
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        assert find_gpu().uuid == SECOND

    @pytest.mark.parametrize(
        ("visible", "index", "expected"),
        [
            ("1,0", 0, SECOND),
            ("1,0", 1, FIRST),
            (SECOND, 0, SECOND),
            ("GPU-00000002", 0, SECOND),
            (f"{SECOND},0", 1, FIRST),
            ("1,7,0", 0, SECOND),
        ],
    )
    def test_visible_devices_renumber(self, visible: str, index: int, expected: str) -> None:
        assert cuda_uuid(index, GPUS, {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == expected

    @pytest.mark.parametrize(("visible", "index"), [("", 0), ("-1", 0), ("1,7,0", 1), ("GPU-0", 0), ("nonsense", 0), ("0", 1)])
    def test_what_is_not_visible_is_not_measured(self, visible: str, index: int) -> None:
        with pytest.raises(MeterUnavailable, match="GPUs visible; give one of"):
            cuda_uuid(index, GPUS, {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})

    def test_an_index_in_visible_devices_is_cudas_too(self) -> None:
        with pytest.raises(MeterUnavailable, match="fastest first"):
            cuda_uuid(0, GPUS, {"CUDA_VISIBLE_DEVICES": "1"})

    def test_torch_knows_best(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=SECOND.removeprefix("GPU-")))
        assert cuda_uuid(0, GPUS, {}) == SECOND


GPUS = [Gpu(None, uuid, "Stub", f"0{n}", 8, False, 0) for n, uuid in enumerate((FIRST, SECOND))]


class TestProbing:
    """What a device promises counts for nothing; what it reads does."""

    def test_mig_instances_have_no_energy_of_their_own(self, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(MeterUnavailable, match=r"MIG instance: power and energy exist for the whole GPU only; .*power_model"):
            SOURCES["nvml_power"]("MIG-1234")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
        with pytest.raises(MeterUnavailable, match="MIG instance"):
            SOURCES["nvml_total_energy"]()

    @pytest.mark.parametrize(("knob", "value"), [("mig", 1), ("virtualisation", 3)])
    def test_a_gpu_that_is_divided_is_labelled(self, stub: Any, knob: str, value: int) -> None:
        stub.set(knob, value)
        assert {SOURCES[name]().origin.scope for name in ("nvml_total_energy", "nvml_power")} == {"parent_gpu"}

    @pytest.mark.parametrize("name", ["nvml_total_energy", "nvml_power"])
    def test_a_virtual_gpu_is_refused(self, stub: Any, name: str) -> None:
        stub.set("virtualisation", 2)
        with pytest.raises(MeterUnavailable, match=r"virtual GPU.*shared with other guests; .*passthrough"):
            SOURCES[name]()

    def test_a_jetson_accepts_nvml_and_measures_nothing(self, stub: Any) -> None:
        for call in ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"):
            stub.fail(call, 3)
        for name in ("nvml_total_energy", "nvml_power"):
            with pytest.raises(MeterUnavailable, match=r"Not Supported; .*on a Jetson use the meter ina3221"):
                SOURCES[name]()

    @pytest.mark.parametrize(
        ("failing", "detail"),
        [
            ((), "field 186 (instant)"),
            (("field:186:0",), "field 185 (mean of 1 s)"),
            (("field:186:0", "field:185:0"), "nvmlDeviceGetPowerUsage"),
            (("nvmlDeviceGetFieldValues",), "nvmlDeviceGetPowerUsage"),
        ],
    )
    def test_the_best_power_that_works_is_taken_and_named(self, stub: Any, failing: tuple[str, ...], detail: str) -> None:
        for call in failing:
            stub.fail(call, 3)
        source = SOURCES["nvml_power"]()
        assert source.origin.detail == detail
        assert source.watts() == pytest.approx(30.0)
        assert source.joules() is None

    def test_a_module_with_its_cpu_is_labelled_and_not_compared_with_the_gpus_counter(self, stub: Any) -> None:
        stub.set("module_watts", 70)
        for field in (185, 186):
            stub.fail(f"field:{field}:0", 3)
        power = SOURCES["nvml_power"]()
        assert (power.origin.scope, power.watts()) == ("module", pytest.approx(100.0))
        assert SOURCES["nvml_total_energy"]().watts() is None

    def test_zero_is_no_measurement(self, stub: Any) -> None:
        stub.set("gain", 0)
        stub.set("watts", 0)
        stub.sleep(5)
        with pytest.raises(MeterUnavailable, match="power reads 0 W"):
            SOURCES["nvml_power"]()
        stub.set("counter_joules", 0)
        with pytest.raises(MeterUnavailable, match="counter stands at 0 J, so it is not driven; use the meter nvml_power"):
            SOURCES["nvml_total_energy"]()

    def test_a_counter_without_readable_power_still_counts(self, stub: Any) -> None:
        for call in ("nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"):
            stub.fail(call, 3)
        source = SOURCES["nvml_total_energy"]()
        assert (source.watts(), source.joules()) == (None, pytest.approx(1000.0))

    @pytest.mark.parametrize(
        ("name", "architecture", "partly"),
        [("NVIDIA A100-SXM4-80GB", 7, True), ("NVIDIA H100 PCIe", 9, True), ("NVIDIA GeForce RTX 3090", 7, False)],
    )
    def test_parts_that_sample_a_quarter_of_the_time_are_known(self, stub: Any, name: str, architecture: int, partly: bool) -> None:
        stub.name(FIRST, name, "0")
        stub.set("architecture", architecture)
        assert SOURCES["nvml_total_energy"]().origin.partly_sampled is partly

    def test_the_state_is_what_the_device_says_and_none_where_it_does_not(self, stub: Any) -> None:
        stub.set("throttle", 0x44)
        stub.processes(os.getpid(), 99)
        state = SOURCES["nvml_power"]().state()
        assert (state.temperature_celsius, state.sm_clock_mhz, state.memory_clock_mhz) == (40, 1400, 5000)
        assert (state.throttle, state.throttled_by, state.foreign) == (0x44, "hardware thermal", {99})
        assert not SOURCES["nvml_power"](own_pids=frozenset({99, os.getpid()})).state().foreign
        for call in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"):
            stub.fail(call, 13)
        assert SOURCES["nvml_power"]().state() == state  # by the older calls
        for call in ("nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetClockInfo"):
            stub.fail(call, 3)
        silent = SOURCES["nvml_power"]().state()
        assert (silent.temperature_celsius, silent.throttle, silent.sm_clock_mhz) == (None, None, None)


@pytest.mark.parametrize("name", ["nvml_total_energy", "nvml_power"])
def test_a_gpu_lost_in_a_window_is_an_error_not_a_reading(stub: Any, name: str) -> None:
    meter = EnergyMeter(SOURCES[name](), clock=stub.clock, every=stub.every)
    meter.start()
    stub.at(stub.clock() + 1, lambda: stub.set("lost", 1))
    stub.work((2.0, 200.0))()
    with pytest.raises(DeviceLost, match="GPU is lost"):
        meter.stop()


def test_a_driver_without_a_gpu_says_so_with_a_remedy(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.reset(devices=0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(MeterUnavailable, match="no GPU 0: this machine has none; choose another, or use the meter power_model"):
        SOURCES["nvml_power"]()
