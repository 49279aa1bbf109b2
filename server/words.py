"""How the dashboard writes numbers, times and states.  Every number leaves with its unit; one that is absent leaves as a dash or a reason.

These are the filters of the templates, so a value may be anything a report or a progress holds, also jinja's Undefined for a missing key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import Undefined

ABSENT = "–"
MINUS = "−"

_PHASES = {
    "loading": "loading data", "scoring": "scoring channels", "profiling": "measuring layers", "measuring": "measuring networks",
    "report": "writing the report",
}  # fmt: skip
_QUANTITIES = {"latency_ms": "latency", "energy_mj": "energy", "macs": "MACs", "params": "parameters"}
_KINDS = {"estimated:power_x_time": "estimated: power × time", "estimated:stated_factor": "estimated: energy × stated factor"}
_OUTCOMES = {
    "filled": "filled by cost alone", "no_reliable_gain": "no reliable gain", "no_gain": "no gain in sight",
    "budget": "no room in the budget", "widest": "at full width",
}  # fmt: skip
_CAUSES = {
    "invalid_data": "the data can't be used", "out_of_memory": "out of memory", "not_a_number": "training diverged",
    "disk_full": "the disk is full", "lost_worker": "its worker was lost", "device_error": "the device failed",
    "internal": "internal error",
}  # fmt: skip


def number(value: Any, digits: int = 4) -> str:
    """Four significant digits with their trailing zeros; whole numbers in full, with separators."""
    if not _is_number(value):
        return ABSENT
    if isinstance(value, int) or abs(value) >= 10_000:
        return _minus(f"{value:,.0f}")
    return _minus(f"{value:#.{digits}g}".rstrip("."))


def plain(value: Any) -> str:
    """A number as a user wrote it: 1.8, 40,000."""
    if not _is_number(value):
        return ABSENT
    return _minus(f"{value:,.0f}" if abs(value) >= 1000 and value == int(value) else f"{value:.6g}")


def fixed(value: Any, digits: int = 4) -> str:
    return _minus(f"{value:.{digits}f}") if _is_number(value) else ABSENT


def signed(value: Any, digits: int = 4) -> str:
    return _minus(f"{value:+.{digits}f}") if _is_number(value) else ABSENT


def percent(value: Any, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return f"{100 * value:.{digits}f} %" if _is_number(value) else ABSENT


def scaled(value: Any) -> str:
    """A large count in thousands, millions, ...: 12.3 G."""
    if not _is_number(value) or abs(value) < 10_000:
        return number(value)
    power = min(5, int(math.log10(abs(value)) // 3))
    return f"{value / 1000**power:#.3g} {' kMGTP'[power]}".replace(". ", " ")


def bytes_words(value: int) -> str:
    if value < 1000:
        return f"{value} bytes"
    power = min(4, int(math.log10(value) // 3))
    return f"{value / 1000**power:.3g} {' kMGT'[power]}B"


def duration(seconds: Any) -> str:
    """12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if not _is_number(seconds):
        return ABSENT
    if seconds < 1:
        return "under 1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, below, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def moment(value: Any) -> str:
    """11 Jul 2026, 14:03 UTC; ISO text from a report is read too."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return f"{value.astimezone(UTC):%-d %b %Y, %H:%M} UTC" if isinstance(value, datetime) else ABSENT


def run_words(name: str) -> str:
    """A run by its arm and, behind a dot, which further seed it has."""
    arm, _, repeat = name.partition(".")
    words = arm if arm in ("grown", "seed", "retrained") else arm.replace("_", " ") + " (control)"
    return f"{words}, repeat {repeat}" if repeat else words


def pair_words(pair: Any) -> str:
    """What the interval of a paired difference in loss says of the first of the two."""
    if not (_is_number(pair["low"]) and _is_number(pair["high"])):
        return ABSENT
    return "better" if pair["high"] < 0 else "worse" if pair["low"] > 0 else "no clear difference"


def quantity_words(name: str) -> str:
    """A quantity without its unit, which stands beside the numbers."""
    return _QUANTITIES.get(name, name)


def kind_words(kind: Any) -> str:
    return _KINDS.get(str(kind), str(kind).replace("_", " ")) if kind else "kind unknown"


def cause_words(cause: str) -> str:
    return _CAUSES.get(cause, cause.replace("_", " "))


def outcome_words(outcome: Any) -> str:
    """Why a round added nothing, in short."""
    return _OUTCOMES.get(str(outcome), "nothing added")


def phase_words(progress: Mapping[str, Any]) -> str:
    """What a running job does at the moment."""
    phase, run = str(progress.get("phase") or "starting"), progress.get("run")
    if phase == "training":
        return f"training the {run_words(str(run))} network"
    return _PHASES.get(phase, phase)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool | Undefined) and isinstance(value, int | float)


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


FILTERS: dict[str, Callable[..., str]] = {
    "number": number, "plain": plain, "fixed": fixed, "signed": signed, "percent": percent, "scaled": scaled, "bytes": bytes_words,
    "duration": duration, "moment": moment, "quantity": quantity_words, "run_words": run_words, "kind_words": kind_words,
    "pair_words": pair_words, "cause_words": cause_words, "outcome_words": outcome_words, "phase_words": phase_words,
}  # fmt: skip
