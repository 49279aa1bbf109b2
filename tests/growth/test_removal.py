"""Removal undoes what surgery added, changes nothing where nothing is read, and keeps the rest, optimizer state included."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

from costs.families import Network, default_widths
from growth.groups import ChannelGraph, find_groups
from growth.networks import build
from growth.offspring import Offspring, theta
from growth.optimizer import carry
from growth.removal import Removal, absorbs, remove_channels
from growth.surgery import add_channels

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adam": lambda model: Adam(model.parameters(), lr=1e-3),
}


class Net(nn.Module):
    """A depthwise passenger, a residual sum, a concatenation, a scale, a flatten to 4 columns per channel, norms and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.expand, self.expand_norm = nn.Conv2d(4, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.depthwise, self.project = nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Conv2d(5, 4, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.side, self.mix = nn.Conv2d(4, 3, 1), nn.Conv2d(7, 4, 1)
        self.hidden, self.head = nn.Linear(4 * 4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.stem_norm(self.stem(x)))
        y = functional.silu(self.expand_norm(self.expand(x)))
        x = x + self.scale * self.project(functional.silu(self.depthwise(y)))
        x = self.mix(torch.cat([x, torch.tanh(self.side(x))], 1))
        x = torch.flatten(functional.adaptive_avg_pool2d(functional.silu(x), 2), 1)
        return self.head(torch.tanh(self.hidden(x)))


def own_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def family(name: str) -> nn.Module:
    return build(Network(name, default_widths(name, 0.1), 8, 2, 3), torch.Generator().manual_seed(0))  # type: ignore[arg-type]


NETS: dict[str, Callable[[], nn.Module]] = {
    "own": own_net, "plain": lambda: family("plain"), "mobilenet_v1": lambda: family("mobilenet_v1"),
    "mobilenet_v2": lambda: family("mobilenet_v2"),
}  # fmt: skip


def images(seed: int = 0, count: int = 6) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def settled(name: str) -> tuple[nn.Module, ChannelGraph]:
    """With norms away from 1 and 0."""
    model, generator = NETS[name](), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.5 * torch.rand(parameter.shape, generator=generator) - 0.2
        for _ in range(5):
            model.train()(images())
    return model.eval(), find_groups(model, images()[:1])


def output(model: nn.Module, train: bool = False) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).train(train)(images())


def strangers(model: nn.Module, graph: ChannelGraph, number: int, parents: list[int], generator: torch.Generator) -> Offspring:
    """New channels beside these parents, which stay as they are: rows and outgoing weights by chance."""
    group, rows = graph.groups[number], theta(model, graph.groups[number])[parents]
    moves = torch.stack([torch.zeros_like(rows), torch.randn(rows.shape, generator=generator)], 1)
    reads = []
    for place in group.consumers:
        weight = model.get_parameter(f"{place.name}.weight")
        reads.append(torch.randn(len(parents), 1, len(weight), place.columns, *weight.shape[2:], generator=generator))
    return Offspring(
        number, torch.tensor(parents, dtype=torch.int64), moves, torch.tensor([1.0, 0.0]).expand(len(parents), 2), tuple(reads)
    )


def appended(graph: ChannelGraph, offspring: list[Offspring]) -> list[Removal]:
    return [Removal(one.group, graph.groups[one.group].width + torch.arange(len(one.parents))) for one in offspring]


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(images(step)), torch.arange(6) % 3).backward()
        optimizer.step()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_removing_what_was_added_gives_the_old_model_back_bit_for_bit(data: st.DataObject) -> None:
    model, graph = settled(data.draw(st.sampled_from(sorted(NETS))))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    offspring = []
    for number in data.draw(st.lists(st.integers(0, len(graph.groups) - 1), min_size=1, unique=True)):
        parents = data.draw(st.lists(st.integers(0, graph.groups[number].width - 1), unique=True, max_size=3))
        offspring.append(strangers(model, graph, number, parents, generator))
    wider, _ = add_channels(model, graph, offspring)
    back, _ = remove_channels(wider, find_groups(wider, images()[:1]), appended(graph, offspring))
    assert same_state(back, model)
    assert torch.equal(output(back), output(model))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_channels_that_nothing_reads_leave_without_a_trace(name: str, train: bool) -> None:
    model, graph = settled(name)
    removals = [Removal(number, torch.tensor([group.width - 1, 0])) for number, group in enumerate(graph.groups) if group.width >= 4]
    assert removals
    with torch.no_grad():
        for removal in removals:
            for place in graph.groups[removal.group].consumers:
                model.get_parameter(f"{place.name}.weight")[:, place.entries(removal.channels).flatten()] = 0
    narrower, _ = remove_channels(model, graph, removals)
    assert (output(narrower, train) - output(model, train)).abs().max() < 1e-5
    gone = {removal.group for removal in removals}
    assert find_groups(narrower, images()[:1]).wiring.widths == tuple(
        width - 2 * (number in gone) for number, width in enumerate(graph.wiring.widths)
    )


@pytest.mark.parametrize("name", NETS)
def test_what_a_channel_leaves_is_added_to_its_consumers_outputs(name: str) -> None:
    model, graph = settled(name)
    for number, group in enumerate(graph.groups):
        if group.width < 3:
            continue
        outputs = [len(model.get_parameter(f"{place.name}.weight")) for place in group.consumers]
        able = [absorbs(model, graph, place.name) for place in group.consumers]
        left = tuple(can * torch.randn(1, n, generator=torch.Generator().manual_seed(n)) for n, can in zip(outputs, able, strict=True))
        nothing, _ = remove_channels(model, graph, [Removal(number, torch.tensor([0]))])
        expected = with_added(nothing, graph, number, left)
        folded, _ = remove_channels(model, graph, [Removal(number, torch.tensor([0]), left)])
        assert (output(folded) - expected).abs().max() < 1e-4 * max(1, float(expected.abs().max()))
        assert (output(folded) - output(nothing)).abs().max() > 1e-6


def with_added(model: nn.Module, graph: ChannelGraph, number: int, left: tuple[Tensor, ...]) -> Tensor:
    """The model's output when constants are added to its consumers' outputs; rows of the group that lost channel 0 have lost theirs."""

    def adding(constant: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
        return lambda _, inputs, written: written + constant[-written.shape[1] :].view(1, -1, *[1] * (written.dim() - 2))

    hooks = [
        model.get_submodule(place.name).register_forward_hook(adding(constant[0]))
        for place, constant in zip(graph.groups[number].consumers, left, strict=True)
    ]
    expected = output(model)
    [hook.remove() for hook in hooks]
    return expected


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", NETS)
def test_optimizer_state_stays_with_the_channels_that_stay(name: str, kind: str) -> None:
    model, graph = settled(name)
    optimizer = OPTIMIZERS[kind](model)
    trained(model, optimizer, 2)
    offspring = [strangers(model, graph, number, [1], torch.Generator()) for number in range(len(graph.groups))]
    wider, there = add_channels(model, graph, offspring)
    narrower, back = remove_channels(wider, find_groups(wider, images()[:1]), appended(graph, offspring))
    carried = carry(carry(optimizer, model, wider, there), wider, narrower, back)
    trained(model, optimizer, 2)
    trained(narrower, carried, 2)
    assert same_state(narrower, model)


@pytest.mark.parametrize("name", NETS)
def test_the_map_says_where_every_entry_came_from_and_the_old_model_stays(name: str) -> None:
    model, graph = settled(name)
    before = copy.deepcopy(model)
    removals = [Removal(number, torch.tensor([1])) for number, group in enumerate(graph.groups) if group.width > 2]
    narrower, channel_map = remove_channels(model, graph, removals)
    assert same_state(model, before)
    for path, tensor in narrower.state_dict().items():
        assert torch.equal(channel_map.take(path, model.state_dict()[path]), tensor)
    changed = {path for path, tensor in model.state_dict().items() if narrower.state_dict()[path].shape != tensor.shape}
    assert changed == set(channel_map.sources)
    trained(narrower, OPTIMIZERS["sgd"](narrower), 1)


def test_what_does_not_fit_is_refused_with_value_limit_and_remedy() -> None:
    model, graph = settled("own")
    good = Removal(0, torch.tensor([1]))
    bad = {
        "removal from channel group 0: channel 4 does not exist; the group has channels 0 to 3": [
            replace(good, channels=torch.tensor([4]))
        ],
        "channel 1 comes 2 times": [good, good],
        "channel group is 9; the graph has groups 0 to": [replace(good, group=9)],
        "3 of 4 channels would leave fewer than 2; remove fewer": [replace(good, channels=torch.tensor([0, 1, 2]))],
        r"has shapes \[\(1, 1\)\]; give \[\(1, 5\), \(1, 3\), \(1, 4\)\], one per consumer": [replace(good, left=(torch.zeros(1, 1),))],
    }
    for message, removals in bad.items():
        with pytest.raises(ValueError, match=message):
            remove_channels(model, graph, removals)
    unable = next(place.name for place in graph.groups[0].consumers if place.name == "expand")
    model.expand_norm = nn.BatchNorm2d(5, track_running_stats=False)
    assert not absorbs(model, graph, unable)
    left = tuple(torch.ones(1, len(model.get_parameter(f"{place.name}.weight"))) for place in graph.groups[0].consumers)
    with pytest.raises(ValueError, match="expand has neither a bias nor a batch norm behind it to take up a constant; leave nothing there"):
        remove_channels(model, graph, [replace(good, left=left)])
