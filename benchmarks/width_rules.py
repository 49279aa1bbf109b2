"""Rules that choose widths for a share of the gain: the exact one, and those that count FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from costs.model import Budget, CostModel, Macs
from costs.shapes import Wiring
from growth.selection import select

Floats = NDArray[np.float64]
Rule = Callable[[Sequence[Floats], Wiring, CostModel, float], tuple[int, ...]]  # totals, wiring, cost, least gain -> channels added

_HALVINGS = 18


def gains(wiring: Wiring, seed: int) -> list[Floats]:
    """Totals by channels added: log-normal gains of channels, times one of their group."""
    rng = np.random.default_rng(seed)
    each = [np.sort(rng.lognormal(size=width))[::-1] * rng.lognormal() for width in wiring.widths]
    return [np.append(0.0, np.cumsum(gain)) for gain in each]


def exact(totals: Sequence[Floats], wiring: Wiring, model: CostModel, least: float) -> tuple[int, ...]:
    """The cheapest network of so much gain: the lowest limit that reaches it."""
    low, high = cost_of(wiring, (0,) * len(totals), model), cost_of(wiring, [len(total) - 1 for total in totals], model)
    best = select(totals, wiring, Budget(model, high))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chosen = select(totals, wiring, Budget(model, middle))
        # Noise in a table can make a wider network cheaper than the seed: no limit goes below the seed's cost.
        low, high, best = (low, max(low, min(middle, chosen.cost.value)), chosen) if chosen.gain >= least else (middle, high, best)
    return best.counts


def exact_macs(totals: Sequence[Floats], wiring: Wiring, model: CostModel, least: float) -> tuple[int, ...]:  # noqa: ARG001
    """The network of so much gain with the fewest MACs, whatever the table says."""
    return exact(totals, wiring, Macs(), least)


def lp(totals: Sequence[Floats], wiring: Wiring, model: CostModel, least: float) -> tuple[int, ...]:  # noqa: ARG001
    """The published rule.  Its relaxation takes channels by gain per FLOP, whole but for the last, which rounding down drops."""
    prices = [macs_of_next(wiring, (0,) * len(totals), group) for group in range(len(totals))]
    ranked = sorted(
        ((gain / price, group) for group, (total, price) in enumerate(zip(totals, prices, strict=True)) for gain in np.diff(total)),
        reverse=True,
    )
    counts, gained = [0] * len(totals), 0.0
    for _, group in ranked:
        counts[group] += 1
        gained = sum(float(total[count]) for total, count in zip(totals, counts, strict=True))
        if gained >= least:
            break
    return tuple(counts)


def greedy(totals: Sequence[Floats], wiring: Wiring, model: CostModel, least: float) -> tuple[int, ...]:  # noqa: ARG001
    """One channel after the other, the best by gain per MAC at the widths so far."""
    counts, gained = [0] * len(totals), 0.0
    while gained < least:
        able = [group for group, total in enumerate(totals) if counts[group] + 1 < len(total)]
        rates = {g: (totals[g][counts[g] + 1] - totals[g][counts[g]]) / macs_of_next(wiring, counts, g) for g in able}
        group = max(able, key=rates.__getitem__)
        gained += float(totals[group][counts[group] + 1] - totals[group][counts[group]])
        counts[group] += 1
    return tuple(counts)


def cost_of(wiring: Wiring, counts: Sequence[int], model: CostModel) -> float:
    return model.network(wiring.shapes([width + more for width, more in zip(wiring.widths, counts, strict=True)])).value


def macs_of_next(wiring: Wiring, counts: Sequence[int], group: int) -> float:
    """MACs of one more channel in a group, with so many added so far."""
    widths = [width + more for width, more in zip(wiring.widths, counts, strict=True)]
    touching = [unit for unit in wiring.units if group in (unit.input, unit.output)]
    wider = [width + (at == group) for at, width in enumerate(widths)]
    return float(sum(unit.at(wider).macs - unit.at(widths).macs for unit in touching))


RULES: dict[str, Rule] = {"exact": exact, "exact_macs": exact_macs, "lp": lp, "greedy": greedy}


def choices(wiring: Wiring, model: CostModel, seed: int, share: float) -> dict[str, tuple[int, ...]]:
    """The channels that each rule adds for this share of all gain, as drawn by the seed."""
    totals = gains(wiring, seed)
    least = share * sum(float(total[-1]) for total in totals)
    return {name: rule(totals, wiring, model, least) for name, rule in RULES.items()}
