"""The built network is the declared one: same paths, shapes, counts; same seed, same weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from costs.families import Family, Network, default_widths
from growth.networks import Block, build

torch.set_num_threads(1)
FAMILIES: tuple[Family, ...] = ("mobilenet_v1", "mobilenet_v2", "plain")
GROUPS = {family: len(default_widths(family)) for family in FAMILIES}


@st.composite
def networks(draw: st.DrawFn, sizes: st.SearchStrategy[int] | None = None) -> Network:
    """Any small network: widths 2 to 6, any image size, 1 to 3 image channels."""
    family = draw(st.sampled_from(FAMILIES))
    groups = draw(st.integers(1, 8)) if family == "plain" else GROUPS[family]
    return Network(
        family=family,
        widths=tuple(draw(st.lists(st.integers(2, 6), min_size=groups, max_size=groups))),
        image_size=draw(sizes or st.integers(8, 224)),
        in_channels=draw(st.integers(1, 3)),
        classes=draw(st.integers(2, 12)),
        activation=draw(st.sampled_from(["silu", "relu"])),
    )


def small(family: Family, size: int = 16) -> Network:
    return Network(family, default_widths(family, 0.05), size, 3, 5)


def run_with_hooks(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, tuple[torch.Size, torch.Size]]]:
    """The class scores, and the input and output shape of every module by its path."""
    seen: dict[str, tuple[torch.Size, torch.Size]] = {}

    def note(name: str):
        return lambda _module, inputs, output: seen.__setitem__(name, (inputs[0].shape, output.shape))

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    return model(images), seen


def macs_of(module: nn.Module, output: torch.Size) -> int:
    """Every weight of a convolution meets every output pixel once; every weight of a linear layer, one input."""
    if isinstance(module, nn.Conv2d):
        return module.weight.numel() * output[2] * output[3]
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


@settings(max_examples=30, deadline=None)
@given(networks())
def test_built_modules_are_the_declared_units(network: Network) -> None:
    model = build(network, torch.Generator().manual_seed(0)).eval()
    images = torch.zeros(1, network.in_channels, network.image_size, network.image_size)
    with torch.no_grad():
        scores, seen = run_with_hooks(model, images)
    assert scores.shape == (1, network.classes)
    assert scores.isfinite().all()
    for unit in network.wiring().units:
        inputs, outputs = seen[unit.name]
        assert inputs[1] == unit.shape.in_channels
        assert outputs[1] == unit.shape.out_channels
        module = model.get_submodule(unit.name)
        assert unit.shape.parameters == sum(p.numel() for p in module.parameters())
        names = [(name, part) for name, part in model.named_modules() if name == unit.name or name.startswith(f"{unit.name}.")]
        assert unit.shape.macs == sum(macs_of(part, seen[name][1]) for name, part in names)
        if unit.shape.op != "linear":
            assert tuple(inputs[2:]) == (unit.shape.height, unit.shape.width)
            assert tuple(outputs[2:]) == unit.shape.output_size
    declared = network.wiring().shapes()
    assert sum(p.numel() for p in model.parameters()) == sum(shape.parameters for shape in declared)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [8, 9, 15, 28, 32, 33, 64, 224])
def test_final_map_is_at_least_two_pixels_wide(family: Family, size: int) -> None:
    network = small(family, size)
    pool = next(unit for unit in network.wiring().units if unit.name == "pool")
    assert pool.shape.height >= 2
    with torch.no_grad():
        assert build(network).eval()(torch.zeros(1, 3, size, size)).shape == (1, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_generator_state_same_weights_and_the_global_generator_is_untouched(family: Family) -> None:
    before = torch.get_rng_state()
    first, second, other = (build(small(family), torch.Generator().manual_seed(seed)).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_without_a_generator_the_global_one_draws() -> None:
    torch.manual_seed(5)
    first = build(small("plain")).state_dict()
    torch.manual_seed(5)
    second = build(small("plain")).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_initialisation_follows_fan_out() -> None:
    model = build(Network("mobilenet_v1", default_widths("mobilenet_v1"), 32, 3, 10), torch.Generator().manual_seed(0))
    parameters = dict(model.named_parameters())
    assert parameters["blocks.12.pointwise.conv.weight"].std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.01)
    assert parameters["blocks.12.depthwise.conv.weight"].std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert parameters["classifier.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert parameters["classifier.bias"].abs().max() == 0
    for name, buffer in (*model.named_buffers(), *((n, p) for n, p in parameters.items() if ".norm." in n)):
        expected = 1 if name.endswith(("running_var", "norm.weight")) else 0
        assert (buffer == expected).all(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_traces_with_torch_fx_and_computes_the_same(family: Family) -> None:
    model = build(small(family), torch.Generator().manual_seed(0)).eval()
    traced = torch.fx.symbolic_trace(model)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(traced(images), model(images))
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)} <= called


def test_residual_block_adds_its_input() -> None:
    network = small("mobilenet_v2")
    model = build(network, torch.Generator().manual_seed(0)).eval()
    residual = {name for name, module in model.named_modules() if isinstance(module, Block) and module.residual}
    assert residual == {unit.name.rpartition(".")[0] for unit in network.wiring().units if unit.shape.residual}
    block = model.get_submodule("blocks.2")
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    inner = block.project(block.depthwise(block.expand(x)))
    assert torch.equal(block(x), x + inner)


def test_reads_as_ordinary_modules() -> None:
    model = build(Network("mobilenet_v1", default_widths("mobilenet_v1", 0.25), 28, 1, 10, "relu"))
    unit = model.get_submodule("blocks.3.pointwise")
    assert [type(part) for part in unit] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [name for name, _ in model.get_submodule("blocks.3").named_children()] == ["depthwise", "pointwise"]
    assert unit.conv.bias is None


def test_bad_network_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 7; it must lie between 8 and 224"):
        build(Network("plain", (8, 8), 7, 3, 10))
