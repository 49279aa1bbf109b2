"""Controls: what the same limit and the same compute buy without scores.  Every report shows them beside the grown network.

- ``uniform``: the seed's widths times one factor, as large as the limits allow.
- ``cost_only``: widths by cost alone: in as many rounds as growth has, the most channels that the round's share of the budgets allows.
- ``random``: growth with channels and directions chosen by chance.
- ``twins``: the main run's widths, round by round, with exact twins in place of offspring: wider, and no capacity added.
- ``seed_alone``: the seed's own widths, never grown.
- ``slimming``: a wider network, the largest multiple of the seed's widths at twice the limits, slimmed to the limits (``growth.slimming``).

All keep to every budget of the main run, and to its rounding of widths, except that slimming removes single channels.

None spends more than the main run was charged, scoring included: ``random`` and ``twins`` put what they save on scoring into a longer
final stage, ``slimming`` trains the wider network on two fifths of it, the others train one network from scratch for as many steps as
that buys.  So does ``retrained``, which is no control: it
has the main run's final widths, and finding them cost as much again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from costs.families import Network, largest_widths
from costs.model import Budget, Macs
from costs.shapes import Wiring
from growth.config import GrowthConfig
from growth.loop import Growth
from growth.rounds import shares
from growth.selection import fits, select
from growth.training import size

Widths = tuple[int, ...]
WidthRule = Callable[[Wiring, Sequence[Budget], GrowthConfig], Widths]
_HALVINGS = 30  # of an interval of multipliers
_HALF_OPEN = 1e-9  # just past a width's half: where it is rounded up, whatever rounding does at the half itself
_WIDER = 2.0  # cost of the network that is slimmed, in units of the limits
_WIDE_PART = 0.4  # of the compute
_SLIMMING = 1e-3  # strength of the penalty on scales
_BEYOND = 1.25  # costs can fall with width, so multipliers up to this much beyond the first that does not fit are tried too


def control(name: str, seed: Network, main: Growth, config: GrowthConfig) -> tuple[Network, GrowthConfig]:
    """Seed network and config of the control ``name`` of the finished run ``main``, to run with ``Growth.start`` and its budgets."""
    if name not in CONTROLS:
        raise ValueError(f"control is {name!r}; choose one of {', '.join(CONTROLS)}")
    if name == "random":
        return seed, replace(config, scorer="random", compute_limit_macs=main.charged_macs)
    if name == "twins":
        plan = tuple(taken.widths_after for taken in main.rounds)
        return seed, replace(config, rounds=len(plan), planned_widths=plan, compute_limit_macs=main.charged_macs)
    if name == "slimming":
        return _slimming(seed, main, config)
    return _from_scratch(replace(seed, widths=WIDTH_RULES[name](seed.wiring(), main.budgets, config)), main, config)


def retrained(main: Growth, config: GrowthConfig) -> tuple[Network, GrowthConfig]:
    """Network and config to train the widths that ``main`` found from scratch, with as much compute as all of ``main`` was charged."""
    return _from_scratch(main.network, main, config)


def _from_scratch(network: Network, main: Growth, config: GrowthConfig) -> tuple[Network, GrowthConfig]:
    steps = main.charged_macs // _step_macs(network, main, config)
    return network, replace(config, rounds=0, steps_per_round=0, final_steps=steps, compute_limit_macs=main.charged_macs)


def _slimming(seed: Network, main: Growth, config: GrowthConfig) -> tuple[Network, GrowthConfig]:
    """As many steps after slimming as before it can't cost more than those, so that a last stage is left in any case."""
    wiring, wider = seed.wiring(), [replace(budget, limit=_WIDER * budget.limit) for budget in main.budgets]
    wide, fitting = (replace(seed, widths=uniform_widths(wiring, budgets, config)) for budgets in (wider, main.budgets))
    before, after = (_step_macs(network, main, config) for network in (wide, fitting))
    steps = int(_WIDE_PART * main.charged_macs) // before
    final = max(0, main.charged_macs - steps * (before + after)) // after
    return wide, replace(
        config, rounds=1, steps_per_round=steps, final_steps=final, slimming=_SLIMMING, compute_limit_macs=main.charged_macs
    )


def _step_macs(network: Network, main: Growth, config: GrowthConfig) -> int:
    macs = int(Macs().network(network.wiring().shapes()).value)
    return 3 * macs * min(config.batch_size, size(main.data.train))


def seed_widths(wiring: Wiring, budgets: Sequence[Budget], config: GrowthConfig) -> Widths:  # noqa: ARG001 - a rule, if a constant one
    """The seed's own."""
    return wiring.widths


def uniform_widths(wiring: Wiring, budgets: Sequence[Budget], config: GrowthConfig) -> Widths:
    """The largest multiple of the seed's widths within the limits and ``max_growth``, rounded to widths that growth may reach."""
    most, unit = largest_widths(wiring.widths, config.max_growth), config.multiple_of

    def times(factor: float) -> Widths:
        return tuple(_nearest(width * factor, width, top, unit) for width, top in zip(wiring.widths, most, strict=True))

    low, high = 1.0, config.max_growth
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(wiring, times(middle), budgets) else (low, middle)
    # Each width's next value begins half way to it.
    reach = [(width, [width, *range(width // unit * unit + unit, top + 1, unit)]) for width, top in zip(wiring.widths, most, strict=True)]
    steps = {(before + after) / 2 / width for width, widths in reach for before, after in pairwise(widths)}
    beyond = [factor for factor in steps if low < factor <= low * _BEYOND]
    fitting = [widths for widths in (times(factor + _HALF_OPEN) for factor in beyond) if fits(wiring, widths, budgets)]
    return max([times(low), *fitting])


def _nearest(exact: float, width: int, top: int, unit: int) -> int:
    """Of ``width`` and the multiples of ``unit`` above it up to ``top``, the one that is nearest to ``exact``; of two, the wider one.

    Rounding to even would send some groups up and others down at one factor.
    """
    multiple = min(max(width, top // unit * unit), max(width, unit * math.floor(exact / unit + 0.5)))
    return min(multiple, width, key=lambda each: abs(each - exact))


def cost_only_widths(wiring: Wiring, budgets: Sequence[Budget], config: GrowthConfig) -> Widths:
    """The most channels that the rounds' shares of the budgets allow, no width more than doubling in a round."""
    most, seed = largest_widths(wiring.widths, config.max_growth), wiring
    for number in range(1, config.rounds + 1):
        alike = [np.arange(min(width, top - width) + 1.0) for width, top in zip(wiring.widths, most, strict=True)]
        chosen = select(alike, wiring, shares(seed, budgets, number, config.rounds), multiple_of=config.multiple_of)
        wiring = replace(wiring, widths=chosen.widths)
    return wiring.widths


WIDTH_RULES: dict[str, WidthRule] = {"uniform": uniform_widths, "cost_only": cost_only_widths, "seed_alone": seed_widths}
CONTROLS = ("uniform", "cost_only", "random", "twins", "seed_alone", "slimming")
