"""Controls keep the limit and the main run's compute, and are what their names say."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from costs.families import Network
from costs.model import Budget, Cost, CostModel, Macs, Parameters
from costs.shapes import LayerShape
from costs.table import NoCost
from growth.config import GrowthConfig
from growth.controls import CONTROLS, WIDTH_RULES, control, retrained, uniform_widths
from growth.loop import Growth
from growth.selection import fits
from growth.training import Data

SEED = Network("plain", (4, 6), 8, 1, 3)
SEED_MACS = Macs().network(SEED.wiring().shapes()).value
CONFIG = GrowthConfig(
    limit=3 * SEED_MACS, rounds=2, steps_per_round=3, final_steps=4, batch_size=16, scoring_samples=32, fresh_samples=16, learning_rate=0.05
)


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 1, 8, 8, generator=generator), torch.randint(3, (count,), generator=generator))


DATA = Data(images(64, 0), images(20, 1), images(20, 2))


@pytest.fixture(scope="module")
def main() -> Growth:
    growth = Growth.start(SEED, DATA, Macs(), CONFIG)
    list(growth.events())
    return growth


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_keeps_limit_and_compute_and_spends_nearly_all(name: str, main: Growth) -> None:
    network, config = control(name, SEED, main, CONFIG)
    growth = Growth.start(network, DATA, Macs(), config)
    list(growth.events())
    assert Macs().network(growth.network.wiring().shapes()).value <= CONFIG.limit
    assert growth.charged_macs <= main.charged_macs
    assert growth.charged_macs > main.charged_macs - 3 * growth.macs * CONFIG.batch_size
    assert growth.step == growth.total_steps
    assert (config.learning_rate, config.seed) == (CONFIG.learning_rate, CONFIG.seed)


def test_the_random_control_trains_longer_for_what_scoring_would_cost(main: Growth) -> None:
    network, config = control("random", SEED, main, CONFIG)
    assert (network, config.scorer, config.rounds) == (SEED, "random", CONFIG.rounds)
    narrow = replace(config, max_growth=1.0)  # nothing can be split, so steps cost what the seed's cost
    growth = Growth.start(network, DATA, Macs(), narrow)
    list(growth.events())
    assert growth.step > CONFIG.growth_steps + CONFIG.final_steps


def bright_or_dark(count: int, seed: int) -> TensorDataset:
    """Images whose class shows: growth is kept, not rolled back."""
    pixels, classes = images(count, seed).tensors
    return TensorDataset(pixels + classes.view(-1, 1, 1, 1), classes)


def test_twins_have_the_main_runs_widths_round_by_round() -> None:
    data, longer = (
        Data(*(bright_or_dark(count, seed) for seed, count in enumerate((80, 20, 20)))),
        replace(CONFIG, steps_per_round=12, scorer="random"),
    )
    main = Growth.start(SEED, data, Macs(), longer)
    list(main.events())
    network, config = control("twins", SEED, main, longer)
    growth = Growth.start(network, data, Macs(), config)
    list(growth.events())
    assert [taken.widths_after for taken in growth.rounds] == [taken.widths_after for taken in main.rounds]
    assert growth.network == main.network
    assert len({SEED.widths, *(taken.widths_after for taken in main.rounds)}) == 3  # both rounds grew (chance always splits), and were kept
    assert [taken.change_at_growth for taken in growth.rounds] == pytest.approx([0, 0], abs=1e-6)
    assert not any(taken.rolled_back or taken.channels_scored for taken in growth.rounds)
    assert growth.step >= main.step


def test_retrained_has_the_widths_found_and_the_compute_of_the_whole_run(main: Growth) -> None:
    network, config = retrained(main, CONFIG)
    growth = Growth.start(network, DATA, Macs(), config)
    list(growth.events())
    assert (growth.network, growth.rounds) == (main.network, [])
    assert main.charged_macs - 3 * growth.macs * CONFIG.batch_size < growth.charged_macs <= main.charged_macs


def test_an_unknown_control_is_refused(main: Growth) -> None:
    with pytest.raises(ValueError, match="control is 'magic'; choose one of uniform, cost_only, random, twins, seed_alone, slimming"):
        control("magic", SEED, main, CONFIG)


@pytest.mark.parametrize("name", WIDTH_RULES)
@pytest.mark.parametrize("cost_model", [Macs(), Parameters()], ids=["macs", "params"])
@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0, 1000.0])
def test_widths_lie_between_the_seed_and_its_largest_growth(name: str, cost_model: CostModel, factor: float) -> None:
    wiring = SEED.wiring()
    limit = factor * cost_model.network(wiring.shapes()).value
    widths = WIDTH_RULES[name](wiring, [Budget(cost_model, limit)], CONFIG)
    assert cost_model.network(wiring.shapes(widths)).value <= limit
    assert all(low <= width <= 4 * low for low, width in zip(wiring.widths, widths, strict=True))
    if factor == 1000 and name != "seed_alone":
        assert widths == (16, 24)


@pytest.mark.parametrize("limit", range(SEED_MACS, 10 * SEED_MACS, SEED_MACS // 3))  # type: ignore[arg-type]
def test_uniform_is_the_largest_multiplier(limit: int) -> None:
    """Brute force over a fine grid of multipliers."""
    wiring = SEED.wiring()
    grid = {tuple(round(width * (1 + i / 1000)) for width in wiring.widths) for i in range(3001)}
    best = max(widths for widths in grid if Macs().network(wiring.shapes(widths)).value <= limit)
    assert uniform_widths(wiring, [Budget(Macs(), limit)], CONFIG) == best


class Refusing(Parameters):
    """Knows no layer wider than 7."""

    def network(self, shapes: Sequence[LayerShape]) -> Cost:
        if max(shape.out_channels for shape in shapes) > 7:
            raise NoCost("no cost above 7 channels")
        return super().network(shapes)


def test_uniform_stays_where_costs_are_known() -> None:
    assert uniform_widths(SEED.wiring(), [Budget(Refusing(), 1e9)], CONFIG) == (5, 7)


@pytest.mark.parametrize("multiple_of", [1, 2])
def test_growth_and_every_control_keep_to_all_budgets_and_to_the_rounding(multiple_of: int) -> None:
    """The further budget is the tighter one: the first alone would be spent beyond it."""
    config, params = replace(CONFIG, multiple_of=multiple_of), Parameters()
    further = [Budget(params, 1.6 * params.network(SEED.wiring().shapes()).value)]
    main = Growth.start(SEED, DATA, Macs(), config, further)
    list(main.events())
    runs = {"grown": main}
    for name in CONTROLS:
        network, planned = control(name, SEED, main, config)
        runs[name] = Growth.start(network, DATA, Macs(), planned, further)
        list(runs[name].events())
    for name, run in runs.items():
        widths = run.graph.wiring.widths
        assert fits(SEED.wiring(), widths, run.budgets), name
        assert run.charged_macs <= main.charged_macs
        assert name == "slimming" or all(width % multiple_of == 0 or width in SEED.widths for width in widths)
    for name, rule in WIDTH_RULES.items():
        assert name == "seed_alone" or not fits(SEED.wiring(), rule(SEED.wiring(), main.budgets[:1], config), further)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(2, 9), min_size=1, max_size=3),
    multiple_of=st.integers(1, 5),
    factor=st.floats(1, 12),
)
@example([7, 3, 9], 3, 5.570998529805247)  # at 2.5 times, all three lie half way
def test_uniform_widths_are_the_widest_that_are_nearest_to_a_multiple_of_the_seeds(
    widths: list[int], multiple_of: int, factor: float
) -> None:
    """Against trying many factors."""
    wiring = Network("plain", tuple(widths), 8, 1, 3).wiring()
    budgets = [Budget(Macs(), factor * Macs().network(wiring.shapes()).value)]
    found = uniform_widths(wiring, budgets, replace(CONFIG, multiple_of=multiple_of))
    reach = [[width, *(more for more in range(width + 1, 4 * width + 1) if more % multiple_of == 0)] for width in widths]
    tried = {
        tuple(min(reversed(able), key=lambda each: abs(each - width * (1 + i / 499.7))) for width, able in zip(widths, reach, strict=True))
        for i in range(1500)
    }
    assert found == max(each for each in tried if fits(wiring, each, budgets))
