"""The sections of docs/growth.md: results in, Markdown out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Protocol

from benchmarks.growth import plots
from benchmarks.growth.landscape import Fit, widths_of
from benchmarks.growth.records import Values
from benchmarks.growth.stats import Difference, paired, spread

OURS = ("energy", "floored")  # the second in earlier runs only
RIVALS = ("uniform/retrained", "pyramid/retrained", "cost_only/retrained")


class Shelf(Protocol):
    """Keeps a plot and gives the Markdown that shows it."""

    def add(self, name: str, svg: str) -> str: ...


def factorial(rows: list[Values], shelf: Shelf) -> list[str]:
    """Widths by rule, weights inherited or trained anew, at equal cost and compute."""
    runs = [row for row in rows if row["kind"] == "run"]
    text = [
        "Learning rate and batch size are tuned for each arm on the selection images, with seeds of their own (rate 0.3, 0.6 or 1.2 at "
        "batch 64, then batch 32 or 64 at that rate); the final runs alone read the test images.  *Inherited* weights grew from the seed "
        "network; a rule without scores grows by channels that nothing reads at first.  *Retrained* weights were trained from scratch at "
        "the final widths.  All arms were charged the same compute, scoring included, but for the search of *retrained* widths: where "
        "*search charged* is said, they were trained with what the run that found them had left after its last round.  An arm whose "
        "growth was refused or rolled back "
        'costs less than the limit.  *Energy* is the product\'s default.  Settings "before decision 008" were run with an earlier one '
        "(steps of 0.3, no filling, roll-back whenever the loss rose, rates 0.15 to 0.6), and *floored* there is the index where it "
        "promises a gain, and cost alone for the rest of the budget."
    ]
    for number, setting in enumerate(_values(runs, "setting")):
        text += _setting(setting, [row for row in runs if row["setting"] == setting], shelf, number)
    return text


def _setting(setting: str, rows: list[Values], shelf: Shelf, number: int) -> list[str]:
    arms = _values(rows, "arm")
    rivals = [rival for rival in RIVALS if rival in arms]
    table = [
        [arm, len(_of(rows, arm)), spread(_losses(rows, arm)), f"{fmean(row['test_accuracy'] for row in _of(rows, arm)):.3f}",
         f"{fmean(row['cost'] for row in _of(rows, arm)):.4g}", _point(_of(rows, arm)[0]), " ".join(map(str, _of(rows, arm)[0]["widths"]))]
        for arm in sorted(arms, key=lambda arm: fmean(_losses(rows, arm)))
    ]  # fmt: skip
    found = {
        f"{arm} − {rival}": compared
        for arm in arms if arm.startswith(OURS)
        for rival in rivals if (compared := paired(_by_seed(rows, arm), _by_seed(rows, rival)))
    }  # fmt: skip
    return [
        f"### {setting}",
        _table(("arm", "seeds", "test loss (sd)", "accuracy", "cost", "rate, batch", "widths (first seed)"), table),
        _table(("test loss", "difference"), [[name, str(one)] for name, one in found.items()]),
        " ".join(map(_sentence, found, found.values())),
        shelf.add(f"factorial-{number}", plots.intervals(f"test loss: {setting}", found)),
    ]


def _sentence(name: str, compared: Difference) -> str:
    this, that = name.split(" − ")
    rival = that.split("/")[0]
    said = {"better": f"better than {rival}", "worse": f"worse than {rival}", "undecided": f"neither better nor worse than {rival}"}
    return f"`{this}` is {said[compared.verdict]} (n = {compared.n})."


def tried(rows: list[Values], shelf: Shelf) -> list[str]:  # noqa: ARG001 - a section without a plot
    """Everything that was tried."""
    text = [
        "Variants of energy-aware growth and the arms to beat, all at one learning rate and batch size, judged on the selection images.  "
        "Few seeds: a hint at what to confirm, no result.  Rounds that add nothing leave a network that costs less than it may."
    ]
    for setting in _values(rows, "setting"):
        own = [row for row in rows if row["setting"] == setting]
        kinds = list(dict.fromkeys((row["variant"], row["arm"]) for row in own))
        table = [_attempt(variant, arm, [row for row in own if (row["variant"], row["arm"]) == (variant, arm)]) for variant, arm in kinds]
        table.sort(key=lambda line: str(line[3]))
        text += [f"### {setting}", _table(("variant", "arm", "seeds", "selection loss (sd)", "cost", "rounds that grew", "widths"), table)]
    return text


def _attempt(variant: str, arm: str, rows: list[Values]) -> list[object]:
    good = [row for row in rows if row["selection_loss"] is not None]
    if not good:
        return [variant, arm, len(rows), f"diverged: {rows[0]['failure']}", "", "", ""]
    rounds = [closed for row in good for closed in row["rounds"]]
    grew = sum(closed["outcome"] == "grown" and not closed["rolled_back"] for closed in rounds)
    loss = spread([row["selection_loss"] for row in good])
    cost, widths = fmean(row["cost"] for row in good), " ".join(map(str, good[0]["widths"]))
    return [variant, arm, len(good), loss, f"{cost:.4g}", f"{grew} of {len(rounds)}" if rounds else "", widths]


def landscape(rows: list[Values], shelf: Shelf) -> list[str]:  # noqa: ARG001 - a section without a plot
    """How much any rule for widths could win."""
    text = [
        "Widths drawn at random at one cost (MACs of the pyramid at the limit), each trained from scratch with the factorial's compute at "
        "rate 0.6 and batch 32; selection images.  The fit is quadratic in the logarithms of the widths.  *Best by the fit* may have up "
        "to 45 channels in a group, the rules of the factorial up to 25; its widths were run with seeds that the fit has seen, so it is "
        "no fair rival, but says how much room there is above the rules."
    ]
    for task in _values(rows, "task"):
        own = [row for row in rows if row["task"] == task]
        fit, drawn = Fit.of(own), [row for row in own if row["name"] == "drawn"]
        named = [name for name in _values(own, "name") if name != "drawn"]
        best = min(drawn, key=lambda row: float(row["selection_loss"]))
        lines = [_widths_line(name, [row for row in own if row["name"] == name], fit) for name in named]
        lines += [_widths_line(f"best of {len(drawn)} drawn", [best], fit)]
        slopes = ", ".join(f"{slope:+.3f}" for slope in fit.slopes())
        losses = sorted(float(row["selection_loss"]) for row in drawn)
        text += [
            f"### {task}",
            f"The fit explains {100 * fit.explained:.0f} % of the variance (cross-validated).  Change of the log of the loss per log "
            f"width, first group to last: {slopes}.  Median of the draws {losses[len(losses) // 2]:.3f}, worst {losses[-1]:.3f}.",
            _table(("widths by", "seeds", "selection loss (sd)", "fitted loss", "MACs", "widths"), lines),
        ]
    return text


def _widths_line(name: str, rows: list[Values], fit: Fit) -> list[object]:
    loss = spread([row["selection_loss"] for row in rows]) if len(rows) > 1 else f"{rows[0]['selection_loss']:.3f}"
    return [name, len(rows), loss, f"{fit.loss([widths_of(rows[0])])[0]:.3f}", rows[0]["macs"], rows[0]["widths"]]


def score(rows: list[Values], shelf: Shelf) -> list[str]:
    """Score: gain found per training step that scoring costs."""
    means = {
        method: [fmean(row[name] for row in rows if row["method"] == method) for name in ("step_equivalents", "directions", "taken")]
        for method in _values(rows, "method")
    }
    seeds = len(_values(rows, "seed"))
    table = [
        [method, f"{cost:.0f}", f"{gain:.2f}", f"{taken:.2f}"]
        for method, (cost, gain, taken) in sorted(means.items(), key=lambda one: one[1][0])
    ]
    series: dict[str, list[tuple[float, float]]] = {}
    for method, (cost, gain, _) in means.items():
        series.setdefault(method.split(",")[0].split(" as ")[0] + (" as published" if "published" in method else ""), []).append(
            (cost, gain)
        )
    product = fmean(row["product"] for row in rows)
    return [
        f"{seeds} networks.  A further product costs {product:.2f} training steps.  *Directions*: what the found directions gain "
        "on 8 192 other images, as a part of what a reference fitted to 8 192 gains there.  *Taken*: the same for the best 35 % of "
        "channels by the scorer's own index.",
        _table(("method", "training steps", "directions", "taken"), table),
        shelf.add("score", plots.curves("gain found", series, "training-step equivalents")),
    ]


def law(rows: list[Values], shelf: Shelf) -> list[str]:
    """Predicted against realised change of the loss, by operator and step."""
    steps = sorted(float(step) for step in _values(rows, "step"))
    table: list[list[str]] = []
    series: dict[str, list[tuple[float, float]]] = {}
    for norm in _values(rows, "norm"):
        for operator in _values(rows, "operator"):
            errors = {
                step: _error([row for row in rows if (row["norm"], row["operator"], row["step"]) == (norm, operator, step)])
                for step in steps
            }
            name = f"{operator}, {'norms' if norm else 'no norms'}"
            table.append([name, *errors.values()])
            series[name] = [(step, float(error.rstrip(" %"))) for step, error in errors.items() if error.endswith("%")]
    return [
        "Largest relative error of the prediction over sets of candidates, all of a set added at once, in float64.  0 stands "
        "for a predicted and realised change of zero (below 1e-12 nats), a dash for an operator with nothing to propose.",
        _table(("operator", *(f"{step:g}" for step in steps)), table),
        shelf.add("law", plots.curves("error of the predicted change, %", {k: v for k, v in series.items() if v}, "step", y_log=True)),
    ]


def _error(rows: list[Values]) -> str:
    sets = [one for row in rows for one in row["sets"]]
    if not sets:
        return "–"
    if all(abs(one["realised"]) < 1e-12 and abs(one["predicted"]) < 1e-12 for one in sets):
        return "0"
    return f"{100 * max(abs(one['predicted'] - one['realised']) / abs(one['realised']) for one in sets):.3g} %"


def saturation(rows: list[Values], shelf: Shelf) -> list[str]:  # noqa: ARG001 - a section without a plot
    """The tasks are not saturated."""
    table: list[list[object]] = []
    for task in _values(rows, "task"):
        of_task = [row for row in rows if row["task"] == task]
        for macs in sorted(_values(of_task, "macs")):
            own = [row for row in of_task if row["macs"] == macs]
            losses, right = [row["selection_loss"] for row in own], [row["selection_accuracy"] for row in own]
            table.append([task, macs, len(own), spread(losses), spread(right)])
    return [
        "The expert's pyramid at three sizes, trained alike; selection images.",
        _table(("task", "MACs", "seeds", "loss (sd)", "accuracy (sd)"), table),
    ]


def _values(rows: Iterable[Values], name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))


def _of(rows: list[Values], arm: str) -> list[Values]:
    return [row for row in rows if row["arm"] == arm]


def _losses(rows: list[Values], arm: str) -> list[float]:
    return [row["test_loss"] for row in _of(rows, arm)]


def _by_seed(rows: list[Values], arm: str) -> dict[int, float]:
    return {row["seed"]: row["test_loss"] for row in _of(rows, arm)}


def _point(row: Values) -> str:
    return f"{row['rate']:g}, {row['batch']}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
