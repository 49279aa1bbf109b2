"""docs/growth.md from the results: what was run, what beat what with intervals, and everything that was tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.growth import sections
from benchmarks.growth.records import Clock, Results, Values

PAGE = Path(__file__).parents[2] / "docs" / "growth.md"
Section = Callable[[list[Values], "Plots"], list[str]]

INTRODUCTION = """# Does growing pay?

Written by `make bench-growth` from `benchmarks/growth/results/`; the command goes on where it stopped and writes this page anew.
Machine: a 2-core CPU, one thread.  Images have 16 pixels, networks MobileNetV1's blocks in six channel groups (40 k to 340 k MACs).
Intervals are 95 % t intervals of differences paired by seed.  "Better" and "worse" are said only where the interval excludes zero;
intervals of few seeds are wide, and no correction is made for the number of comparisons.  Losses are cross-entropies in nats.
Each table gives its number of seeds: at least 5, on three tasks, are asked for; running the command again adds what is missing."""


class Plots:
    """Where plots go: beside the page, in a folder of its name."""

    def __init__(self, page: Path) -> None:
        self.folder = page.with_suffix("")

    def add(self, name: str, svg: str) -> str:
        """Writes a plot; how the page shows it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.svg").write_text(svg)
        return f"![{name}]({self.folder.name}/{name}.svg)"


def write(folder: Path, page: Path) -> None:
    """The page of all results in ``folder``, with its ``notes.md`` where it has one; a part without results is named as missing."""
    plots, notes = Plots(page), folder / "notes.md"
    blocks = [INTRODUCTION, *([notes.read_text().strip()] if notes.exists() else [])]
    for part, section in SECTIONS.items():
        rows = Results(folder / f"{part}.jsonl", Clock.minutes(0)).all()
        title, text = section.__doc__ or "", section(rows, plots) if rows else ["Not run yet."]
        blocks.append("\n\n".join([f"## {title.strip().rstrip('.')}", *text, *dates(rows)]))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(blocks) + "\n")


def dates(rows: Iterable[Values]) -> list[str]:
    """When these were run."""
    known: Sequence[str] = sorted({str(row["date"]) for row in rows if "date" in row})
    return [f"Run on {known[0]}." if len(known) == 1 else f"Run from {known[0]} to {known[-1]}."] if known else []


SECTIONS: dict[str, Section] = {
    "factorial": sections.factorial,
    "landscape": sections.landscape,
    "tried": sections.tried,
    "score": sections.score,
    "law": sections.law,
    "tasks": sections.saturation,
}
