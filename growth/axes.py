"""Which channel axes are one (union-find), and which can't grow, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from growth.steps import Segment


@dataclass(slots=True)
class Axes:
    """Channel axes by number.  Tied axes are one: a channel of one is the same channel of the other."""

    _parents: list[int] = field(default_factory=list)
    _reasons: dict[int, str] = field(default_factory=dict)

    def new(self) -> int:
        self._parents.append(len(self._parents))
        return self._parents[-1]

    def root(self, axis: int) -> int:
        while self._parents[axis] != axis:
            axis = self._parents[axis]
        return axis

    def reason(self, axis: int) -> str | None:
        """Why the axis can't grow."""
        return self._reasons.get(self.root(axis))

    def pin(self, segments: Sequence[Segment], reason: str) -> None:
        """No segment of these can grow any more.  The first reason is kept."""
        for segment in segments:
            if segment.group is not None:
                self._reasons.setdefault(self.root(segment.group), reason)

    def tie(self, one: Sequence[Segment], other: Sequence[Segment], by: str) -> None:
        """Tie two axes entry by entry; ``by`` is what does it."""
        if [(a.width, a.columns) for a in one] != [(b.width, b.columns) for b in other]:
            self.pin([*one, *other], f"{by} ties it to channels that are grouped in another way")
            return
        for a, b in zip(one, other, strict=True):
            if a.group is None or b.group is None:
                self.pin([a, b], f"{by} ties it to channels that are fixed")
            else:
                self._unite(self.root(a.group), self.root(b.group))

    def _unite(self, one: int, other: int) -> None:
        first, second = sorted((one, other))
        if first != second:
            self._parents[second] = first
            if second in self._reasons:
                self._reasons.setdefault(first, self._reasons.pop(second))
