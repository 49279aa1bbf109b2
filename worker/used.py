"""What a job used itself, as its report and its progress hold it: time, energy and, by a stated factor, CO2, with units and kinds.

An attempt's account is ``{"attempt", "closed", "written_at", "phases": {phase: {"seconds", "energy"}}}``; ``energy`` is a number with its
label, or the reason why there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from store.settings import Settings
from store.spec import AccountingSpec

JOULES_PER_KWH = 3.6e6
_CLOCK = {"kind": "measured", "meter": "monotonic_clock", "scope": "process"}
_NO_FACTOR = (
    "no factor is stated; give the grams of CO2 per kWh and where they are from (accounting.co2_grams_per_kwh and accounting.co2_source in "
    "the spec, or WATTLE_CO2_GRAMS_PER_KWH and WATTLE_CO2_SOURCE at the worker)"
)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Factor:
    """Grams of CO2 per kilowatt-hour, and who says so."""

    grams_per_kwh: float
    source: str

    @classmethod
    def stated(cls, asked: AccountingSpec, settings: Settings) -> Factor | None:
        """The spec's, else the worker's."""
        for grams, source in ((asked.co2_grams_per_kwh, asked.co2_source), (settings.co2_grams_per_kwh, settings.co2_source)):
            if grams is not None and source:
                return cls(grams, source)
        return None


def used(accounts: Sequence[Document | None], factor: Factor | None) -> Document:
    """The sum over all attempts, of which the last one is under way or over; None for one that left no account."""
    found = [account for account in accounts if account is not None]
    spans = [(phase, span) for account in found for phase, span in account["phases"].items()]
    phases = {phase: _sum(each for name, each in spans if name == phase) for phase in dict.fromkeys(phase for phase, _ in spans)}
    total = _sum(span for _, span in spans)
    return {
        "phases": phases,
        "total": {**total, "co2": _co2(total["energy"], factor)},
        "attempts": len(accounts),
        "missing": [words for number, account in enumerate(accounts, 1) if (words := _missing(number, account, number == len(accounts)))],
    }


def _sum(spans: Iterable[Document]) -> Document:
    spans = list(spans)
    seconds = sum(span["seconds"] for span in spans)
    return {"time": {"value": seconds, "unit": "s", **_CLOCK}, "energy": _energy([span["energy"] for span in spans])}


def _energy(parts: Sequence[Mapping[str, Any]]) -> Document:
    """Joules of one meter add up; where a part has none, or another meter's, the sum has none."""
    if absent := next((part["reason"] for part in parts if "reason" in part), None):
        return {"reason": absent}
    labels = [{name: value for name, value in part.items() if name not in ("value", "note")} for part in parts]
    if not labels:
        return {"reason": "nothing was accounted for"}
    if any(label != labels[0] for label in labels):
        meters = ", ".join(sorted({f"{label['meter']} of {label['device']}" for label in labels}))
        return {"reason": f"the attempts had different meters ({meters}), whose numbers don't add up"}
    notes = "; ".join(dict.fromkeys(part["note"] for part in parts if "note" in part))
    return {"value": sum(part["value"] for part in parts), **labels[0], **({"note": notes} if notes else {})}


def _co2(energy: Mapping[str, Any], factor: Factor | None) -> Document:
    if factor is None:
        return {"reason": _NO_FACTOR}
    if "reason" in energy:
        return {"reason": f"no energy to count from: {energy['reason']}"}
    grams = energy["value"] / JOULES_PER_KWH * factor.grams_per_kwh
    origin = {"grams_per_kwh": factor.grams_per_kwh, "source": factor.source, "scope": energy["scope"]}
    return {"value": grams, "unit": "g", "kind": "estimated:stated_factor", **origin, "energy_kind": energy["kind"]}


def _missing(number: int, account: Document | None, last: bool) -> str:
    """What the sum lacks of an attempt that was killed; the last one is not over yet."""
    if account is None:
        return f"attempt {number} left no account: what it used is not counted"
    if last or account["closed"]:
        return ""
    return f"attempt {number} was killed: what it used after {account['written_at']} is not counted"
