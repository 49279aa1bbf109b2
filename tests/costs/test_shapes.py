"""Layer shapes: sizes, counts and words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.shapes import LayerShape, Unit, Wiring

CONV = LayerShape("conv2d", 16, 24, 3, 2, 1, 15, 14, norm=True, activation="silu")
DEPTHWISE = LayerShape("conv2d", 16, 16, 3, 1, 16, 8, 8, norm=True, activation="relu")
POINTWISE = LayerShape("conv2d", 16, 24, 1, 1, 1, 8, 8)
PROJECT = LayerShape("conv2d", 96, 24, 1, 1, 1, 8, 8, norm=True, residual=True)
LINEAR = LayerShape("linear", 24, 10)
MAX_POOL = LayerShape("max_pool", 16, 16, 2, 2, 1, 15, 14)
GLOBAL_POOL = LayerShape("global_pool", 16, 16, 1, 1, 1, 7, 7)


@pytest.mark.parametrize(
    ("shape", "size", "macs", "parameters", "words"),
    [
        (CONV, (8, 7), 9 * 16 * 24 * 8 * 7, 9 * 16 * 24 + 48, "conv2d 3x3/2 16->24 at 15x14+bn+silu"),
        (DEPTHWISE, (8, 8), 9 * 16 * 64, 9 * 16 + 32, "depthwise conv2d 3x3/1 16->16 at 8x8+bn+relu"),
        (POINTWISE, (8, 8), 16 * 24 * 64, 16 * 24 + 24, "conv2d 1x1/1 16->24 at 8x8"),
        (PROJECT, (8, 8), 96 * 24 * 64, 96 * 24 + 48, "conv2d 1x1/1 96->24 at 8x8+bn+add"),
        (LINEAR, (1, 1), 240, 250, "linear 24->10"),
        (MAX_POOL, (7, 7), 0, 0, "max_pool 2x2/2 16->16 at 15x14"),
        (GLOBAL_POOL, (1, 1), 0, 0, "global_pool 16->16 at 7x7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_size_counts_and_words(shape: LayerShape, size: tuple[int, int], macs: int, parameters: int, words: str) -> None:
    assert shape.output_size == size
    assert shape.macs == macs
    assert shape.parameters == parameters
    assert str(shape) == words


def test_only_a_convolution_with_one_filter_per_channel_is_depthwise() -> None:
    assert [shape.depthwise for shape in (CONV, DEPTHWISE, POINTWISE, LINEAR, MAX_POOL, GLOBAL_POOL)] == [False, True, *[False] * 4]
    assert not LayerShape("conv2d", 1, 1, 3).depthwise  # one channel: a full convolution and a depthwise one are the same


@given(st.integers(2, 500), st.integers(2, 500))
def test_a_unit_follows_the_widths_of_its_groups(first: int, second: int) -> None:
    units = (
        Unit("stem", LayerShape("conv2d", 3, 16, 3, norm=True), None, 0),
        Unit("depthwise", DEPTHWISE, 0, 0),
        Unit("pointwise", POINTWISE, 0, 1),
        Unit("classifier", LayerShape("linear", 24 * 9, 10), 1, None, in_multiple=9),
    )
    wiring = Wiring((16, 24), units)
    assert wiring.shapes() == tuple(unit.shape for unit in units)
    stem, depthwise, pointwise, classifier = wiring.shapes((first, second))
    assert (stem.in_channels, stem.out_channels) == (3, first)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (first, first, first)
    assert (pointwise.in_channels, pointwise.out_channels, pointwise.groups) == (first, second, 1)
    assert (classifier.in_channels, classifier.out_channels) == (9 * second, 10)


def test_wrong_number_of_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="1 widths for 2 channel groups; give one width per group"):
        Wiring((16, 24), ()).shapes((16,))
