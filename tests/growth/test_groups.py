"""Groups and wiring from a trace: equal to the families' own, right for users' own models, and an error with a name for the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from costs.families import Family, Network, default_widths
from growth.groups import ChannelGroup, Consumer, TraceError, find_groups
from growth.networks import build

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
        ("blocks.1.project.norm", "blocks.2.project.norm"),
        (Consumer("blocks.2.expand.conv", 1), Consumer("blocks.3.expand.conv", 1)),
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
        ChannelGroup(4, ("first", "second"), ("norm", "depthwise"), (Consumer("second", 1), Consumer("third", 1))),
        ChannelGroup(3, ("third",), (), (Consumer("hidden", 4),)),
        ChannelGroup(5, ("hidden",), (), (Consumer("head", 1),)),
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
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x))


class Concatenates(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


class Shifts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def between(layer: nn.Module) -> nn.Module:
    """``layer`` between a convolution of 4 channels and a head; "1" is its path."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.LazyConv2d(2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: between(Looks()), r"module '1' \(Looks\) can't be traced"),
        (lambda: nn.Sequential(Twice(), nn.Conv2d(3, 2, 1)), "'0.conv' are used twice"),
        (lambda: nn.Sequential(Tied(), nn.Conv2d(3, 2, 1)), "'0.other' are used twice"),
        (lambda: between(Concatenates()), r"\(cat\) inside module '1' can't be followed"),
        (lambda: between(Shifts()), "inside module '1' adds something other than two tensors"),
        (lambda: between(nn.GroupNorm(2, 4)), r"module '1' \(GroupNorm\) can't be followed.*register"),
        (lambda: between(nn.LeakyReLU()), r"module '1' \(LeakyReLU\)"),
        (lambda: between(nn.GELU("tanh")), "'1' is called in a variant"),
        (lambda: between(nn.Conv2d(4, 8, 3, padding=1, groups=2)), "'1' maps 4 to 8 channels in 2 groups"),
        (lambda: between(nn.Conv2d(4, 8, 3)), r"'1' maps \(8, 8\) to \(6, 6\) pixels.*kernel // 2"),
        (lambda: between(nn.Conv2d(4, 8, 3, padding=2, dilation=2)), "convolution '1'.*dilation"),
        (lambda: between(nn.AvgPool2d(2)), r"module '1' \(AvgPool2d\)"),
        (lambda: between(nn.AdaptiveAvgPool2d(2)), "'1' has output size 2"),
        (lambda: between(nn.MaxPool2d(2, ceil_mode=True)), "max pooling '1'"),
        (lambda: between(nn.BatchNorm2d(4, track_running_stats=False)), "'1' keeps no running statistics"),
        (lambda: between(nn.Sequential(nn.SiLU(), nn.SiLU())), "pointwise '1.1' does not directly follow"),
        (lambda: between(nn.Linear(8, 5)), "linear '1' reads shape"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), "no channels to split"),
        (lambda: between(nn.Linear(99, 5)), "'1' fails on the example batch"),
    ],
)
def test_what_cannot_be_followed_is_named(make: Callable[[], nn.Module], says: str) -> None:
    model, example = make(), torch.zeros(2, 3, 8, 8)
    with contextlib.suppress(RuntimeError):  # lazy layers take their shape from what arrives
        model(example)
    with pytest.raises(TraceError, match=says):
        find_groups(model, example)


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(TraceError, match="second input 'y'"):
        find_groups(Two(), torch.zeros(1, 3))
