"""Selection against brute force, for smooth and staircase costs, on chains and on wirings tied by residual sums."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costs.families import Network, default_widths
from costs.model import Budget, Cost, CostModel, Macs, Parameters
from costs.shapes import LayerShape, Unit, Wiring
from costs.table import NoCost
from growth.selection import METHODS, Selection, select


@dataclass(frozen=True)
class Staircase:
    """MACs with every channel axis rounded up to a multiple of ``tread``, refused above ``largest``; a constant for the whole network."""

    tread: int = 4
    largest: int = 10_000
    overhead: float = 0.0
    name: Literal["latency_ms"] = "latency_ms"
    unit: str = "ms"

    def layer(self, shape: LayerShape) -> Cost:
        if max(shape.in_channels, shape.out_channels) > self.largest:
            raise NoCost(f"no latency_ms for {shape}: the largest measured width is {self.largest}; measure more")
        up = [-(-width // self.tread) * self.tread for width in (shape.in_channels, shape.out_channels)]
        work = up[1] * shape.kernel**2 if shape.depthwise else up[0] * up[1] * shape.kernel**2
        height, width = shape.output_size
        return Cost(0.1 + work * height * width / 1e4, self.unit, "calibrated_sum")

    def network(self, shapes: Sequence[LayerShape]) -> Cost:
        return Cost(self.overhead + sum(self.layer(shape).value for shape in shapes), self.unit, "calibrated_sum")


def chain(*widths: int) -> Wiring:
    return Network("plain", widths, 8, 1, 3).wiring()


def tied(stem: int, inner: int, last: int) -> Wiring:
    """Two blocks around one residual stream: group 0 is written by the stem and by both blocks, like mobilenet_v2."""
    wide = (stem, inner, inner, last)

    def conv(name: str, read: int | None, write: int, kernel: int = 1, residual: bool = False) -> Unit:
        shape = LayerShape("conv2d", 3 if read is None else wide[read], wide[write], kernel, 1, 1, 4, 4, True, "silu", residual)
        return Unit(name, shape, read, write)

    def depthwise(name: str, group: int) -> Unit:
        return Unit(name, LayerShape("conv2d", wide[group], wide[group], 3, 1, wide[group], 4, 4, True, "silu"), group, group)

    units = (
        conv("stem", None, 0, 3),
        *(conv("expand1", 0, 1), depthwise("dw1", 1), conv("project1", 1, 0, residual=True)),
        *(conv("expand2", 0, 2), depthwise("dw2", 2), conv("project2", 2, 0, residual=True)),
        conv("last", 0, 3),
        Unit("classifier", LayerShape("linear", last, 5), 3, None),
    )
    return Wiring(wide, units)


def brute_force(
    gains: Sequence[np.ndarray], wiring: Wiring, cost_model: CostModel, limit: float, most: Sequence[int]
) -> tuple[float, float]:
    """Largest gain within the limit and the least cost of that gain, over every possible number of splits."""
    found = []
    for counts in itertools.product(*(range(min(2 * width, top) - width + 1) for width, top in zip(wiring.widths, most, strict=True))):
        chosen = [np.sort(gain)[::-1][:count] for gain, count in zip(gains, counts, strict=True)]
        if any((part <= 0).any() for part in chosen):
            continue
        try:
            cost = cost_model.network(wiring.shapes([w + c for w, c in zip(wiring.widths, counts, strict=True)])).value
        except NoCost:
            continue
        if cost <= limit:
            found.append((sum(float(part.sum()) for part in chosen), cost))
    best = max(gain for gain, _ in found)
    return best, min(cost for gain, cost in found if gain >= best - 1e-8 * max(1.0, best))


def best(gains: Sequence[np.ndarray], wiring: Wiring, cost_model: CostModel, limit: float, most: Sequence[int]) -> Selection:
    """Each group adds one channel for each of its best channels that gain something, up to a width."""
    useful = [np.sort(gain[gain > 0])[::-1][: top - width] for gain, width, top in zip(gains, wiring.widths, most, strict=True)]
    return select([np.concatenate([[0.0], np.cumsum(gain)]) for gain in useful], wiring, Budget(cost_model, limit))


def check(gains: Sequence[np.ndarray], wiring: Wiring, cost_model: CostModel, limit: float, most: Sequence[int]) -> Selection:
    chosen = best(gains, wiring, cost_model, limit, most)
    gain, cost = brute_force(gains, wiring, cost_model, limit, most)
    assert chosen.gain == pytest.approx(gain, rel=1e-7, abs=1e-12)
    assert chosen.cost.value == pytest.approx(cost, rel=1e-7)
    assert chosen.cost.value <= limit
    assert chosen.gap <= 1e-6
    assert chosen.widths == tuple(w + c for w, c in zip(wiring.widths, chosen.counts, strict=True))
    return chosen


WIRINGS = {
    "one": chain(6),
    "chain": chain(4, 6, 5),
    "mobilenet_v1-like": Wiring((4, 4, 3), Network("mobilenet_v1", default_widths("mobilenet_v1", 0.1), 8, 1, 3).wiring().units[:5]),
    "tied": tied(4, 3, 5),
}
COSTS = {
    "macs": Macs(),
    "parameters": Parameters(),
    "steps of 4": Staircase(4),
    "steps of 3, refusing": Staircase(3, largest=8, overhead=2.0),
}


@pytest.mark.parametrize("wiring", [pytest.param(wiring, id=name) for name, wiring in WIRINGS.items()])
@pytest.mark.parametrize("cost_model", [pytest.param(model, id=name) for name, model in COSTS.items()])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_equals_brute_force(wiring: Wiring, cost_model: CostModel, data: st.DataObject) -> None:
    level = st.one_of(st.integers(-2, 4).map(float), st.floats(-1, 2).map(lambda x: round(x, 4)))  # integers: many ties
    gains = [np.array(data.draw(st.lists(level, min_size=width, max_size=width))) for width in wiring.widths]
    most = [data.draw(st.integers(width, 2 * width)) for width in wiring.widths]
    limit = cost_model.network(wiring.shapes()).value * data.draw(st.floats(1, 3))
    check(gains, wiring, cost_model, limit, most)


def test_the_best_channels_are_split_and_worthless_ones_never() -> None:
    gains = np.array([0.1, -1.0, 0.3, 0.0, 0.2])
    chosen = best([gains], chain(5), Parameters(), 1e9, [10])
    assert chosen.counts == (3,)


def test_free_channels_of_a_step_are_taken() -> None:
    chosen = best([np.full(6, 1.0)], chain(6), Staircase(8), Staircase(8).network(chain(6).shapes()).value, [12])
    assert chosen.counts == (2,)  # 8 costs what 6 costs


def test_equal_gains_go_to_the_cheaper_group() -> None:
    wiring = chain(4, 8)
    grown = [Macs().network(wiring.shapes(widths)).value for widths in ((5, 8), (4, 9))]
    chosen = best([np.eye(4)[0], np.eye(8)[0]], wiring, Macs(), max(grown), [8, 16])
    assert chosen.counts == ((1, 0) if grown[0] < grown[1] else (0, 1))


def test_nothing_affordable_splits_nothing() -> None:
    wiring = chain(4, 4)
    chosen = best([np.ones(4), np.ones(4)], wiring, Macs(), Macs().network(wiring.shapes()).value, [8, 8])
    assert chosen.counts == (0, 0)
    assert (chosen.gain, chosen.gap) == (0, 0)


def test_nothing_to_gain_splits_nothing() -> None:
    assert best([-np.ones(4), np.zeros(4)], chain(4, 4), Macs(), 1e12, [8, 8]).counts == (0, 0)


def test_a_network_above_the_limit_is_refused_with_value_and_limit() -> None:
    with pytest.raises(ValueError, match=r"costs 4620 MACs at widths \(4, 4\), more than the limit of 4619"):
        best([np.ones(4), np.ones(4)], chain(4, 4), Macs(), 4619, [8, 8])


def test_a_number_that_gains_no_more_than_a_smaller_one_is_no_candidate() -> None:
    """Even where it would be cheaper: there is nothing to add so many channels with."""
    wiring, pairs = chain(6), np.array([0.0, 0.0, 2.0, 2.0, 3.0])
    assert select([pairs], wiring, Budget(Parameters(), Parameters().network(wiring.shapes((9,))).value)).counts == (2,)
    assert select([pairs], wiring, Budget(Parameters(), Parameters().network(wiring.shapes((7,))).value)).counts == (0,)


def test_a_present_network_without_a_cost_is_refused() -> None:
    with pytest.raises(NoCost):
        best([np.ones(6)], chain(6), Staircase(largest=5), 1e9, [12])


def test_a_limit_met_exactly_is_allowed() -> None:
    wiring = chain(5, 7)
    limit = Macs().network(wiring.shapes((7, 9))).value
    chosen = best([np.array([3.0, 2, 0, 0, 0]), np.array([3.0, 2, 0, 0, 0, 0, 0])], wiring, Macs(), limit, [10, 14])
    assert chosen.widths == (7, 9)


@pytest.mark.parametrize("family", ["mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize("cost_model", [Macs(), Staircase(8)], ids=["macs", "steps of 8"])
def test_whole_families_are_solved(family: Literal["mobilenet_v1", "mobilenet_v2"], cost_model: CostModel) -> None:
    wiring = Network(family, default_widths(family, 0.25), 32, 3, 10).wiring()
    rng = np.random.default_rng(0)
    gains = [rng.lognormal(size=width) * rng.lognormal() for width in wiring.widths]
    limit = 1.3 * cost_model.network(wiring.shapes()).value
    chosen = best(gains, wiring, cost_model, limit, [2 * width for width in wiring.widths])
    assert chosen.cost.value <= limit
    assert chosen.gap < 1e-6
    assert chosen.gain > 0.3 * sum(float(gain.sum()) for gain in gains)
