"""When in a run its rounds open: as shares of the compute that all stages take together.

What a step costs follows from the widths, and those are known only when a round has chosen them.  So shares are by plan: each round is
taken to reach the largest multiple of the seed's widths that its share of the budgets allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from costs.model import Budget, Macs
from costs.shapes import Wiring
from growth.config import GrowthConfig
from growth.controls import uniform_widths
from growth.rounds import shares


def at_moments(seed: Wiring, budgets: Sequence[Budget], config: GrowthConfig, moments: Sequence[float]) -> GrowthConfig:
    """The config with its steps dealt out anew, so that rounds open at these rising shares (0 to 1) of the same planned compute.

    Every stage keeps a step at least.
    """
    macs = planned_macs(seed, budgets, config)
    steps = [*config.stage_steps, config.final_steps]
    compute = sum(each * count for each, count in zip([*macs, macs[-1]], steps, strict=True))
    parts = [after - before for before, after in pairwise([0.0, *moments, 1.0])]
    # The last round's stage and the final one train the same network: both last part of what is left, as long as they did to each other.
    last, final = steps[-2:]
    parts[-1:] = [parts[-1] * each / (last + final) for each in (last, final)]
    dealt = [max(1, round(part * compute / each)) for part, each in zip(parts, [*macs, macs[-1]], strict=True)]
    return replace(config, steps_per_round=tuple(dealt[:-1]), final_steps=dealt[-1])


def planned_macs(seed: Wiring, budgets: Sequence[Budget], config: GrowthConfig) -> list[float]:
    """MACs of an image in the seed's stage and in each round's."""
    plan = [seed.widths]
    plan += [uniform_widths(seed, shares(seed, budgets, number, config.rounds), config) for number in range(1, config.rounds + 1)]
    return [Macs().network(seed.shapes(widths)).value for widths in plan]
