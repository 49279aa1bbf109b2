"""INA3221: the power monitor on NVIDIA Jetson boards, where NVML answers "not supported".

It has no counter: power is sampled and integrated.  Rails are found by their labels, which differ between boards; some carry a
total (VDD_IN), on others all rails are summed.  A rail may merge GPU and memory controller, so the scope names the rails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from profiler.meters.base import MeterError, MeterUnavailable, Origin
from profiler.meters.source import DeviceState

DRIVERS = Path("/sys/bus/i2c/drivers")
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
_CHANNELS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Rail:
    label: str
    watts: Callable[[], float]


class Ina3221Source:
    """The sum of some rails."""

    def __init__(self, rails: list[Rail], place: Path) -> None:
        self._rails = rails
        scope = "rails " + " + ".join(rail.label for rail in rails)
        self.origin = Origin("ina3221", "measured", scope, f"ina3221 at {place}", "volts x amperes, integrated")

    def joules(self) -> None:
        """There is no counter."""

    def watts(self) -> float:
        return sum(rail.watts() for rail in self._rails)

    def state(self) -> DeviceState:
        return DeviceState()


def open_ina3221(rails: tuple[str, ...] = (), root: Path = DRIVERS) -> Ina3221Source:
    """The named rails; by default the board's total, or all of them.  MeterUnavailable where there are none, or none of that name."""
    found = _rails(root)
    if not found:
        raise MeterUnavailable(
            f"ina3221: no power monitor under {root}; this is no Jetson, or a container without /sys: choose another meter"
        )
    total = tuple(label for label in TOTAL_RAILS if label in found)[:1]
    wanted = rails or total or tuple(found)
    if missing := [label for label in wanted if label not in found]:
        raise MeterUnavailable(f"ina3221: no rail {', '.join(missing)}; this board has {', '.join(found)}: choose among them")
    source = Ina3221Source([found[label] for label in wanted], root)
    if not source.watts() > 0:
        raise MeterUnavailable(f"ina3221: {source.origin.scope} reads {source.watts():g} W; choose other rails of {', '.join(found)}")
    return source


def _rails(root: Path) -> dict[str, Rail]:
    """By label: hwmon of current kernels, else the iio devices of older ones."""
    found: dict[str, Rail] = {}
    for hwmon in sorted(root.glob("ina3221*/*/hwmon/hwmon*")):
        for n in _CHANNELS:
            _add(found, hwmon / f"in{n}_label", _product(hwmon / f"in{n}_input", hwmon / f"curr{n}_input"))
    for iio in sorted(root.glob("ina3221*/*/iio:device*")):
        for n in range(len(_CHANNELS)):
            _add(found, iio / f"rail_name_{n}", _scaled(iio / f"in_power{n}_input"))
    return found


def _add(found: dict[str, Rail], label: Path, watts: Callable[[], float]) -> None:
    """Channels that are not connected carry no label, or NC."""
    name = _text(label).strip() if label.exists() else "NC"
    if name != "NC":
        found[name] = Rail(name, watts)


def _product(millivolts: Path, milliamperes: Path) -> Callable[[], float]:
    return lambda: _number(millivolts) * _number(milliamperes) * 1e-6


def _scaled(milliwatts: Path) -> Callable[[], float]:
    return lambda: _number(milliwatts) * 1e-3


def _number(path: Path) -> float:
    text = _text(path)
    try:
        return float(text)
    except ValueError as error:
        raise MeterError(f"{path} can't be read ({error}); is the ina3221 driver still loaded?") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except PermissionError as error:
        raise MeterUnavailable(f"{path}: no permission; add your user to the group that owns it, or run as root") from error
    except OSError as error:
        raise MeterError(f"{path} can't be read ({error}); is the ina3221 driver still loaded?") from error
