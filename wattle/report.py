"""The report of a finished growth job, for a terminal.  It shows what report.json says and adds nothing to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from costs.table import UNITS
from wattle.client import Document
from wattle.watch import quantity

ABSENT = "–"


def render(report: Document, where: str | None = None) -> RenderableType:
    """The whole report; ``where`` says where the artifacts are."""
    parts: list[RenderableType] = [
        Text.assemble("\n", (str(report["name"]), "bold"), f" on {report['device']}: {budget_words(report['budget'])}\n"),
        widths_table(report["seed"], report["grown"]),
        cost_table(report),
        agreement(report),
        results_table(report),
        rounds_table(report["rounds"]),
        Panel(Text(str(report["verdict"]["sentence"])), title="Verdict", expand=False),
    ]
    return Group(*parts, *([Text(f"Artifacts: {where}")] if where else []))


def budget_words(budget: Mapping[str, Any]) -> str:
    """The budget in words: at most so much of what, and under which setting where it matters."""
    setting = f" (batch {budget['batch_size']}, {budget['threads']} thread(s))" if budget["cost"].startswith(("latency", "energy")) else ""
    return f"at most {quantity(budget['limit'], UNITS.get(budget['cost'], budget.get('unit')))} of {budget['cost']}{setting}"


def widths_table(seed: Mapping[str, Any], grown: Mapping[str, Any]) -> Table:
    """Widths per layer, before and after."""
    table = Table("layer", _right("before"), _right("after"), _right("factor"), title="Widths", title_justify="left")
    for before, after in zip(seed["layers"], grown["layers"], strict=True):
        factor = after["width"] / before["width"]
        style = "bold green" if factor > 1 else "dim"
        table.add_row(before["name"], str(before["width"]), str(after["width"]), f"{factor:.2f}x", style=style)
    return table


def cost_table(report: Document) -> Table:
    """The cost of whole networks: predicted by the cost model, and measured on the device, each with interval, unit and kind."""
    title = "Cost of the whole network"
    table = Table("network", _right("predicted"), "kind", _right("measured"), "kind", title=title, title_justify="left")
    for name, result in results(report):
        predicted, measured = result.get("predicted_cost"), result.get("measured_latency")
        table.add_row(
            name, cost_words(predicted), _kind(predicted), cost_words(measured), _kind(measured), style="bold" if name == "grown" else ""
        )
    return table


def results_table(report: Document) -> Table:
    """Seed, grown network and controls side by side."""
    columns = [_right(name) for name in ("accuracy", "loss", "MACs", "parameters", "charged MACs", "steps", "seconds")]
    table = Table("network", *columns, "widths", title="Results on the test images", title_justify="left")
    for name, result in results(report):
        if reason := result.get("reason"):
            table.add_row(name, *[ABSENT] * len(columns), f"none: {reason}")
            continue
        figures = (
            _number(result.get("test_accuracy"), ".4f"), _number(result.get("test_loss"), ".4f"),
            _number(result.get("macs"), ",.0f"), _number(result.get("params"), ",.0f"), _number(result.get("charged_macs"), ".3g"),
            _number(result.get("steps"), ",.0f"), _number(result.get("seconds"), ".1f"),
        )  # fmt: skip
        table.add_row(name, *figures, " ".join(map(str, result["widths"])), style="bold" if name == "grown" else "")
    return table


def rounds_table(rounds: Iterable[Mapping[str, Any]]) -> Table:
    """What each growth round promised and what it gave.  Predicted and at the split: same images, before any training."""
    titles = ("predicted change", "change at split", "held-out loss", "change after training", "cost", "round's limit")
    table = Table("round", _right("channels split"), *map(_right, titles), "outcome", title="Growth rounds", title_justify="left")
    for entry in rounds:
        split = sum(entry["split_counts"])
        table.add_row(
            str(entry["number"]), str(split),
            f"{_number(entry['predicted_change'], '+.4f')} ± {_number(entry['predicted_error'], '.4f')}",
            _number(entry["change_at_split"], "+.4f"), f"{_number(entry['loss_before'], '.4f')} -> {_number(entry['loss_after'], '.4f')}",
            _number(entry["loss_after"] - entry["loss_before"], "+.4f"), cost_words(entry["cost_after"]), _number(entry["limit"], ",.4g"),
            _outcome(entry, split),
        )  # fmt: skip
    return table


def _outcome(entry: Mapping[str, Any], split: int) -> str:
    if entry["rolled_back"]:
        return f"rolled back: {entry['reason']}"
    return "kept" if split else f"nothing split: {entry['reason']}"


def agreement(report: Document) -> Text:
    """How well the cost model predicted whole networks."""
    found = report["predicted_versus_measured"]
    if reason := found.get("reason"):
        return Text(f"Predicted against measured latency: none, {reason}")
    return Text(f"Predicted against measured latency: mean error {found['mean_absolute_error_percent']:.1f} %")


def results(report: Document) -> list[tuple[str, Document]]:
    """Seed, grown network, and every control, by name."""
    controls = [(f"control {name.replace('_', ' ')}", result) for name, result in (report.get("controls") or {}).items()]
    return [("seed", report["seed"]), ("grown", report["grown"]), *controls]


def cost_words(cost: Any) -> str:
    """A cost or measurement with its interval and unit; a dash when there is none, with the reason where it is known."""
    if cost is None:
        return ABSENT
    if not isinstance(cost, Mapping):
        return _number(cost, ".4g")
    value = cost.get("value", cost.get("median_ms"))
    if value is None:
        return f"none: {cost.get('reason', 'unknown')}"
    interval = f" [{cost['low']:.4g}, {cost['high']:.4g}]" if cost.get("low") is not None and cost.get("high") is not None else ""
    return quantity(value, cost.get("unit", "ms" if "median_ms" in cost else None)) + interval


def _kind(cost: Any) -> str:
    return str(cost.get("kind") or ABSENT) if isinstance(cost, Mapping) else ABSENT


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form)


def _right(title: str) -> Column:
    return Column(title, justify="right")
