"""What makes a network of its layers: found where it is there, and a second number only where it predicts better."""

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.fit import MIN_FOR_LINE, Fit, best_fit, leave_one_out, proportional, with_layers

SUMS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
LAYERS = [20] * 8


def noisy(seed: int, per_layer: float) -> list[float]:
    generator = random.Random(seed)
    return [(1.2 * s + per_layer * 20) * generator.lognormvariate(0, 0.02) for s in SUMS]


@given(st.floats(0.5, 2), st.floats(0, 0.1))
def test_a_scale_and_a_constant_for_each_layer_are_found(scale: float, per_layer: float) -> None:
    layers = [20, 20, 20, 20, 12, 12, 12, 12]
    measured = [scale * s + per_layer * n for s, n in zip(SUMS, layers, strict=True)]
    found = with_layers(SUMS, layers, measured)
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.per_layer == pytest.approx(per_layer, abs=1e-6)


def test_one_disturbed_network_does_not_move_the_scale_but_shows_in_the_error() -> None:
    measured = [1.5 * s for s in SUMS]
    measured[3] *= 2
    assert best_fit(SUMS, LAYERS, measured) == Fit(pytest.approx(1.5))
    errors = leave_one_out(SUMS, LAYERS, measured)
    assert errors[3] == pytest.approx(-0.5)
    assert [e for i, e in enumerate(errors) if i != 3] == pytest.approx([0] * 7)


def test_leave_one_out_leaves_the_predicted_network_out() -> None:
    generator = random.Random(0)
    sums = [generator.uniform(1, 9) for _ in range(7)]
    measured = [s * generator.lognormvariate(0.3, 0.1) for s in sums]
    for i, error in enumerate(leave_one_out(sums, LAYERS[:7], measured, proportional)):
        others = sorted(v / s for j, (v, s) in enumerate(zip(measured, sums, strict=True)) if j != i)
        scale = math.sqrt(others[2] * others[3])  # the median of six, between logarithms
        assert error == pytest.approx(scale * sums[i] / measured[i] - 1)


@pytest.mark.parametrize("seed", range(10))
def test_the_constant_is_taken_where_it_is_there(seed: int) -> None:
    measured = noisy(seed, per_layer=0.05)
    assert best_fit(SUMS, LAYERS, measured).per_layer == pytest.approx(0.05, rel=0.4)
    chosen, scale_alone = (fmean(map(abs, leave_one_out(SUMS, LAYERS, measured, fitting))) for fitting in (best_fit, proportional))
    assert chosen < scale_alone / 2


@pytest.mark.parametrize("seed", range(10))
def test_where_there_is_no_constant_little_is_lost(seed: int) -> None:
    assert best_fit(SUMS, LAYERS, noisy(seed, per_layer=0.0)).per_layer < 0.01


def test_time_is_never_taken_away_and_what_can_not_be_told_is_not_fitted() -> None:
    falling = [1.2 * s - 0.5 for s in SUMS]
    assert with_layers(SUMS, LAYERS, falling) == proportional(SUMS, LAYERS, falling)
    alike = [2.0] * 8
    assert with_layers(alike, LAYERS, SUMS) == proportional(alike, LAYERS, SUMS)
    few = MIN_FOR_LINE - 1
    rising = [1.2 * s + 5 for s in SUMS]
    assert best_fit(SUMS[:few], LAYERS[:few], rising[:few]).per_layer == 0
