"""Known counts of the published networks, and what holds for the wiring of every network."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.families import MAX_WIDTH, Family, Network, default_widths, largest_widths
from costs.model import Macs, Parameters
from costs.shapes import LayerShape

FAMILIES: tuple[Family, ...] = ("mobilenet_v1", "mobilenet_v2", "plain")
CIFAR_SEED = (8, 8, 8, 8, 16, 16, *[24] * 6, 32, 32)
AMC = (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)  # a published pruned MobileNetV1


def imagenet(family: Family, widths: tuple[int, ...]) -> tuple[LayerShape, ...]:
    return Network(family, widths, 224, 3, 1000).wiring().shapes()


def macs(shapes: tuple[LayerShape, ...]) -> int:
    return sum(shape.macs for shape in shapes)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    family = draw(st.sampled_from(FAMILIES))
    count = draw(st.integers(1, 16)) if family == "plain" else len(default_widths(family))
    widths = draw(st.lists(st.integers(2, 4096), min_size=count, max_size=count))
    return Network(family, tuple(widths), draw(st.integers(8, 224)), draw(st.integers(1, 3)), draw(st.integers(2, 1000)))


# T10: published counts


@pytest.mark.parametrize(("multiplier", "count"), [(1, 568_740_352), (0.75, 325_400_448), (0.5, 149_497_088), (0.25, 41_030_272)])
def test_mobilenet_v1_macs(multiplier: float, count: int) -> None:
    assert macs(imagenet("mobilenet_v1", default_widths("mobilenet_v1", multiplier))) == count


def test_mobilenet_v2_macs_and_parameters() -> None:
    shapes = imagenet("mobilenet_v2", default_widths("mobilenet_v2"))
    assert macs(shapes) == 300_774_272
    assert sum(shape.parameters for shape in shapes) == 3_504_872  # as torchvision counts its mobilenet_v2


def test_pruned_mobilenet_v1_macs() -> None:
    assert macs(imagenet("mobilenet_v1", AMC)) == 293_870_000


@pytest.mark.parametrize(
    ("widths", "count", "parameters"),
    [(CIFAR_SEED, 552_672, 12_332), ((32,) * 14, 3_207_552, 22_948)],
)
def test_cifar_seeds_of_the_splitting_papers(widths: tuple[int, ...], count: int, parameters: int) -> None:
    shapes = Network("mobilenet_v1", widths, 32, 3, 100).wiring().shapes()
    assert macs(shapes) == count
    assert sum(shape.parameters for shape in shapes) == parameters


# Any network


@given(networks(), st.data())
def test_shapes_at_other_widths_are_those_of_the_network_with_those_widths(network: Network, data: st.DataObject) -> None:
    count = len(network.widths)
    other = tuple(data.draw(st.lists(st.integers(2, 4096), min_size=count, max_size=count)))
    assert network.wiring().shapes(other) == replace(network, widths=other).wiring().shapes()


@given(networks())
def test_units_fit_together(network: Network) -> None:
    """Each unit reads what the one before it wrote; names are paths of distinct modules; groups are numbered as they are first written."""
    wiring = network.wiring()
    size, group, width = (network.image_size, network.image_size), None, network.in_channels
    written: list[int] = []
    for unit in wiring.units:
        if unit.shape.op != "linear":
            assert (unit.shape.height, unit.shape.width) == size
        assert unit.input == group
        assert unit.shape.in_channels == width
        size, group, width = unit.shape.output_size, unit.output, unit.shape.out_channels
        if group is not None and group not in written:
            written.append(group)
            assert not unit.shape.residual
    assert (width, group) == (network.classes, None)
    assert written == list(range(len(network.widths)))
    assert len({unit.name for unit in wiring.units}) == len(wiring.units)
    pool = wiring.units[-2].shape
    assert pool.op == "global_pool"
    assert pool.height >= 2


@given(networks(), st.data())
def test_one_more_channel_costs_its_layer_its_passengers_and_its_consumers(network: Network, data: st.DataObject) -> None:
    """count(width + 1) - count(width), written out: every unit that reads or writes the group, and no other."""
    wiring = network.wiring()
    group = data.draw(st.integers(0, len(network.widths) - 1))
    wider = [width + (g == group) for g, width in enumerate(network.widths)]
    marginal_macs = marginal_parameters = 0
    for unit in wiring.units:
        shape, reads, writes = unit.shape, unit.input == group, unit.output == group
        if shape.op not in ("conv2d", "linear") or not (reads or writes):
            continue
        area = shape.output_size[0] * shape.output_size[1] * shape.kernel**2
        if shape.depthwise:
            marginal_macs += area
            marginal_parameters += shape.kernel**2 + 2
            continue
        weights = shape.out_channels * reads + shape.in_channels * writes + (reads and writes)
        marginal_macs += weights * area
        marginal_parameters += weights * shape.kernel**2 + 2 * writes
    for model, marginal in ((Macs(), marginal_macs), (Parameters(), marginal_parameters)):
        assert model.network(wiring.shapes(wider)).value - model.network(wiring.shapes()).value == marginal


@pytest.mark.parametrize("layer", range(14))
def test_marginal_macs_of_mobilenet_v1(layer: int) -> None:
    """k^2 c_{l-1} r_l^2 for its own row, 9 r_{l+1}^2 for the next depthwise filter, c_{l+1} r_{l+1}^2 for the next layer's column."""
    widths = default_widths("mobilenet_v1", 0.25)
    sizes = [112, 112, 56, 56, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7]
    wider = tuple(width + (g == layer) for g, width in enumerate(widths))
    own = sizes[layer] ** 2 * (9 * 3 if layer == 0 else widths[layer - 1])
    after = 1000 if layer == 13 else sizes[layer + 1] ** 2 * (9 + widths[layer + 1])
    assert macs(imagenet("mobilenet_v1", wider)) - macs(imagenet("mobilenet_v1", widths)) == own + after


def test_small_images_lose_the_first_halvings() -> None:
    def halvings(size: int) -> list[str]:
        units = Network("mobilenet_v1", CIFAR_SEED, size, 3, 10).wiring().units
        return [unit.name for unit in units if unit.shape.stride == 2]

    blocks = [f"blocks.{index}.depthwise" for index in (1, 3, 5, 11)]
    assert halvings(224) == halvings(64) == ["stem", *blocks]
    assert halvings(32) == blocks
    assert halvings(28) == blocks[1:]
    assert halvings(8) == blocks[2:]


def test_default_widths() -> None:
    assert default_widths("mobilenet_v1")[:3] == (32, 64, 128)
    assert default_widths("mobilenet_v2", 0.5)[:5] == (16, 8, 48, 12, 72)
    assert default_widths("plain", 0.001) == (2,) * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 7}, "image_size is 7; it must lie between 8 and 224"),
        ({"image_size": 225}, "image_size is 225"),
        ({"in_channels": 4}, "in_channels is 4; it must lie between 1 and 3"),
        ({"classes": 1}, "classes is 1; it must lie between 2 and 100000"),
        ({"widths": (8,) * 13}, "mobilenet_v1 has 13 widths; give 14, one per channel group"),
        ({"widths": (8,) * 13 + (1,)}, "width is 1; it must lie between 2 and 4096"),
        ({"widths": (8,) * 13 + (4097,)}, "width is 4097"),
        ({"family": "plain", "widths": ()}, "plain has 0 widths; give 1 to 16"),
        ({"family": "resnet"}, "family is 'resnet'; it must be one of mobilenet_v1, mobilenet_v2, plain"),
        ({"activation": "other"}, "activation is 'other'; it must be one of silu, relu"),
    ],
)
def test_bad_networks_are_refused_with_value_and_limit(change: dict[str, object], message: str) -> None:
    good = Network("mobilenet_v1", CIFAR_SEED, 32, 3, 10)
    with pytest.raises(ValueError, match=message):
        replace(good, **change).wiring()


def test_widths_of_an_unknown_family_are_refused() -> None:
    with pytest.raises(ValueError, match="family is 'resnet'"):
        default_widths("resnet")


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf")])
def test_a_multiplier_out_of_range_is_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match="width multiplier is"):
        default_widths("plain", multiplier)


def test_no_group_grows_beyond_the_widest_a_network_may_be() -> None:
    assert largest_widths((10, 3000), 2.5) == (25, MAX_WIDTH)


@pytest.mark.parametrize("max_growth", [0.5, -1.0, float("nan"), float("inf")])
def test_a_growth_that_shrinks_or_has_no_end_is_refused(max_growth: float) -> None:
    with pytest.raises(ValueError, match="max_growth is"):
        largest_widths((10,), max_growth)
