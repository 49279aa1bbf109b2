"""T11: the published linear program, what its corners look like, the benchmarks' form of it, and exact selection beside it.

The program: share out beta_i in [0, 1] for every channel, minimise sum_i beta_i lambda_i, with a budget for each part of the network and
a cap on each layer; a channel is split where beta_i is (nearly) 1.  Here as it is written, for HiGHS' simplex, which ends in a corner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog

from benchmarks.selection import Staircase
from benchmarks.width_rules import cost_of, gains, lp, macs_of_next
from costs.families import Network, default_widths, largest_widths
from costs.model import Budget, CostModel, Macs
from costs.shapes import Wiring
from growth.choosing import Room
from growth.offspring import Offspring
from growth.operators import Candidates
from growth.operators.choice import channels_added, picked

Floats = NDArray[np.float64]

PARTS = (range(4), range(4, 14))  # the published groups of layers, each with a budget of its own
GROW, THRESHOLD, LARGEST = 0.3, 0.99, 1.5
PRICES: dict[str, Callable[[Floats], Floats]] = {"raw": lambda macs: macs, "root": np.sqrt, "log": np.log, "one": np.ones_like}


@dataclass(frozen=True)
class Corner:
    """Shares of all channels, and which limits they use up."""

    shares: list[Floats]
    active: int

    @property
    def fractional(self) -> int:
        return sum(int(((share > 1e-9) & (share < 1 - 1e-9)).sum()) for share in self.shares)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(int((share >= THRESHOLD).sum()) for share in self.shares)


def published(indices: Sequence[Floats], prices: Sequence[float], limits: Sequence[tuple[range, float]], room: Sequence[int]) -> Corner:
    """The linear program: ``indices`` by layer, the price of a channel of each, (layers, limit) of each budget, caps."""
    layer = np.repeat(np.arange(len(indices)), [len(index) for index in indices])
    price = np.asarray(prices)[layer]
    rows = [np.where(np.isin(layer, part), price, 0) for part, _ in limits] + [layer == each for each in range(len(indices))]
    bounds = np.array([limit for _, limit in limits] + list(room), dtype=float)
    found = linprog(np.concatenate(indices), np.array(rows), bounds, bounds=(0, 1), method="highs-ds")
    assert found.success
    assert found.x is not None
    ends = np.cumsum([len(index) for index in indices])[:-1]
    return Corner(np.split(found.x, ends), int((found.slack < 1e-9 * np.maximum(bounds, 1)).sum()))


def v1(multiplier: float, size: int) -> Wiring:
    """mobilenet_v1 with widths rounded down, as published."""
    return Network("mobilenet_v1", tuple(int(multiplier * width) for width in default_widths("mobilenet_v1")), size, 3, 1000).wiring()


def heavy_tailed(wiring: Wiring, seed: int) -> list[Floats]:
    """Indices of both signs, most of them negative."""
    rng = np.random.default_rng(seed)
    return [-rng.lognormal(sigma=1.5) * rng.lognormal(sigma=1.5, size=w) * rng.choice([1, -1], w, p=[0.8, 0.2]) for w in wiring.widths]


@pytest.fixture(scope="module")
def wiring() -> Wiring:
    found = v1(0.3, 224)
    assert sum(found.widths) == 1788
    return found


def corner(wiring: Wiring, indices: Sequence[Floats], price: str) -> tuple[Corner, list[float], list[tuple[range, float]], list[int]]:
    """The published round: each part of the network may grow by 30 % of what it costs."""
    prices = PRICES[price](np.array([macs_of_next(wiring, (0,) * len(indices), group) for group in range(len(indices))]))
    limits = [(part, GROW * sum(prices[at] * wiring.widths[at] for at in part)) for part in PARTS]
    room = [most - width for most, width in zip(largest_widths(wiring.widths, LARGEST), wiring.widths, strict=True)]
    return published(indices, list(prices), limits, room), list(prices), limits, room


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("seed", range(3))
def test_a_corner_has_a_fraction_for_each_limit_at_most_and_splits_no_channel_that_loses(wiring: Wiring, price: str, seed: int) -> None:
    indices = heavy_tailed(wiring, seed)
    found, prices, limits, room = corner(wiring, indices, price)
    assert found.fractional <= found.active
    assert all((share[index > 0] == 0).all() for share, index in zip(found.shares, indices, strict=True))
    counts = found.counts
    assert sum(counts) == 536 if price == "one" else sum(counts) > 400  # 30 % of 1 788 channels that all cost the same
    assert all(count <= most for count, most in zip(counts, room, strict=True))
    assert all(sum(prices[at] * counts[at] for at in part) <= limit * (1 + 1e-9) for part, limit in limits)


@pytest.mark.parametrize("seed", range(3))
def test_a_rising_price_takes_fewer_of_the_dear_channels(wiring: Wiring, seed: int) -> None:
    """Logarithms flatten prices: the pick comes near the one that is blind to cost (.97 alike when published prices were replayed)."""
    indices = heavy_tailed(wiring, seed)
    blind = corner(wiring, indices, "one")[0]
    alike = [_jaccard(corner(wiring, indices, price)[0], blind) for price in ("raw", "root", "log")]
    assert alike == sorted(alike)
    assert alike[0] < 0.9 < alike[2]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_the_rule_of_the_benchmarks_is_the_program_with_one_budget(seed: int, share: float) -> None:
    """Its network uses up the budget that it needs, so no share is lost to rounding and the program finds the same."""
    wiring = v1(0.1, 32)
    totals = gains(wiring, seed)
    counts = lp(totals, wiring, Macs(), share * sum(float(total[-1]) for total in totals))
    prices = [macs_of_next(wiring, (0,) * len(totals), group) for group in range(len(totals))]
    budget = sum(price * count for price, count in zip(prices, counts, strict=True))
    found = published([-np.diff(total) for total in totals], prices, [(range(len(totals)), budget)], wiring.widths)
    assert found.counts == counts
    assert found.fractional == 0


@pytest.mark.parametrize("model", [Macs(), Staircase(4), Staircase(16)], ids=["macs", "steps of 4", "steps of 16"])
@pytest.mark.parametrize("price", PRICES)
def test_exact_selection_gains_at_least_as_much_for_no_more(price: str, model: CostModel) -> None:
    """With the true cost of the rounded corner as its limit, under the same caps; it takes no channel that loses either."""
    wiring = v1(0.2, 32)
    indices = heavy_tailed(wiring, 0)
    rounded = corner(wiring, indices, price)[0].counts
    limit = max(cost_of(wiring, rounded, model), cost_of(wiring, (0,) * len(rounded), model))
    room = Room(wiring, [Budget(model, limit)], largest_widths(wiring.widths, LARGEST))
    offered = [candidates(group, -index) for group, index in enumerate(indices)]
    picks, _, gap = room.pick(offered)
    chosen = picked(offered, picks)
    counts = channels_added(chosen, len(indices))
    assert gap == 0
    assert cost_of(wiring, counts, model) <= limit
    assert all(width + more <= most for width, more, most in zip(wiring.widths, counts, room.largest, strict=True))
    assert all((one.gain > 0).all() for one in chosen if one.gain is not None)
    assert sum(float(one.gain.sum()) for one in chosen if one.gain is not None) >= sum(map(_best, indices, rounded)) * (1 - 1e-9)


def candidates(group: int, gain: Floats) -> Candidates:
    """One channel beside each."""
    count = len(gain)
    return Candidates(
        "split", Offspring(group, torch.arange(count), torch.zeros(count, 2, 1), torch.full((count, 2), 0.5)), torch.tensor(gain)
    )


def _best(index: Floats, count: int) -> float:
    """Gain of so many of a layer's best channels."""
    return -float(np.sort(index)[:count].sum())


def _jaccard(one: Corner, other: Corner) -> float:
    ours, theirs = (np.concatenate(corner.shares) >= THRESHOLD for corner in (one, other))
    return float((ours & theirs).sum() / (ours | theirs).sum())
