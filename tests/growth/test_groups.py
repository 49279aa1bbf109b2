"""Groups and wiring from a trace: equal to the families' own, right for users' own models, and an error with a name for the rest."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from costs.families import Family, Network, default_widths
from costs.shapes import Counted
from costs.table import Calibration, CostTable, NoCost, Setting, TableCost
from growth.groups import ChannelGraph, ChannelGroup, Place, TraceError, find_groups
from growth.networks import build, unit_module
from growth.reference import reference_product
from growth.splitting import SplittingProduct
from growth.surgery import Split, widen

torch.set_num_threads(1)


@pytest.mark.parametrize("image_size", [8, 28, 33])
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("family", ["mobilenet_v1", "mobilenet_v2", "plain"])
def test_wiring_of_a_family_is_its_own(family: Family, activation: str, image_size: int) -> None:
    network = Network(family, default_widths(family, 0.1), image_size, 1, 7, activation)  # type: ignore[arg-type]
    graph = find_groups(build(network), torch.zeros(2, 1, image_size, image_size))
    assert graph.wiring == network.wiring()
    assert tuple(group.width for group in graph.groups) == network.widths


def test_groups_of_mobilenet_v2_tie_residual_blocks() -> None:
    network = Network("mobilenet_v2", default_widths("mobilenet_v2", 0.1), 32, 3, 10)
    groups = find_groups(build(network), torch.zeros(1, 3, 32, 32)).groups
    assert groups[3] == ChannelGroup(
        network.widths[3],
        ("blocks.1.project.conv", "blocks.2.project.conv"),
        (Place("blocks.1.project.norm"), Place("blocks.2.project.norm")),
        (Place("blocks.2.expand.conv", 1), Place("blocks.3.expand.conv", 1)),
    )


class Own(nn.Module):
    """A user's model: siblings, functions, methods, a residual sum followed by an activation, flatten, log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.third = nn.Conv2d(4, 3, 2, stride=2)
        self.dropout = nn.Dropout()
        self.hidden = nn.Linear(3 * 4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.first(x))
        x = torch.relu(x + self.norm(self.second(x)))
        x = functional.max_pool2d(self.depthwise(x).tanh(), 2)
        x = self.third(x).view(x.size(0), -1)
        return functional.log_softmax(self.head(self.dropout(torch.sigmoid(self.hidden(x)))), dim=1)


def test_own_model() -> None:
    model = Own()
    graph = find_groups(model, torch.zeros(2, 1, 8, 8))
    assert graph.groups == (
        ChannelGroup(4, ("first", "second"), (Place("norm"), Place("depthwise")), (Place("second", 1), Place("third", 1))),
        ChannelGroup(3, ("third",), (), (Place("hidden", 4),)),
        ChannelGroup(5, ("hidden",), (), (Place("head", 1),)),
    )
    assert [(unit.name, unit.input, unit.output, unit.in_multiple) for unit in graph.wiring.units] == [
        ("first", None, 0, 1), ("second", 0, 0, 1), ("depthwise", 0, 0, 1), ("max_pool2d", 0, 0, 1), ("third", 0, 1, 1),
        ("hidden", 1, 2, 4), ("head", 2, None, 1),
    ]  # fmt: skip
    second, depthwise = graph.wiring.units[1].shape, graph.wiring.units[2].shape
    assert (second.norm, second.residual, second.activation) == (True, True, "relu")
    assert (depthwise.depthwise, depthwise.activation) == (True, "other")
    assert sum(unit.shape.parameters for unit in graph.wiring.units) == sum(p.numel() for p in model.parameters())


def test_model_is_left_as_found() -> None:
    model = build(Network("plain", (2, 3), 8, 1, 4))
    model.train()
    model[0][0].conv[1].eval()  # type: ignore[index, union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags, attributes = [m.training for m in model.modules()], [set(vars(m)) for m in model.modules()]
    find_groups(model, torch.randn(4, 1, 8, 8))
    assert [m.training for m in model.modules()] == flags
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Looks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x))


class Concatenates(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


class Shifts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 - (x / 2 + 1) ** 2


class Gates(nn.Module):
    """Squeeze and excitation: the second layer of the gate has the channels of what it gates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.second(torch.relu(self.first(x.mean((2, 3), keepdim=True))))) * x


class Chooses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, x.mean((0, 2, 3)).argsort()]


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)[0]


class OneGate(nn.Module):
    """A map of one channel over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


class AddsParameter(nn.Module):
    """Through another layout: the parameter's channels come last, where surgery can't reach them, or first."""

    def __init__(self, *before: int) -> None:
        super().__init__()
        self.shift, self.order = nn.Parameter(torch.randn(*before, 4)), (0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) + self.shift).permute(0, 3, 1, 2)


class Scales(nn.Module):
    """Parameters over one group and over two; one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift, self.both = (
            nn.Parameter(torch.randn(4, 1, 1)),
            nn.Parameter(torch.randn(1, 4, 8, 8)),
            nn.Parameter(torch.randn(8, 1, 1)),
        )
        self.conv, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x * self.scale + self.shift)
        return x + self.last(torch.sigmoid(torch.cat([y, self.conv(y)], 1) * self.both))


class ScalesBySize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.shape[1]


class ThereAndBack(nn.Module):
    """Channels last and back, through views whose sizes follow from the input's."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.permute(0, 2, 3, 1)[:, 1:].reshape(b, -1, c)
        return y.transpose(1, 2).view(b, c, h - 1, w)


class Turns(nn.Module):
    """Height and width change places, which leaves the shape of a square map as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3) + 2 * x


class Corner(nn.Module):
    """One pixel, by a slice that looks like a flatten."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 1].unsqueeze(2).unsqueeze(3)


class InPlace(nn.Module):
    """The skip reads what an activation in place, here of two kinds, has left."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(x, inplace=True) * 2
        y += x
        return y + functional.celu(x, inplace=True) * x


class Written(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), 4, -1, 8)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return one * other


def between(layer: nn.Module) -> nn.Module:
    """``layer`` behind a convolution of 4 channels; "1" is its path.  Behind it come 5 channels that can grow."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), layer, nn.LazyConv2d(5, 1), nn.LazyConv2d(2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def settled(model: nn.Module) -> tuple[nn.Module, Tensor]:
    example = torch.zeros(2, 3, 8, 8)
    with contextlib.suppress(RuntimeError):  # lazy layers take their shape from what arrives
        model(example)
    return model, example


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: between(Looks()), r"module '1' \(Looks\) can't be traced"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), "no channels to split.*'1': its channels are the model's output"),
        (lambda: between(nn.Linear(99, 5)), "'1' fails on the example batch"),
    ],
)
def test_models_that_cannot_be_traced_are_refused(make: Callable[[], nn.Module], says: str) -> None:
    model, example = settled(make())
    with pytest.raises(TraceError, match=says):
        find_groups(model, example)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (Twice, r"^its channels reach module '1.conv' \(Conv2d\), which has weights that are used twice"),
        (Tied, "module '1.one'.*used twice"),
        (lambda: nn.GroupNorm(2, 4), r"module '1' \(GroupNorm\), which takes its statistics over several channels"),
        (lambda: nn.LayerNorm((4, 8, 8)), r"module '1' \(LayerNorm\)"),
        (nn.PReLU, r"module '1' \(PReLU\), which does something unknown.*register"),
        (ScalesBySize, "inside module '1', which computes with a size"),
        (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2), "convolution '1' splits its 4 channels into 2 groups"),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "'1'.*padding mode reflect"),
        (lambda: nn.BatchNorm2d(4, track_running_stats=False), "'1'.*keeps no running statistics"),
        (nn.Softmax2d, r"module '1' \(Softmax2d\)"),
        (lambda: nn.Linear(8, 5), r"module '1' \(Linear\), which works along another axis"),
        (Written, "inside module '1', which has the size of their axis written as 4"),
        (Halves, "inside module '1'"),
        (lambda: AddsParameter(8, 8), "inside module '1' ties it to a tensor whose channels are fixed"),
        (OneGate, "broadcasts it over other channels"),
        (Chooses, "inside module '1'"),
        (Pooled, "'1.pool' .*gives several tensors"),
        (lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)), "weight that is computed from others"),
    ],
)
def test_channels_that_cannot_be_followed_are_fixed_with_the_reason_and_the_rest_grows(layer: Callable[[], nn.Module], says: str) -> None:
    model, example = settled(between(layer()))
    graph = find_groups(model, example)
    reasons = {fixed.path: fixed.reason for fixed in graph.fixed}
    assert re.search(says, " | ".join(reasons.values())), reasons
    assert reasons["3"] == "its channels are the model's output"
    grown = {name: number for number, group in enumerate(graph.groups) for name in group.producers}
    assert not grown.keys() & reasons.keys()
    assert "2" in grown


def assert_grows(model: nn.Module, graph: ChannelGraph) -> None:
    """Its steps compute what the model does, so does the wider model, and scores and counts are right."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 0]))
    product = SplittingProduct(model, graph, [batch], functional.cross_entropy, curvature=torch.zeros_like)  # as autograd has it
    expected = model(batch[0]).detach()
    values, _ = product._forward(batch[0])
    torch.testing.assert_close(values[graph.output].detach(), expected, rtol=0, atol=1e-12)
    v = [torch.randn(zero.shape, dtype=torch.float64, generator=generator) for zero in product.zeros()]
    for ours, theirs in zip(product(v), reference_product(model, graph, batch, functional.cross_entropy, v), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    splits = [Split(number, torch.tensor([1, 0])[: len(part)], nn.functional.normalize(part[:2])) for number, part in enumerate(v)]
    wider, _ = widen(model, graph, splits, 0.0)
    torch.testing.assert_close(wider(batch[0]).detach(), expected, rtol=0, atol=1e-12)
    shapes = graph.wiring.shapes([group.width + len(split.channels) for group, split in zip(graph.groups, splits, strict=True)])
    assert sum(shape.parameters for shape in shapes) == sum(parameter.numel() for parameter in wider.parameters())


@pytest.mark.parametrize(
    ("layer", "columns"),
    [
        (Concatenates, (1, 1)),
        (Shifts, (1,)),
        (Gates, (1,)),
        (AddsParameter, (1,)),
        (Scales, (1,)),
        (lambda: nn.AvgPool2d(2), (1,)),
        (lambda: nn.AdaptiveAvgPool2d(2), (1,)),
        (lambda: nn.MaxPool2d(2, ceil_mode=True), (1,)),
        (lambda: nn.Upsample(scale_factor=2), (1,)),
        (lambda: nn.Conv2d(4, 4, (3, 1), (1, 2), groups=4), (1,)),
        (lambda: nn.Sequential(nn.SiLU(), nn.BatchNorm2d(4), nn.Hardswish()), (1,)),
        (ThereAndBack, (1,)),
        (lambda: nn.Sequential(nn.GELU("tanh"), nn.LeakyReLU(0.1), nn.Mish()), (1,)),
        (lambda: nn.Dropout2d(), (1,)),
        (lambda: nn.AlphaDropout(), (1,)),
        (lambda: nn.Sequential(nn.Dropout(), nn.Identity()), (1,)),
        (Turns, (1,)),
        (InPlace, (1,)),
        (Corner, (1,)),
    ],
)
def test_channels_are_followed_through(layer: Callable[[], nn.Module], columns: tuple[int, ...]) -> None:
    model, example = settled(between(layer()))
    graph = find_groups(model, example)
    assert [fixed.path for fixed in graph.fixed] == ["3"]
    assert_grows(model.double(), graph)
    group = next(group for group in graph.groups if "0" in group.producers)
    places = [place for place in group.consumers if place.name == "2"]
    assert tuple(place.columns for place in places) == columns
    assert [place.offset for place in places] == [4 * number for number in range(len(places))]


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (lambda: nn.Conv2d(4, 8, 3), r"'1' maps \(8, 8\) to \(6, 6\) pixels.*kernel // 2"),
        (lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2), "'1' is dilated"),
        (lambda: nn.Sequential(nn.SiLU(), nn.SiLU()), "pointwise '1.1' does not directly follow"),
        (lambda: nn.AvgPool2d(2), r"'1' \(channelwise\)"),
    ],
)
def test_what_is_in_no_unit_still_grows_by_exact_counts(layer: Callable[[], nn.Module], says: str) -> None:
    graph = find_groups(*settled(between(layer())))
    assert len(graph.groups) >= 2
    assert all(isinstance(shape, Counted) for shape in graph.wiring.shapes())
    with pytest.raises(TypeError, match="no unit that can be built"):
        unit_module(graph.wiring.units[0].shape)
    with pytest.raises(NoCost, match=says):
        TableCost(CostTable("here", (), [Calibration("latency_ms", Setting(), 1, 0, ())]), "latency_ms", Setting()).network(
            graph.wiring.shapes()
        )


class TwoHeads(nn.Module):
    def __init__(self, training_only: bool) -> None:
        super().__init__()
        self.conv, self.head, self.auxiliary = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        self.training_only = training_only

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x) + self.auxiliary(x) if self.training and self.training_only else self.head(x)


def test_heads_of_training_are_refused_but_modules_without_use_are_not() -> None:
    with pytest.raises(TraceError, match="module 'auxiliary' is used in training only"):
        find_groups(TwoHeads(True), torch.zeros(1, 3, 8, 8))
    model = TwoHeads(False)
    assert len(find_groups(model, torch.zeros(1, 3, 8, 8)).groups) == 1
    assert model.training


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(TraceError, match="second input 'y'"):
        find_groups(Two(), torch.zeros(1, 3))


def test_norms_and_linear_layers_behind_a_flatten_keep_several_entries_per_channel() -> None:
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(4), nn.Flatten(), nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, 5))
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(5, 2))
    graph = find_groups(model, torch.zeros(2, 3, 8, 8))
    assert graph.groups[0] == ChannelGroup(4, ("0",), (Place("3", 4),), (Place("5", 4),))
    assert_grows(model.double(), graph)


def test_convolutions_of_one_dimension() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = (
                nn.Conv1d(24, 4, 5, stride=2),
                nn.BatchNorm1d(4),
                nn.Conv1d(4, 3, 3, dilation=2, padding="same"),
            )
            self.depthwise, self.depthwise_norm = nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.BatchNorm1d(4)
            self.pool, self.head = nn.AvgPool1d(2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.depthwise_norm(self.depthwise(torch.relu(self.norm(self.first(x.flatten(1, 2)))))))
            return self.head(self.pool(functional.silu(self.second(x))).mean(-1))

    model = Sequence()
    graph = find_groups(model, torch.zeros(2, 3, 8, 8))
    assert [group.width for group in graph.groups] == [4, 3]
    assert_grows(model.double(), graph)
