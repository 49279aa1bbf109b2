"""The contract of every cost model that counts: unit, kind, and additivity, on which selection relies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.families import Network, default_widths
from costs.model import Cost, CostModel, Macs, Parameters

MODELS: dict[str, CostModel] = {"macs": Macs(), "params": Parameters()}
SHAPES = Network("mobilenet_v2", default_widths("mobilenet_v2", 0.2), 32, 3, 10).wiring().shapes()


@pytest.mark.parametrize("name", MODELS)
def test_costs_carry_name_unit_and_kind(name: str) -> None:
    model = MODELS[name]
    assert model.name == name
    for cost in (model.layer(SHAPES[0]), model.network(SHAPES), model.network(())):
        assert cost == Cost(cost.value, model.unit, "exact")


@pytest.mark.parametrize("name", MODELS)
@given(chosen=st.lists(st.sampled_from(SHAPES), max_size=8))
def test_a_network_costs_the_sum_of_its_layers(name: str, chosen: list) -> None:
    model = MODELS[name]
    empty = model.network(()).value
    assert model.network(chosen).value == empty + sum(model.layer(shape).value for shape in chosen)


def test_units() -> None:
    assert Macs().layer(SHAPES[0]) == Cost(SHAPES[0].macs, "MACs", "exact")
    assert Parameters().layer(SHAPES[0]) == Cost(SHAPES[0].parameters, "parameters", "exact")
