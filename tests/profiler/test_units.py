import pytest
import torch
from torch import nn

from costs.families import Family, Network, default_widths
from costs.shapes import LayerShape
from costs.table import Setting
from growth.networks import build
from profiler.timing import Fed, Work
from profiler.units import Residual, example_inputs, unit_work

FAMILIES: list[Family] = ["mobilenet_v1", "mobilenet_v2", "plain"]


def module(work: Work) -> nn.Module:
    """What is called to do a unit's work."""
    assert isinstance(work, Fed)
    assert isinstance(work.function, nn.Module)
    return work.function


def leaves(module: nn.Module) -> list[str]:
    """The layers a module executes, with their settings."""
    return [repr(m) for m in module.modules() if not list(m.children())]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unit_is_what_the_network_executes_for_that_shape(family: Family) -> None:
    network = Network(family, default_widths(family, 0.1), 16, 3, 5)
    model = build(network)
    work = unit_work(network.wiring().shapes(), Setting())
    for unit in network.wiring().units:
        alone, inside = module(work[unit.shape]), model.get_submodule(unit.name)
        if unit.shape.op == "linear":
            assert leaves(alone) == [repr(nn.Flatten()), *leaves(inside)]
        else:
            assert leaves(alone) == leaves(inside)
        assert isinstance(alone, Residual) == unit.shape.residual
        assert not alone.training


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_unit_runs_and_gives_the_size_its_shape_says(family: Family, layout: str) -> None:
    shapes = set(Network(family, default_widths(family, 0.1), 16, 1, 5).wiring().shapes())
    work = unit_work(shapes, Setting(batch=3, layout=layout))
    assert work.keys() == shapes
    with torch.inference_mode():
        for shape, call in work.items():
            output = call()
            assert isinstance(output, torch.Tensor)
            assert output.shape == (3, shape.out_channels, *(shape.output_size if shape.op != "linear" else ()))
            assert output.isfinite().all()


def test_weights_and_activations_are_shared_between_units() -> None:
    shapes = [LayerShape("conv2d", width, width, 3, 1, 1, 8, 8, True, "relu") for width in (4, 8, 16)]
    work = unit_work(shapes, Setting())
    inputs = {call.inputs[0].data_ptr() for call in work.values() if isinstance(call, Fed)}
    weights = {module(call).get_parameter("conv.weight").data_ptr() for call in work.values()}
    assert len(inputs) == len(weights) == 1


def test_a_residual_unit_reads_two_activations() -> None:
    shape = LayerShape("conv2d", 12, 4, 1, 1, 1, 6, 6, True, "none", True)
    assert example_inputs(shape, 2) == ((2, 12, 6, 6), (2, 4, 6, 6))
    unit, x, skip = module(unit_work([shape], Setting())[shape]), torch.randn(2, 12, 6, 6), torch.randn(2, 4, 6, 6)
    assert isinstance(unit, Residual)
    torch.testing.assert_close(unit(x, skip), unit.unit(x) + skip)
