"""The values seen last, of a number that never grows too large."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory(Generic[K, V]):
    """At most ``size`` values by key, safe between threads; the one kept first goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()  # whose first key is found at once
        self._lock = Lock()

    def those_of(self, keys: Iterable[K]) -> dict[K, V]:
        """The values of the keys that are known."""
        with self._lock:
            values = self._values
            return {key: values[key] for key in keys if key in values}

    def kept(self, new: dict[K, V]) -> dict[K, V]:
        """The same values, which are known from now on."""
        with self._lock:
            self._values.update(new)
            for _ in range(len(self._values) - self._size):
                self._values.popitem(last=False)
        return new
