"""Which size is ahead at the compute that a seed gets: a seed that is behind a larger network has nothing to give to what grows from it.

Every size trains from scratch, on one whole schedule, with the compute of the seed's own stage.  On small tasks the smallest network is
ahead for a part of an epoch only; a seed of a sixth of the final MACs was behind everywhere that was tried, one of a third was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from costs.families import Network
from costs.model import Budget, Macs
from growth.config import GrowthConfig
from growth.controls import uniform_widths
from growth.rounds import shares

BETWEEN = 3  # sizes beyond the seed, at equal factors of cost up to the limit


@dataclass(frozen=True, slots=True)
class Point:
    """A size, the steps that the compute bought, and the loss it came to on the selection data (nats)."""

    widths: tuple[int, ...]
    macs: int
    steps: int
    loss: float


def sizes(seed: Network, budgets: Sequence[Budget], config: GrowthConfig) -> list[Network]:
    """The seed, and uniform multiples of it up to the limits; each size once, narrowest first."""
    wiring = seed.wiring()
    wider = [uniform_widths(wiring, shares(wiring, budgets, part, BETWEEN), config) for part in range(1, BETWEEN + 1)]
    return [replace(seed, widths=widths) for widths in dict.fromkeys([seed.widths, *wider])]


def probe_config(network: Network, seed: Network, images: int, config: GrowthConfig) -> GrowthConfig:
    """To train ``network`` on one whole schedule with the compute of the seed's stage, on ``images`` training images."""
    batch = min(config.batch_size, images)
    compute = config.stage_end(0) * _macs(seed) * batch
    return replace(config, rounds=0, steps_per_round=0, final_steps=max(1, compute // (_macs(network) * batch)))


def advice(points: Sequence[Point]) -> str:
    """What the points say of the seed, which is the first of them; they are of one training each."""
    seed, best = points[0], min(points, key=lambda point: point.loss)
    if best is seed:
        return f"Seed size: no wider network does better on the seed's compute (loss {seed.loss:.4g})."
    wider = f"widths {list(best.widths)} ({best.macs / seed.macs:.1f} times its MACs) come to {best.loss:.4g} on the same compute"
    return f"Seed size: the seed is behind, its loss is {seed.loss:.4g} where {wider}; start wider, or train the seed for less."


def point(network: Network, steps: int, loss: float) -> Point:
    return Point(network.widths, _macs(network), steps, loss)


def _macs(network: Network) -> int:
    return int(Macs().network(network.wiring().shapes()).value)
