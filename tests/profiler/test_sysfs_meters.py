"""RAPL and INA3221 over fake /sys trees."""

from collections.abc import Callable
from pathlib import Path

import pytest

from profiler.meters import SOURCES, MeterError, MeterUnavailable
from profiler.meters.rapl import open_rapl


def tree(root: Path, **files: object) -> Path:
    root.mkdir(parents=True)
    for name, value in files.items():
        (root / name).write_text(f"{value}\n")
    return root


def zone(root: Path, name: str, label: str, microjoules: int = 0, largest: int = 1_000_000) -> Path:
    return tree(root / name, name=label, energy_uj=microjoules, max_energy_range_uj=largest) / "energy_uj"


def test_rapl_sums_the_packages_and_keeps_memory_apart(tmp_path: Path) -> None:
    packages = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 500) for n in (0, 1)]
    dram = zone(tmp_path, "intel-rapl:0:0", "dram", 7)
    zone(tmp_path, "intel-rapl:0:1", "core", 9)
    package, memory = open_rapl("package", tmp_path), open_rapl("dram", tmp_path)
    before = (package.joules(), memory.joules())
    packages[0].write_text("300500")
    packages[1].write_text("200500")
    dram.write_text("100007")
    assert package.joules() - before[0] == pytest.approx(0.5)
    assert memory.joules() - before[1] == pytest.approx(0.1)
    assert (package.origin.scope, memory.origin.scope) == ("package", "dram")
    assert "package-0 (intel-rapl:0) + package-1 (intel-rapl:1)" in package.origin.device


def test_rapl_counts_through_a_wrap(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    source = open_rapl("package", tmp_path)
    seen = []
    for raw in (950_000, 50_000, 999_999, 0):
        file.write_text(str(raw))
        seen.append(round(source.joules() * 1e6))
    assert seen == [50_000, 150_000, 1_099_999, 1_100_000]


def test_rapl_without_rights_names_the_file_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0")
    monkeypatch.setattr(Path, "read_text", _refusing(Path.read_text, file))
    with pytest.raises(MeterUnavailable, match=r"energy_uj: no permission; .*udev rule.*root"):
        open_rapl("package", tmp_path)


def test_rapl_that_vanishes_is_an_error(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0")
    source = open_rapl("package", tmp_path)
    file.unlink()
    with pytest.raises(MeterError, match="can't be read"):
        source.joules()


@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj"])
def test_rapl_that_shows_no_number_is_an_error(tmp_path: Path, file: str) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    (tmp_path / "intel-rapl:0" / file).write_text("\n")
    with pytest.raises(MeterError, match=f"{file} can't be read .*driver still loaded"):
        open_rapl("package", tmp_path)


def test_a_machine_without_dram_counter_says_so(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    with pytest.raises(MeterUnavailable, match=r"no dram zone .*power_model"):
        open_rapl("dram", tmp_path)


def monitor(root: Path, **rails: tuple[int, int]) -> Path:
    files: dict[str, object] = {}
    for n, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        files |= {f"in{n}_label": label, f"in{n}_input": millivolts, f"curr{n}_input": milliamperes}
    return tree(root / "ina3221" / "1-0040" / "hwmon" / "hwmon1", **files)


def test_a_board_with_a_total_rail_is_read_there(tmp_path: Path) -> None:
    monitor(tmp_path, VDD_IN=(5000, 2000), VDD_CPU_GPU_CV=(5000, 500), NC=(0, 0))
    source = SOURCES["ina3221"](root=tmp_path)
    assert source.watts() == pytest.approx(10.0)
    assert (source.joules(), source.origin.scope) == (None, "rails VDD_IN")
    assert SOURCES["ina3221"](("VDD_CPU_GPU_CV",), root=tmp_path).watts() == pytest.approx(2.5)


def test_a_board_without_a_total_is_summed_and_the_scope_names_the_rails(tmp_path: Path) -> None:
    monitor(tmp_path, VDD_GPU_SOC=(19_000, 1000), VDD_CPU_CV=(19_000, 500))
    source = SOURCES["ina3221"](root=tmp_path)
    assert source.watts() == pytest.approx(28.5)
    assert source.origin.scope == "rails VDD_GPU_SOC + VDD_CPU_CV"


def test_older_kernels_show_the_monitor_as_an_iio_device(tmp_path: Path) -> None:
    tree(tmp_path / "ina3221x" / "0-0041" / "iio:device1", rail_name_0="POM_5V_IN", in_power0_input=3200)
    source = SOURCES["ina3221"](root=tmp_path)
    assert source.watts() == pytest.approx(3.2)
    assert source.origin.scope == "rails POM_5V_IN"


def test_a_rail_that_is_not_there_or_reads_nothing_is_refused(tmp_path: Path) -> None:
    folder = monitor(tmp_path, VDD_IN=(5000, 0))
    with pytest.raises(MeterUnavailable, match=r"no rail VDD_SOC; this board has VDD_IN"):
        SOURCES["ina3221"](("VDD_SOC",), root=tmp_path)
    with pytest.raises(MeterUnavailable, match="reads 0 W"):
        SOURCES["ina3221"](root=tmp_path)
    (folder / "curr1_input").write_text("broken")
    with pytest.raises(MeterError, match="can't be read"):
        SOURCES["ina3221"](root=tmp_path)


@pytest.mark.parametrize("file", ["in1_input", "in1_label"])
def test_a_rail_without_rights_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    folder = monitor(tmp_path, VDD_IN=(5000, 2000))
    monkeypatch.setattr(Path, "read_text", _refusing(Path.read_text, folder / file))
    with pytest.raises(MeterUnavailable, match=rf"{file}: no permission; .*group"):
        SOURCES["ina3221"](root=tmp_path)


def _refusing(read: Callable[[Path], str], forbidden: Path) -> Callable[[Path], str]:
    def read_text(path: Path) -> str:
        if path == forbidden:
            raise PermissionError(13, "Permission denied")
        return read(path)

    return read_text
