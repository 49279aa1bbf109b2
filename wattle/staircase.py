"""Cost against width, as a table whose last column is a plot: cost is a staircase in channels, and each step is one row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from wattle.client import Document, ProblemError
from wattle.report import ABSENT, setting_words

SHORTEST, BAR = 10, 40  # columns of the longest interval, in a narrow terminal and in a wide one
MOST = 1000  # widths in one command


def widths(option: str, text: str) -> list[int]:
    """The widths that 64, 8:64 or 8:64:8 names: one, from the first to the last, or every eighth of those.  ProblemError for others."""
    parts = text.split(":")
    if not all(part.isascii() and part.isdecimal() for part in parts) or len(parts) > 3:
        raise _no_widths(option, text)
    first, last, step = (*map(int, parts), *((int(parts[0]), 1)[len(parts) - 1 :]))
    found = range(first, last + 1, max(1, step))
    if first < 1 or step < 1 or not 1 <= len(found) <= MOST:
        raise _no_widths(option, text)
    return list(found)


def render(axis: str, asked: Sequence[int], answers: Sequence[Document]) -> RenderableType:
    """``axis``: what the widths are those of; ``answers``: one for each width, as ``Client.costs`` gives them."""
    entries = [answer["entry"] for answer in answers if answer["entry"]]
    refused = [answer["problem"] for answer in answers if answer["problem"]]
    notes = [Text(f"not priced: {refused[0]['message']}", style="yellow")] if refused else []
    if not entries:
        return Group(*notes)
    notes += [Text(f"warning: {entries[0]['expired']}", style="yellow")] if entries[0]["expired"] else []
    longest = max(entry["high"] or entry["value"] for entry in entries)
    numbers = (Column(name, justify="right", no_wrap=True) for name in (axis, entries[0]["unit"], "95 %"))
    title = _title(entries[0])
    table = Table(*numbers, "kind", "█ at least, ▓ to the value, ░ at most", box=None, pad_edge=False, title=title, title_justify="left")
    for which, entry in _steps(asked, answers):
        if entry is None:
            table.add_row(which, ABSENT, "", "not priced", "", style="dim")
        else:
            interval = "" if entry["low"] is None else f"{entry['low']:.4g} to {entry['high']:.4g}"
            style = "" if entry["kind"] in ("measured", "exact") else "dim"
            table.add_row(which, f"{entry['value']:.4g}", interval, entry["kind"], _Bar.of(entry, longest), style=style)
    return Group(table, *notes)


def _steps(asked: Sequence[int], answers: Sequence[Document]) -> Iterator[tuple[str, Document | None]]:
    """Neighbouring widths with the same answer together."""

    def answer(pair: tuple[int, Document]) -> Any:
        entry = pair[1]["entry"]
        return entry and (entry["value"], entry["low"], entry["high"], entry["kind"])

    for _, same in groupby(zip(asked, answers, strict=True), key=answer):
        step = list(same)
        first, last = step[0][0], step[-1][0]
        yield (str(first) if first == last else f"{first} to {last}"), step[0][1]["entry"]


@dataclass(frozen=True, slots=True)
class _Bar:
    """An interval as a bar that fills the columns there are, the longest one all of them."""

    low: float
    value: float
    high: float
    longest: float

    @classmethod
    def of(cls, entry: Document, longest: float) -> _Bar:
        low, high = (entry["value"] if entry[end] is None else entry[end] for end in ("low", "high"))
        return cls(low, entry["value"], high, longest)

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(SHORTEST, BAR)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scale = min(BAR, options.max_width) / self.longest if self.longest else 0.0
        ends = [round(scale * value) for value in (self.low, self.value, self.high)]
        yield Text("█" * ends[0] + "▓" * (ends[1] - ends[0]) + "░" * (ends[2] - ends[1]), no_wrap=True)


def _title(entry: Document) -> str:
    from costs.shapes import LayerShape

    shape = LayerShape(**entry["shape"])
    layer = str(shape).replace(f" {shape.in_channels}->{shape.out_channels}", "")
    return f"{entry['quantity']} of {layer} ({setting_words(entry['setting'])}) on {entry['device']}"


def _no_widths(option: str, text: str) -> ProblemError:
    detail = f"{option} is {text!r}; give a width of 1 or more, or a range of at most {MOST} widths like 8:64 or 8:64:8"
    return ProblemError({"type": "urn:wattle:usage", "title": "No widths", "status": 400, "detail": detail})
