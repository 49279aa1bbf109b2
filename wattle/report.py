"""The report of a finished growth job, for a terminal.  It shows what report.json says and adds nothing to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from costs.table import UNITS
from wattle.client import Document
from wattle.watch import quantity

ABSENT = "–"
MEASURED = ("measured_latency", "measured_energy")  # the second where energy is limited


def render(report: Document, where: str | None = None) -> RenderableType:
    """The whole report; ``where`` says where the artifacts are."""
    parts: list[RenderableType] = [
        Text.assemble("\n", (str(report["name"]), "bold"), f" on {report['device']}: {budgets_words(report)}\n"),
        widths_table(report),
        cost_table(report),
        agreement(report),
        energy_words(report),
        results_table(report),
        *([paired_table(report)] if seeds(report) > 1 else []),
        rounds_table(report["rounds"]),
        *([_used(report["used"])] if "used" in report else []),  # absent from reports of versions before it
        Panel(Text(str(report["verdict"]["sentence"])), title="Verdict", width=80),
    ]
    chosen = report.get("delivered")  # absent from reports of versions before it
    delivered = [Text(f"network.safetensors holds the {chosen['run']} network: {chosen['why']}")] if chosen else []
    advised = [Text(report["seed_advice"]["sentence"])] if "seed_advice" in report else []
    return Group(*parts, *advised, *delivered, *([Text(f"Artifacts: {where}")] if where else []))


def budgets_words(report: Document) -> str:
    """All budgets; further ones with their devices."""
    further = report.get("further_budgets", [])  # absent from reports of versions before them
    return ", ".join([budget_words(report["budget"]), *(f"{budget_words(each)} on {each['device']}" for each in further)])


def budget_words(budget: Mapping[str, Any]) -> str:
    """The budget in words: at most so much of what, and in which setting where it matters."""
    timed = budget["cost"] in ("latency_ms", "energy_mj")
    setting = f", {setting_words(budget)}" if timed else ""
    return f"at most {quantity(budget['limit'], UNITS[budget['cost']])} ({budget['cost']}{setting})"


def widths_table(report: Document) -> Table:
    """Widths per layer: the seed's, the grown network's, and those of the controls."""
    networks = dict(results(report))
    table = _table("Widths", "layer", *map(_right, ("seed", "grown", "factor", *list(networks)[2:])))
    for number, layer in enumerate(report["seed"]["layers"]):
        before, after, *others = (result["widths"][number] for result in networks.values())
        factor = f"{after / before:.2f}x" if after != before else "="
        table.add_row(layer["name"], str(before), str(after), factor, *map(str, others), style="dim" if after == before else "")
    return table


def cost_table(report: Document) -> Table:
    """The cost of whole networks: predicted by the cost model with its kind, and what was measured on the device."""
    title = f"Cost of the whole network (latency and energy: {setting_words(report['budget'])})"
    measured = [key for key in MEASURED if key in report["grown"]]
    table = _table(title, "network", _right("predicted"), "kind", *(_right(key.replace("_", " ")) for key in measured))
    for name, result in results(report):
        predicted = _predicted(result)
        words, kinds = ("\n".join(each) for each in ([cost_words(cost) for cost in predicted], [cost["kind"] for cost in predicted]))
        table.add_row(name, words, kinds, *(cost_words(result[key]) for key in measured), style=_style(name))
    return table


def _predicted(result: Document) -> list[Document]:
    """In all budgets' quantities, the first budget's first."""
    return [result["predicted_cost"], *result.get("further_costs", [])]


def energy_words(report: Document) -> Text:
    """What the energies of the report are read from, and what their intervals leave out; nothing where energy is not limited."""
    grown = report["grown"]
    predicted = next((cost for cost in _predicted(grown) if cost.get("quantity") == "energy_mj"), None)
    if predicted is None:
        return Text("")
    found = grown.get("measured_energy", {})
    words = f"  Energy: meter {predicted['meter']}, scope {predicted['scope']}; all that the scope draws meanwhile (gross)"
    net = f"; the grown network alone (net): {cost_words({**found['net'], 'unit': found['unit']})}" if "net" in found else ""
    error = f"; the sensor may be off by {found['sensor_error']:.0%} in all of them alike" if found.get("sensor_error") else ""
    absent = f"; not measured: {found['reason']}" if "reason" in found else ""
    return Text(f"{words}{net}{error}{absent}\n")


def agreement(report: Document) -> Text:
    """How well the cost model predicted whole networks, and why where that is not known."""
    found = report["predicted_versus_measured"]
    if reason := found.get("reason"):
        return Text(f"  Predicted against measured: not known; {reason}\n")
    note = f"\n  {found['note']}" if "note" in found else ""
    return Text(f"  Predicted against measured: mean error {found['mean_absolute_error_percent']:.1f} %{note}\n")


def results_table(report: Document) -> Table:
    """Seed, grown network and controls side by side; the charged MACs hold training and scoring."""
    names = ", ".join(name.replace("_", " ") for name in report["controls"])
    title = f"Results on the test images{f' (controls: {names})' if names else ''}"
    if seeds(report) > 1:
        title += f"; accuracy and loss: mean ± sd over {seeds(report)} seeds, the rest: first seed"
    columns = ("accuracy", "loss", "MACs", "charged MACs", "steps", "seconds")
    table = _table(title, "network", *map(_right, columns))
    for name, result in results(report):
        figures = (
            _over_seeds(report, name, result, "test_accuracy"), _over_seeds(report, name, result, "test_loss"),
            _number(result["macs"], ",.0f"), _number(result["charged_macs"], ".3g"), _number(result["steps"], ",.0f"),
            _number(result.get("seconds"), ".1f"),
        )  # fmt: skip
        table.add_row(name, *figures, style=_style(name))
    return table


def paired_table(report: Document) -> Table:
    """By how much the test loss differs from that of each other arm, seed by seed; below zero is better."""
    title = "Paired differences in test loss: mean over the seeds, 95 % interval, each seed's difference"
    table = _table(title, "network", "minus", *map(_right, ("mean", "interval", "sd")), "seeds", "outcome")
    for name, others in report["paired"].items():
        for other, pair in others.items():
            each = " ".join(f"{difference:+.4f}" for difference in pair["differences"])
            interval = f"[{pair['low']:+.4f}, {pair['high']:+.4f}]"
            row = (f"{pair['mean']:+.4f}", interval, f"{pair['sd']:.4f}", each, pair_words(pair))
            table.add_row(name, other.replace("_", " "), *row, style=_style(name))
    return table


def pair_words(pair: Mapping[str, Any]) -> str:
    """What an interval says of the first of the two."""
    return "better" if pair["high"] < 0 else "worse" if pair["low"] > 0 else "no clear difference"


def rounds_table(rounds: Iterable[Mapping[str, Any]]) -> Table:
    """What each growth round promised and what it gave."""
    titles = ("added", "predicted change", "change at growth", "held-out loss", "cost of its limit")
    table = _table(
        "Growth rounds (predicted and at growth: loss on the same images, before training)", "round", *map(_right, titles), "outcome"
    )
    for entry in rounds:
        added, cost = sum(entry["channels_added"]), entry["cost_after"]
        table.add_row(
            str(entry["number"]), str(added), f"{entry['predicted_change']:+.4f} ± {entry['predicted_error']:.4f}",
            _number(entry["change_at_growth"], "+.4f"), f"{entry['loss_before']:.4f} -> {entry['loss_after']:.4f}",
            f"{quantity(cost['value'], None)} of {quantity(entry['limit'], cost['unit'])}", _outcome(entry, added),
        )  # fmt: skip
    return table


def _outcome(entry: Mapping[str, Any], added: int) -> str:
    if entry["rolled_back"]:
        return f"rolled back: {entry['reason']}"
    return "kept" if added else f"nothing added: {entry['reason']}"


def _used(used: Document) -> RenderableType:
    return Group(used_table(used), used_words(used))


def used_table(used: Document) -> Table:
    """What the job itself used, by phase; of energies without a number ``used_words`` says why."""
    table = _table("Used by the job itself, over all attempts", "phase", _right("time"), _right("energy"), "kind of energy")
    for phase, span in [*used["phases"].items(), ("total", used["total"])]:
        energy = span["energy"]
        words = (_amount(span["time"]), _amount(energy), energy.get("kind", "not known"))
        table.add_row(phase, *words, style="bold" if phase == "total" else "")
    return table


def used_words(used: Document) -> Text:
    """What the energy of the job is read from and what it includes, its grams of CO2, and what is missing."""
    energy, co2 = used["total"]["energy"], used["total"]["co2"]
    meter = f"  Energy of the job: {energy['meter']}, scope {energy['scope']}; {energy['note']}" if "value" in energy else ""
    grams = (
        f"  CO2: {_amount(co2)} ({co2['kind']}) of scope {co2['scope']}, at {co2['grams_per_kwh']:g} g/kWh: {co2['source']}"
        if "value" in co2
        else f"  CO2: not known; {co2['reason']}"
    )
    lines = [meter or f"  Energy of the job: not known; {energy['reason']}", grams, *(f"  Missing: {each}" for each in used["missing"])]
    return Text("\n".join(lines) + "\n")


def _amount(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.4g} {found['unit']}" if "value" in found else ABSENT


def results(report: Document) -> list[tuple[str, Document]]:
    """Seed, grown network, its widths retrained if that was asked for, and every control, by name; all of the first seed."""
    controls = [(name.replace("_", " "), result) for name, result in report["controls"].items()]
    grown = [(name, report[name]) for name in ("grown", "retrained") if name in report]
    return [("seed", report["seed"]), *grown, *controls]


def seeds(report: Document) -> int:
    """How many seeds were compared.  Reports of versions before several were possible don't say."""
    return len(report.get("seeds", [0]))


def _over_seeds(report: Document, name: str, result: Document, figure: str) -> str:
    """Mean and standard deviation over the seeds, where there are several; the seed network has only the first's figures."""
    found = report.get("arms", {}).get(name.replace(" ", "_"), {}).get(figure)
    if found is None or found["sd"] is None:
        return _number(result.get(figure), ".4f")
    return f"{found['mean']:.4f} ± {found['sd']:.4f}"


def cost_words(cost: Mapping[str, Any] | None) -> str:
    """A cost or measurement with its interval and unit; a dash when there is none."""
    value = None if cost is None else cost.get("value", cost.get("median_ms"))
    if cost is None or value is None:
        return ABSENT
    interval = f" [{cost['low']:.4g}, {cost['high']:.4g}]" if cost["low"] is not None and cost["high"] is not None else ""
    return quantity(value, cost["unit"]) + interval


def setting_words(budget: Mapping[str, Any]) -> str:
    return f"batch {budget['batch_size']}, {budget['threads']} thread{'s' * (budget['threads'] > 1)}"


def _table(title: str, *columns: str | Column) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))


def _right(title: str) -> Column:
    return Column(title, justify="right")


def _style(name: str) -> str:
    return "bold" if name == "grown" else ""


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form)
