"""Selection against brute force, for smooth and staircase costs, on chains and on wirings tied by residual sums."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costs.families import Network, default_widths
from costs.model import Budget, Cost, CostModel, Macs, Parameters
from costs.shapes import LayerShape, Unit, Wiring
from costs.table import NoCost
from growth.selection import METHODS, Selection, select
from growth.selection.bounds import relaxed
from growth.selection.tables import tabulate
from growth.selection.tree import is_forest, rooted


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


def cycle(stem: int, inner: int, last: int, after: int) -> Wiring:
    """A residual block with a convolution on its shortcut, like resnet18's strided ones: groups 0, 1 and 2 lie on a cycle."""
    plain = tied(stem, inner, last).units
    wide = (stem, inner, last, after)

    def conv(name: str, read: int, write: int) -> Unit:
        return Unit(name, LayerShape("conv2d", wide[read], wide[write], 1, 1, 1, 4, 4, True, "silu"), read, write)

    head = Unit("classifier", LayerShape("linear", after, 5), 3, None)
    return Wiring(wide, (plain[0], conv("in", 0, 1), conv("out", 1, 2), conv("shortcut", 0, 2), conv("more", 2, 3), head))


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
    "cycle": cycle(4, 3, 4, 3),
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


class Said(Staircase):
    """The same staircase, which says where its steps lie."""

    def edges(self, shape: LayerShape) -> tuple[Sequence[int], Sequence[int]]:
        ends = [end for end in range(0, 10_000, self.tread) if end <= self.largest] + [self.largest]
        return ends, ends


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budgets", [1, 2, 3])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_method_keeps_to_every_budget_and_equals_brute_force(method: str, budgets: int, data: st.DataObject) -> None:
    wiring = data.draw(st.sampled_from([chain(3, 4, 3), chain(5), tied(3, 2, 3), cycle(2, 3, 2, 3)][: 3 if method == "labels" else 4]))
    models: list[CostModel] = [data.draw(st.sampled_from([Said(3), Staircase(3), Macs()])), Parameters(), Said(4, largest=7)][:budgets]
    totals = [np.append(0.0, np.cumsum(data.draw(st.lists(st.integers(0, 4), max_size=5)))) for _ in wiring.widths]
    limits = [Budget(model, model.network(wiring.shapes()).value * data.draw(st.floats(1, 3))) for model in models]
    multiple = data.draw(st.sampled_from([1, 1, 2, 3]))
    chosen = select(totals, wiring, limits, method=method, multiple_of=multiple)
    choices = [
        [n for n, total in enumerate(group) if n == 0 or (total > group[n - 1] and (width + n) % multiple == 0)]
        for group, width in zip(totals, wiring.widths, strict=True)
    ]
    fitting = [
        (sum(float(total[n]) for total, n in zip(totals, counts, strict=True)), -costs[0])
        for counts in itertools.product(*choices)
        if (costs := costs_within(limits, wiring, counts)) is not None
    ]
    assert (chosen.gain, -chosen.cost.value) == pytest.approx(max(fitting), rel=1e-9)
    assert chosen.gap == 0
    assert chosen.costs == tuple(budget.cost_model.network(wiring.shapes(chosen.widths)) for budget in limits)


def costs_within(limits: Sequence[Budget], wiring: Wiring, counts: Sequence[int]) -> list[float] | None:
    shapes = wiring.shapes([width + more for width, more in zip(wiring.widths, counts, strict=True)])
    try:
        costs = [budget.cost_model.network(shapes).value for budget in limits]
    except NoCost:
        return None
    return costs if all(cost <= budget.limit for cost, budget in zip(costs, limits, strict=True)) else None


def test_the_method_follows_the_wiring() -> None:
    methods = {
        name: best([np.ones(w) for w in wiring.widths], wiring, Macs(), 1e9, [9] * len(wiring.widths)).method
        for name, wiring in WIRINGS.items()
    }
    assert methods == {"one": "labels", "chain": "labels", "mobilenet_v1-like": "labels", "tied": "labels", "cycle": "program"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budgets": []}, "budgets is empty"),
        ({"multiple_of": 0}, "multiple_of is 0; give 1"),
        ({"method": "guess"}, "method is 'guess'; choose one of labels, program"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select([np.ones(1)], chain(4), **{"budgets": [Budget(Macs(), 1e9)], **wrong})


@pytest.mark.parametrize("wiring", [tied(3, 2, 3), cycle(2, 3, 2, 3)], ids=["tree", "cycle"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_choice_gains_more_than_the_bounds_of_its_candidates(wiring: Wiring, data: st.DataObject) -> None:
    """At any prices; and on a tree the best choice at those prices reaches them."""
    totals = [np.append(0.0, np.cumsum(data.draw(st.lists(st.floats(0.1, 4), min_size=1, max_size=3)))) for _ in wiring.widths]
    models = [Staircase(3), Parameters()]
    problem = tabulate(totals, wiring, [Budget(model, 1.5 * model.network(wiring.shapes()).value) for model in models], 1)
    prices = np.array([data.draw(st.floats(0, 3)), data.draw(st.floats(0, 1))])
    tree = None
    if is_forest(problem):
        problem, tree = rooted(problem)
    bound = relaxed(problem, prices, tree, sweeps=data.draw(st.integers(1, 4)))
    best_with = [np.full(len(gain), -np.inf) for gain in problem.gain]
    for choice in itertools.product(*(range(len(gain)) for gain in problem.gain)):
        at = np.array(choice)
        worth = problem.gain_of(at) + prices @ (problem.room - problem.cost_of(at))
        for group, candidate in enumerate(choice):
            best_with[group][candidate] = max(best_with[group][candidate], worth)
    for each, worths in zip(bound.each, best_with, strict=True):
        assert (each >= worths - 1e-9).all()
        if tree:
            assert each == pytest.approx(worths, abs=1e-9)


@pytest.mark.parametrize("wiring", [chain(9, 8, 9), cycle(6, 7, 6, 8)], ids=["tree", "cycle"])
def test_prices_found_on_few_candidates_leave_the_answer_as_it_is(wiring: Wiring, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    gains, most = [rng.lognormal(size=width) for width in wiring.widths], [2 * width for width in wiring.widths]
    limit = 1.8 * Macs().network(wiring.shapes()).value
    expected = best(gains, wiring, Macs(), limit, most)
    monkeypatch.setattr("growth.selection.climbing._ENTRIES", 20)
    assert best(gains, wiring, Macs(), limit, most) == expected


def test_few_labels_still_prove_their_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one label the answer may be worse, and says by how much at most."""
    rng = np.random.default_rng(0)
    wiring, model = chain(12, 16, 16, 20, 24), Staircase(4)
    gains = [rng.lognormal(size=width) for width in wiring.widths]
    limit, most = 1.7 * model.network(wiring.shapes()).value, [2 * width for width in wiring.widths]
    optimum = best(gains, wiring, model, limit, most)
    monkeypatch.setattr("growth.selection.labels.CAPS", (1,))
    monkeypatch.setattr("growth.selection.climbing.climbed", lambda problem, choice: choice)
    rough = best(gains, wiring, model, limit, most)
    assert optimum.gap == 0
    assert rough.cost.value <= limit
    assert rough.gain <= optimum.gain <= rough.gain / (1 - rough.gap) * (1 + 1e-9)
    assert rough.gap > 0


def test_every_width_of_wide_groups_is_a_candidate() -> None:
    """One group of 60 channels: 61 widths, and the largest that fits is found, not one near it."""
    wiring, gains = chain(60), [np.random.default_rng(1).lognormal(size=60)]
    assert best(gains, wiring, Macs(), Macs().network(wiring.shapes((87,))).value, [120]).widths == (87,)


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
