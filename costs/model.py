"""A cost, and the models that give one: exact counts here, measured tables in ``costs.table``.

Every cost says its unit and its kind (how it was obtained), so that an estimate can never pass for a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from costs.shapes import LayerShape

CostName = Literal["latency_ms", "energy_mj", "macs", "params"]
EXACT: frozenset[CostName] = frozenset({"macs", "params"})  # counted, never measured
Kind = Literal["exact", "measured", "interpolated", "calibrated_sum", "estimated:power_x_time", "estimated:power_model"]


def estimated(kind: Kind) -> bool:
    """Whether numbers of this kind come from a model that was named, not from the thing itself."""
    return kind.startswith("estimated:")


@dataclass(frozen=True, slots=True)
class Cost:
    """A number with its unit and kind, the interval it lies in where one is known (95 %), and what it rests on where that was read:
    the meter, and the scope that the meter covers (process, gpu, package ...)."""

    value: float
    unit: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    meter: str | None = None
    scope: str | None = None


class CostModel(Protocol):
    """What a layer contributes to the cost of a whole network.

    ``network(shapes)`` is ``network(())`` plus the sum of ``layer(shape)``: selection relies on it.  Both raise
    ``costs.table.NoCost`` for a shape they can't answer for.  One named ``EXACT`` is linear in a layer's output channels.
    """

    @property
    def name(self) -> CostName: ...

    @property
    def unit(self) -> str: ...

    def layer(self, shape: LayerShape) -> Cost: ...

    def network(self, shapes: Sequence[LayerShape]) -> Cost: ...


@runtime_checkable
class Stepped(Protocol):
    """A cost model that says where its steps lie, so that selection need not ask about every width."""

    def edges(self, shape: LayerShape) -> tuple[Sequence[int], Sequence[int]]:
        """Input and output widths, rising: layers of the form of ``shape`` whose widths round up to the same ones cost the same."""
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``limit``, in the unit of the cost model."""

    cost_model: CostModel
    limit: float


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulates of one image (1 MAC = one multiply and one add; not FLOPs)."""

    name: CostName = "macs"
    unit: str = "MACs"

    def layer(self, shape: LayerShape) -> Cost:
        return Cost(shape.macs, self.unit, "exact")

    def network(self, shapes: Sequence[LayerShape]) -> Cost:
        return Cost(sum(shape.macs for shape in shapes), self.unit, "exact")


@dataclass(frozen=True, slots=True)
class Parameters:
    """Trainable parameters."""

    name: CostName = "params"
    unit: str = "parameters"

    def layer(self, shape: LayerShape) -> Cost:
        return Cost(shape.parameters, self.unit, "exact")

    def network(self, shapes: Sequence[LayerShape]) -> Cost:
        return Cost(sum(shape.parameters for shape in shapes), self.unit, "exact")
