"""What this machine can measure: each meter works, or says why not and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from profiler.meters import METERS, SOURCES, EnergySource, MeterError, MeterUnavailable

NEEDS_A_DECLARATION = ("power_model", "replay")


@dataclass(frozen=True, slots=True)
class Finding:
    """``works``: ready to use.  ``declare``: works once told what it asks for.  ``absent``: not here.  ``broken``: here, and failing."""

    meter: str
    status: Literal["works", "declare", "absent", "broken"]
    found: str
    remedy: str | None = None


def findings(options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Finding]:
    """One for each meter, in their order.  ``options``: keywords for opening some of them, by name.  Nothing is raised."""
    return [_look(name, (options or {}).get(name, {})) for name in METERS]


def _look(name: str, options: Mapping[str, Any]) -> Finding:
    try:
        found = _energy(SOURCES[name](**options)) if name in SOURCES else _reading(name, options)
    except MeterUnavailable as reason:
        why, remedy = _split(reason)
        return Finding(name, "declare" if name in NEEDS_A_DECLARATION else "absent", why, remedy)
    except MeterError as error:
        return Finding(name, "broken", *_split(error))
    return Finding(name, "works", found)


def _energy(source: EnergySource) -> str:
    """What it covers, on which device, and what it reads now."""
    origin, watts = source.origin, source.watts()
    source.joules()
    state = source.state()
    parts = [f"{origin.scope} of {origin.device}", origin.detail]
    parts += [f"{watts:.1f} W now"] if watts is not None else []
    parts += [f"sensor error up to {origin.sensor_error:.0%}"] if origin.sensor_error else []
    parts += ["sampled part of the time only"] if origin.partly_sampled else []
    parts += [f"throttled now ({state.throttled_by})"] if state.throttled_by else []
    parts += [f"{len(state.foreign)} other processes on it now"] if state.foreign else []
    return ", ".join(parts)


def _reading(name: str, options: Mapping[str, Any]) -> str:
    meter = METERS[name](**options)
    meter.start()
    reading = meter.stop()
    return f"{meter.quantity}, {reading.origin.kind}; an empty window reads {reading.value:.2g}"


def _split(error: MeterError) -> tuple[str, str]:
    """Our errors read "what is wrong; what to do"."""
    why, _, remedy = str(error).rpartition("; ")
    return (why, remedy) if why else (remedy, "see the message")
