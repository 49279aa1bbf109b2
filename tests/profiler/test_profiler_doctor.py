from pathlib import Path
from typing import Any

from profiler.doctor import findings
from profiler.meters import METERS


def by_name(**options: Any) -> dict[str, tuple[str, str, str | None]]:
    found = findings(options)
    assert [finding.meter for finding in found] == list(METERS)
    assert all((finding.remedy is None) == (finding.status == "works") for finding in found)
    return {finding.meter: (finding.status, finding.found, finding.remedy) for finding in found}


def test_every_meter_works_or_says_why_not_and_what_to_do(stub: Any, tmp_path: Path) -> None:
    stub.set("throttle", 0x40)
    stub.processes(4242)
    found = by_name(rapl_package={"root": tmp_path}, rapl_dram={"root": tmp_path}, ina3221={"root": tmp_path})
    status, words, _ = found["nvml_total_energy"]
    assert status == "works"
    for part in ("gpu of GPU-00000001", "30.0 W now", "sensor error up to 5%", "throttled now (hardware thermal)", "1 other processes"):
        assert part in words
    assert found["wall_clock"][0] == "works"
    for name in ("rapl_package", "rapl_dram", "ina3221"):
        assert found[name][0] == "absent"
    assert found["power_model"][0] == found["replay"][0] == "declare"
    assert "declare what the device draws" in str(found["power_model"][2])


def test_what_was_declared_works_and_stays_an_estimate() -> None:
    status, words, _ = by_name(power_model={"watts": 15.0})["power_model"]
    assert status == "works"
    assert "estimated:power_model" in words


def test_a_lost_gpu_is_broken_not_absent(stub: Any) -> None:
    stub.set("lost", 1)
    status, words, remedy = by_name()["nvml_total_energy"]
    assert (status, "GPU is lost" in words) == ("broken", True)
    assert "reset" in str(remedy)


def test_a_driver_that_does_not_fit_is_absent_with_the_remedy(stub: Any) -> None:
    stub.fail("nvmlInitWithFlags", 18)
    assert by_name()["nvml_power"] == (
        "absent",
        "NVML: RM has detected an NVML/RM version mismatch.",
        "driver and library differ, usually after an update: reboot, or reload the nvidia kernel modules",
    )
