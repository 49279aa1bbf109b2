"""Widths against the same rules written with plain sets."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costs.widths import LARGEST, Pair, Widths, decoded, encoded

width = st.integers(1, 30)
pair = st.tuples(width, width)
measured = st.sets(pair, max_size=30)


def above(pairs: set[Pair], asked: Pair) -> Pair | None:
    first, second = (min((each[axis] for each in pairs if each[axis] >= asked[axis]), default=None) for axis in (0, 1))
    if first is None or second is None:
        return None
    covering = [(i, o) for i, o in pairs if i >= first and o >= second]
    return (first, second) if (first, second) in pairs else min(covering, key=lambda each: (each[0] * each[1], each), default=None)


def below(pairs: set[Pair], asked: Pair) -> Pair | None:
    first, second = (max((each[axis] for each in pairs if each[axis] <= asked[axis]), default=0) for axis in (0, 1))
    return (first, second) if (first, second) in pairs else None


def distance(one: Pair, other: Pair) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


@given(measured, pair)
@example(pairs={(7, 18), (9, 14), (10, 13)}, asked=(1, 1))  # equal products
def test_neighbours_are_those_of_the_plain_rule(pairs: set[Pair], asked: Pair) -> None:
    widths = Widths(pairs)
    assert (widths.above(asked), widths.below(asked)) == (above(pairs, asked), below(pairs, asked))
    assert (asked in widths) == (asked in pairs)


@given(measured, pair, st.integers(1, 5))
def test_the_nearest_are_the_nearest(pairs: set[Pair], asked: Pair, count: int) -> None:
    assert Widths(pairs).nearest(asked, count) == sorted(pairs, key=lambda each: (distance(each, asked), each))[:count]


@given(measured)
def test_bytes_hold_the_same_pairs(pairs: set[Pair]) -> None:
    again = Widths.from_bytes(Widths(pairs).to_bytes())
    assert list(again) == sorted(pairs)
    assert again.axes == Widths(pairs).axes == (sorted({i for i, _ in pairs}), sorted({o for _, o in pairs}))


@given(st.tuples(st.integers(1, LARGEST), st.integers(1, LARGEST)))
def test_a_code_is_a_pair(asked: Pair) -> None:
    assert decoded(encoded(asked)) == asked
    assert encoded(asked).bit_length() <= 40


@pytest.mark.parametrize("wrong", [(0, 8), (8, LARGEST + 1)])
def test_no_layer_has_such_widths(wrong: Pair) -> None:
    with pytest.raises(ValueError, match=rf"widths are {wrong[0]}->{wrong[1]}; .* 1 to {LARGEST} channels"):
        Widths([wrong])
