"""The widths measured for layers that agree in everything else, and which of them answer for a width that was not measured.

A pair of widths (input, output) is held as one integer, pairs in rising order, so that a form with very many of them stays small in
memory and in a store, and is searched by bisection.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

Pair = tuple[int, int]

BITS = 20
LARGEST = 2**BITS - 1


class Widths:
    """Measured pairs of widths; depthwise layers and pools have both equal.  ValueError for a width that is no layer's."""

    __slots__ = ("_codes", "_inputs", "_outputs")

    BYTES_PER_PAIR = 8

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._codes: Sequence[int] = array("Q", sorted({encoded(pair) for pair in pairs}))
        self._axes_of_codes()

    def _axes_of_codes(self) -> None:
        # by methods of numbers, not by a loop: a thousand forms are read in one go
        self._inputs = sorted(set(map(BITS.__rrshift__, self._codes)))
        self._outputs = sorted(set(map(LARGEST.__and__, self._codes)))

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[Pair]:
        return map(decoded, self._codes)

    def __contains__(self, pair: Pair) -> bool:
        code = encoded(pair)
        at = bisect_left(self._codes, code)
        return at < len(self._codes) and self._codes[at] == code

    @property
    def axes(self) -> tuple[Sequence[int], Sequence[int]]:
        """The measured input widths, and the measured output widths, each rising."""
        return self._inputs, self._outputs

    @property
    def largest(self) -> Pair:
        """The widest of each axis."""
        return self._inputs[-1], self._outputs[-1]

    def above(self, pair: Pair) -> Pair | None:
        """Each axis rounded up to the next measured width.  Where just that pair is missing, the smallest pair that covers it."""
        (inputs, outputs), (i, o) = self.axes, pair
        first, second = bisect_left(inputs, i), bisect_left(outputs, o)
        if first == len(inputs) or second == len(outputs):
            return None
        rounded = inputs[first], outputs[second]
        return rounded if rounded in self else self._smallest_covering(*rounded)

    def below(self, pair: Pair) -> Pair | None:
        """Each axis rounded down to the next measured width; None if that pair was not measured."""
        (inputs, outputs), (i, o) = self.axes, pair
        first, second = bisect_right(inputs, i), bisect_right(outputs, o)
        if not first or not second:
            return None
        rounded = inputs[first - 1], outputs[second - 1]
        return rounded if rounded in self else None

    def nearest(self, pair: Pair, count: int) -> list[Pair]:
        """The measured pairs nearest to this one (the sum of both distances), nearest first."""
        i, o = pair
        found: list[tuple[int, Pair]] = []
        for near in sorted(self._inputs, key=lambda width: abs(width - i)):
            if len(found) == count and abs(near - i) > found[-1][0]:
                break  # every further row is farther away than all that were found
            found += [(abs(near - i) + abs(out - o), (near, out)) for out in self._outputs_near(near, o, count)]
            found = sorted(found)[:count]
        return [each for _, each in found]

    def to_bytes(self) -> bytes:
        """The pairs, eight bytes each; ``from_bytes`` gives them again."""
        return _little_endian(array("Q", self._codes)).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Widths:
        """The widths that ``to_bytes`` wrote."""
        widths, codes = cls(), array("Q")
        codes.frombytes(data)
        widths._codes = _little_endian(codes)
        widths._axes_of_codes()
        return widths

    def _smallest_covering(self, i: int, o: int) -> Pair | None:
        """The pair of at least these widths with the smallest product; of equal products, the one with the narrower input."""
        best: Pair | None = None
        for near in self._inputs[bisect_left(self._inputs, i) :]:
            if best is not None and near * o >= best[0] * best[1]:
                break  # wider inputs can't have a smaller product
            at = bisect_left(self._codes, encoded((near, o)))
            if at < len(self._codes) and self._codes[at] >> BITS == near:
                # best comes first: min keeps the first of equals, and inputs rise
                best = min(best or (LARGEST, LARGEST), (near, self._codes[at] & LARGEST), key=lambda pair: pair[0] * pair[1])
        return best

    def _outputs_near(self, i: int, o: int, count: int) -> Iterator[int]:
        """The outputs measured with this input, at most ``count`` to either side of ``o``."""
        at = bisect_left(self._codes, encoded((i, min(o, LARGEST))))
        return (code & LARGEST for code in self._codes[max(0, at - count) : at + count] if code >> BITS == i)


def encoded(pair: Pair) -> int:
    """The pair as one integer of ``2 * BITS`` bits that rises with the input, then with the output."""
    i, o = pair
    if not (1 <= i <= LARGEST and 1 <= o <= LARGEST):
        raise ValueError(f"widths are {i}->{o}; a cost table holds layers of 1 to {LARGEST} channels: leave this one out")
    return i << BITS | o


def decoded(code: int) -> Pair:
    """The pair that ``encoded`` made this integer of."""
    return code >> BITS, code & LARGEST


def _little_endian(codes: array[int]) -> array[int]:
    if sys.byteorder == "big":
        codes.byteswap()
    return codes
