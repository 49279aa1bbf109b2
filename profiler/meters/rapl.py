"""RAPL: energy counters of CPU packages and their memory, from Linux powercap.

Each zone holds ``energy_uj``, which wraps to 0 at ``max_energy_range_uj`` (262 kJ on many parts: 22 minutes at 200 W).  Since 2020
only root may read it (CVE-2020-8694).  Virtual machines and most containers have none.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from profiler.meters.base import MeterError, MeterUnavailable, Origin
from profiler.meters.source import DeviceState

POWERCAP = Path("/sys/class/powercap")
_ABSENT = "absent in virtual machines and most containers: measure on the host, or use the meter power_model with declared watts"
_RIGHTS = "let your group read it (udev rule: chgrp/chmod g+r energy_uj), or run the profiler as root"


class RaplSource:
    """One domain, package or dram, summed over the machine's packages."""

    def __init__(self, domain: str, zones: Iterable[Path]) -> None:
        self._zones = [_Zone(path) for path in zones]
        names = " + ".join(zone.name for zone in self._zones)
        self.origin = Origin(f"rapl_{domain}", "measured", domain, f"powercap {names}", "energy_uj")

    def joules(self) -> float:
        return sum(zone.microjoules() for zone in self._zones) * 1e-6

    def watts(self) -> None:
        """RAPL counts; it knows no power."""

    def state(self) -> DeviceState:
        return DeviceState()


def open_rapl(domain: str, root: Path = POWERCAP) -> RaplSource:
    """``domain`` is "package" or "dram".  MeterUnavailable where there is none or it may not be read."""
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _name(zone).startswith(domain)]
    if not zones:
        raise MeterUnavailable(f"rapl_{domain}: no {domain} zone under {root}; {_ABSENT}")
    return RaplSource(domain, zones)


class _Zone:
    """A counter that no longer wraps.  It must be read at least once per wrap, which whoever watches it does."""

    def __init__(self, path: Path) -> None:
        self.name = f"{_name(path)} ({path.name})"
        self._file, self._range = path / "energy_uj", _read(path / "max_energy_range_uj")
        self._last = _read(self._file)
        self._total = 0

    def microjoules(self) -> int:
        raw = _read(self._file)
        self._total += raw - self._last if raw >= self._last else raw - self._last + self._range
        self._last = raw
        return self._total


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise MeterUnavailable(f"{path}: no permission; {_RIGHTS}") from error
    except (OSError, ValueError) as error:
        raise MeterError(f"{path} can't be read ({error}); is the intel_rapl driver still loaded?") from error
