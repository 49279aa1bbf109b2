"""Two plain plots as SVG: intervals around zero, and curves on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.growth.stats import Difference

WIDTH, LEFT, RIGHT, ROW, TOP = 720, 250, 20, 22, 34
COLOURS = {"better": "#1a7f37", "worse": "#b42318", "undecided": "#667085"}
PALETTE = ("#1a56db", "#b42318", "#1a7f37", "#b45309", "#6d28d9", "#0e7490", "#667085")


def intervals(title: str, rows: Mapping[str, Difference]) -> str:
    """One row for each difference, with its interval; left of zero is better."""
    finite = [abs(row.mean) + (row.half_width if math.isfinite(row.half_width) else 0) for row in rows.values()]
    reach = max(finite, default=0.0) or 1.0
    height = TOP + ROW * len(rows) + 30

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value + reach) / (2 * reach)

    parts = [_line(x(0), TOP - 6, x(0), height - 24, "#98a2b3"), _text(8, 18, title, bold=True)]
    for number, (name, row) in enumerate(rows.items()):
        y, colour = TOP + ROW * number + 10, COLOURS[row.verdict]
        half = row.half_width if math.isfinite(row.half_width) else 0.0
        parts += [_text(8, y + 4, name), _line(x(row.mean - half), y, x(row.mean + half), y, colour, 2), _dot(x(row.mean), y, colour)]
    parts += [_text(x(value), height - 8, f"{value:+.2f}", "middle") for value in (-reach, 0.0, reach)]
    return _svg(height, parts)


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_log: bool = False) -> str:
    """Points (x, y) joined by lines, x on a logarithmic axis, y on one too or from 0; values at or below 0 are left out of those."""
    kept = {
        name: [(math.log10(x), math.log10(y) if y_log else y) for x, y in points if x > 0 and (y > 0 or not y_log)]
        for name, points in series.items()
    }
    points = [point for line in kept.values() for point in line]
    if not points:
        return _svg(TOP, [_text(8, 18, f"{title}: nothing to show")])
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min([y for _, y in points] if y_log else [0.0, *(y for _, y in points)]), max(y for _, y in points)
    height = 340

    def at(x: float, y: float) -> tuple[float, float]:
        across = 60 + (WIDTH - 300) * (x - low_x) / ((high_x - low_x) or 1)
        return across, height - 40 - (height - 80) * (y - low_y) / ((high_y - low_y) or 1)

    parts = [_text(8, 18, title, bold=True), _text(60, height - 6, x_label)]
    for x in {low_x, (low_x + high_x) / 2, high_x}:
        parts.append(_text(at(x, low_y)[0], height - 22, f"{10**x:.3g}", "middle"))
    for y in {low_y, (low_y + high_y) / 2, high_y}:
        parts += [
            _text(54, at(low_x, y)[1] + 4, f"{10**y if y_log else y:.2g}", "end"),
            _line(60, at(low_x, y)[1], WIDTH - 240, at(low_x, y)[1], "#eaecf0"),
        ]
    for number, (name, line) in enumerate(kept.items()):
        colour = PALETTE[number % len(PALETTE)]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in (at(*point) for point in sorted(line)))
        parts += [f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>']
        parts += [_dot(*at(*point), colour) for point in line]
        parts += [_dot(WIDTH - 225, 40 + 20 * number, colour), _text(WIDTH - 215, 44 + 20 * number, name)]
    return _svg(height, parts)


def _svg(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>', *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#101828"{weight}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
