"""Widening keeps the function at step 0, the old model as it was, and the second order of the papers at other steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import mse_loss, silu

from costs.families import Family, Network, default_widths
from growth.groups import ChannelGraph, ChannelGroup, Place, find_groups
from growth.networks import build
from growth.splitting import SplittingProduct
from growth.surgery import Split, widen

torch.set_num_threads(1)
FAMILIES: tuple[Family, ...] = ("mobilenet_v1", "mobilenet_v2", "plain")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class DepthwiseNet(nn.Module):
    """Biases everywhere, a depthwise passenger, and a linear layer that reads a flattened map: 9 columns per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.depthwise, self.depthwise_norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        self.pointwise, self.pointwise_norm = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5, affine=False)
        self.linear = nn.Linear(5 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = silu(self.depthwise_norm(self.depthwise(silu(self.norm(self.conv(x))))))
        return self.linear(torch.flatten(silu(self.pointwise_norm(self.pointwise(x))), 1))


class ResidualNet(nn.Module):
    """A sum ties three producers into group 0; ``loop`` both reads and writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.expand, self.project = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.loop = nn.Conv2d(4, 4, 1)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = silu(self.norm(self.stem(x)))
        x = x + self.project(silu(self.expand(x)))
        x = x + self.loop(x)
        return self.classifier(x.mean((2, 3)))


class MLP(nn.Module):
    """tanh 6-5-5-1, the network of golden case T5; a norm on the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.norm(self.first(x))))))


# By hand, so that these tests do not lean on the tracer.
TOYS: dict[type[nn.Module], tuple[tuple[int, ...], tuple[ChannelGroup, ...]]] = {
    DepthwiseNet: (
        (3, 2, 3, 3),
        (
            ChannelGroup(4, ("conv",), tuple(map(Place, ("norm", "depthwise", "depthwise_norm"))), (Place("pointwise", 1),)),
            ChannelGroup(5, ("pointwise",), (Place("pointwise_norm"),), (Place("linear", 9),)),
        ),
    ),
    ResidualNet: (
        (3, 2, 3, 3),
        (
            ChannelGroup(4, ("stem", "project", "loop"), (Place("norm"),), (Place("expand", 1), Place("loop", 1), Place("classifier", 1))),
            ChannelGroup(6, ("expand",), (), (Place("project", 1),)),
        ),
    ),
    MLP: (
        (8, 6),
        (
            ChannelGroup(5, ("first",), (Place("norm"),), (Place("second", 1),)),
            ChannelGroup(5, ("second",), (), (Place("last", 1),)),
        ),
    ),
}


def toy(kind: type[nn.Module], dtype: torch.dtype = torch.float64) -> tuple[nn.Module, ChannelGraph, Tensor]:
    """A toy network with settled norms, its graph, and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().to(dtype)
    shape, groups = TOYS[kind]
    inputs = torch.randn(8, *shape[1:], dtype=torch.float64, generator=seeded(1)).to(dtype)
    settle_norms(model, inputs)
    return model.eval(), ChannelGraph(groups), inputs


def settle_norms(model: nn.Module, inputs: Tensor) -> None:
    """Norms away from 1 and 0, so that a forgotten one shows."""
    generator = seeded(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            for parameter in (module.weight, module.bias):
                with torch.no_grad():
                    parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5, generator=generator))
    with torch.no_grad():
        model.train()(inputs)


def family_net(family: Family) -> tuple[Network, nn.Module, Tensor]:
    network = Network(family, default_widths(family, 0.05), 16, 2, 3)
    model = build(network, seeded()).double()
    inputs = torch.randn(4, 2, 16, 16, dtype=torch.float64, generator=seeded(1))
    settle_norms(model, inputs)
    return network, model.eval(), inputs


def split_for(graph: ChannelGraph, model: nn.Module, group: int, channels: list[int], seed: int = 0) -> Split:
    """A split along random unit directions."""
    weights = [model.get_submodule(name).weight for name in graph.groups[group].producers]
    directions = torch.randn(len(channels), sum(w[0].numel() for w in weights), dtype=torch.float64, generator=seeded(seed))
    return Split(group, torch.tensor(channels, dtype=torch.int64), directions / directions.norm(dim=1, keepdim=True))


def all_splits(graph: ChannelGraph, model: nn.Module) -> list[Split]:
    """Every group splits its last channel and its first."""
    return [split_for(graph, model, g, [group.width - 1, 0], g) for g, group in enumerate(graph.groups)]


def output(model: nn.Module, inputs: Tensor, train: bool) -> Tensor:
    """What a copy of the model computes, so that train mode leaves no mark on its running statistics."""
    with torch.no_grad():
        return copy.deepcopy(model).train(train)(inputs)


@pytest.mark.parametrize("kind", TOYS)
def test_tracing_finds_the_groups_written_down_here(kind: type[nn.Module]) -> None:
    model, graph, inputs = toy(kind)
    assert find_groups(model, inputs).groups == graph.groups


# T6: the function at step 0


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", TOYS)
def test_toy_is_preserved_at_step_zero(kind: type[nn.Module], dtype: torch.dtype, tolerance: float, train: bool) -> None:
    model, graph, inputs = toy(kind, dtype)
    wider, _ = widen(model, graph, all_splits(graph, model), 0.0)
    assert (output(wider, inputs, train) - output(model, inputs, train)).abs().max() < tolerance
    assert sum(p.numel() for p in wider.parameters()) > sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_preserved_at_step_zero(family: Family, train: bool) -> None:
    network, model, inputs = family_net(family)
    graph = find_groups(model, inputs[:1])
    wider, _ = widen(model, graph, all_splits(graph, model), 0.0)
    assert (output(wider, inputs, train) - output(model, inputs, train)).abs().max() < 1e-12
    single = copy.deepcopy(wider).float()
    assert (output(single, inputs.float(), train) - output(model.float(), inputs.float(), train)).abs().max() < 1e-5
    assert find_groups(wider, inputs[:1]).wiring == replace(network, widths=tuple(w + 2 for w in network.widths)).wiring()


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_repeated_splits_of_any_channels_preserve_the_function(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    network, model, inputs = family_net(family)
    before = output(model, inputs, False)
    widths = list(network.widths)
    for _ in range(3):
        graph = find_groups(model, inputs[:1])
        groups = data.draw(st.lists(st.integers(0, len(widths) - 1), min_size=1, max_size=4, unique=True))
        splits = []
        for group in groups:
            channels = data.draw(st.lists(st.integers(0, widths[group] - 1), max_size=widths[group], unique=True))
            splits.append(split_for(graph, model, group, channels))
            widths[group] += len(channels)
        model, _ = widen(model, graph, splits, 0.0)
    assert (output(model, inputs, False) - before).abs().max() < 1e-12
    rebuilt = build(replace(network, widths=tuple(widths))).double().eval()
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(output(rebuilt, inputs, False), output(model, inputs, False))


# The second order


def split_matrix(loss_of_merged: Tensor, merged: Tensor, pre: Tensor, inputs: Tensor) -> Tensor:
    """S of every neuron of a dense layer, [C, d, d], by definition: E of dL/da times the second derivative of the activation."""
    (gradient,) = torch.autograd.grad(loss_of_merged, merged, retain_graph=True)
    (first,) = torch.autograd.grad((gradient.detach() * merged).sum(), pre, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), pre, retain_graph=True)  # channel-wise, so the sum separates
    return torch.einsum("bc,bi,bj->cij", second, inputs, inputs)


def test_change_of_loss_is_the_sum_of_splitting_indices_with_directions_halved_on_duplicated_inputs() -> None:
    """T5 and T7: two layers split at once; a direction left whole on duplicated inputs would count it four times there."""
    model, graph, inputs = toy(MLP)
    model.norm = nn.Identity()
    graph = find_groups(model, inputs)
    target = torch.randn(8, 1, dtype=torch.float64, generator=seeded(3))
    pre_first = model.first(inputs)
    first = torch.tanh(pre_first)
    pre_second = model.second(first)
    second = torch.tanh(pre_second)
    loss = ((model.last(second) - target) ** 2).mean()

    splits, predicted = [], 0.0
    for group, (merged, pre, read, layer) in enumerate(
        [(first, pre_first, inputs, model.first), (second, pre_second, first, model.second)]
    ):
        index, vectors = torch.linalg.eigh(split_matrix(loss, merged, pre, read).detach())
        splits.append(Split(group, torch.arange(5), vectors[:, :, 0]))
        predicted += (index[:, 0] * layer.weight.detach().square().sum(1)).sum().item() / 2

    def error(step: float) -> float:
        wider, _ = widen(model, graph, splits, step)
        with torch.no_grad():
            change = ((wider(inputs) - target) ** 2).mean() - loss
        return abs(change.item() / step**2 - predicted)

    assert predicted < 0
    assert error(1e-3) < 1e-4 * abs(predicted)
    assert error(1e-1) / error(1e-2) == pytest.approx(100, rel=0.2)


def best_splits(model: nn.Module, graph: ChannelGraph, product: SplittingProduct) -> tuple[list[Split], float]:
    """Every channel along the lowest eigenvector of its dense splitting matrix; half the sum of the indices, each times norm squared."""
    columns: list[list[Tensor]] = [[] for _ in graph.groups]
    for j in range(max(d for _, d in product.shapes)):
        v = [torch.zeros(c, d, dtype=torch.float64) for c, d in product.shapes]
        for part in v:
            part[:, min(j, part.shape[1] - 1)] = 1
        for number, part in enumerate(product(v)):
            if j < part.shape[1]:
                columns[number].append(part)
    splits, half_sum = [], 0.0
    for number, group in enumerate(graph.groups):
        index, vectors = torch.linalg.eigh(torch.stack(columns[number], 2))
        theta = torch.cat([model.get_submodule(name).weight.detach().flatten(1) for name in group.producers], 1)
        splits.append(Split(number, torch.arange(group.width), vectors[:, :, 0]))
        half_sum += (index[:, 0] * theta.square().sum(1)).sum().item() / 2
    return splits, half_sum


def relative_error(name: str) -> Callable[[float], float]:
    """How far the change of loss over step squared is from half the sum of the indices when every channel splits, as a function of step."""
    kinds = {kind.__name__: kind for kind in TOYS}
    model, inputs = toy(kinds[name])[::2] if name in kinds else family_net(name)[1:]
    graph = find_groups(model, inputs)
    target = torch.randn(model(inputs).shape, dtype=torch.float64, generator=seeded(3))
    splits, predicted = best_splits(model, graph, SplittingProduct(model, graph, [(inputs, target)], mse_loss))
    assert predicted < 0

    def error(step: float) -> float:
        wider, _ = widen(model, graph, splits, step)
        with torch.no_grad():
            change = mse_loss(wider(inputs), target) - mse_loss(model(inputs), target)
        return abs(change.item() / step**2 / predicted - 1)

    return error


@pytest.mark.parametrize("name", [*(kind.__name__ for kind in TOYS), "mobilenet_v1", "mobilenet_v2"])
def test_all_groups_split_at_once_change_the_loss_as_their_indices_say(name: str) -> None:
    """T4, T5, T7: through depthwise layers, residual sums, flattened maps and tied producers."""
    error = relative_error(name)
    assert error(1e-3) < 1e-3
    assert error(1e-2) / error(1e-3) == pytest.approx(100, rel=0.2)


def test_indices_hold_through_max_pooling_as_long_as_no_maximum_changes_place() -> None:
    assert relative_error("plain")(1e-5) < 1e-4


@pytest.mark.parametrize("kind", TOYS)
def test_parent_and_offspring_are_interchangeable(kind: type[nn.Module]) -> None:
    """v and -v give the same function, so odd orders of the step cancel."""
    model, graph, inputs = toy(kind)
    splits = all_splits(graph, model)
    there, _ = widen(model, graph, splits, 0.3)
    back, _ = widen(model, graph, [replace(split, directions=-split.directions) for split in splits], 0.3)
    assert (output(there, inputs, False) - output(model, inputs, False)).abs().max() > 1e-6
    assert torch.allclose(output(there, inputs, False), output(back, inputs, False), rtol=0, atol=1e-12)


def test_step_is_a_fraction_of_the_parents_norm_over_all_producers() -> None:
    model, graph, _ = toy(ResidualNet)
    split = split_for(graph, model, 0, [2])
    wider, channel_map = widen(model, graph, [split], 0.25)
    # the columns that ``loop`` reads twice are folded again, so that rows of old and new model compare
    weights = [wider.stem.weight, wider.project.weight, torch.cat([wider.loop.weight[:, :4], wider.loop.weight[:, 4:]], 1)]
    old = torch.cat([getattr(model, name).weight[2].flatten() for name in ("stem", "project", "loop")]).detach()
    folded = wider.loop.weight[:, :4].detach().clone()
    folded[:, 2] += wider.loop.weight[:, 4].detach()
    for row, sign in ((2, 1), (4, -1)):
        moved = torch.cat([weights[0][row].flatten(), weights[1][row].flatten(), folded[row].flatten()]).detach() - old
        assert torch.allclose(moved, sign * 0.25 * old.norm() * split.directions[0], rtol=0, atol=1e-14)
    rows, columns = channel_map.sources["loop.weight"]
    assert rows.tolist() == columns.tolist() == [0, 1, 2, 3, 2]


# What surgery leaves behind


@pytest.mark.parametrize("kind", TOYS)
def test_old_model_stays_bit_identical_and_shares_no_memory(kind: type[nn.Module]) -> None:
    model, graph, inputs = toy(kind)
    model(inputs).sum().backward()
    state, before = copy.deepcopy(model.state_dict()), output(model, inputs, False)
    wider, _ = widen(model, graph, all_splits(graph, model), 0.5)
    with torch.no_grad():
        for tensor in (*wider.parameters(), *wider.buffers()):
            tensor.zero_()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(output(model, inputs, False), before)
    assert all(parameter.grad is None for parameter in wider.parameters())


def test_wider_modules_know_their_size() -> None:
    model, graph, _ = toy(DepthwiseNet)
    model.conv.weight.requires_grad_(False)
    wider, _ = widen(model, graph, all_splits(graph, model), 0.1)
    assert (wider.conv.in_channels, wider.conv.out_channels, wider.conv.groups) == (2, 6, 1)
    assert (wider.depthwise.in_channels, wider.depthwise.out_channels, wider.depthwise.groups) == (6, 6, 6)
    assert (wider.pointwise.in_channels, wider.pointwise.out_channels) == (6, 7)
    assert (wider.norm.num_features, wider.pointwise_norm.num_features) == (6, 7)
    assert (wider.linear.in_features, wider.linear.out_features) == (63, 3)
    assert not wider.conv.weight.requires_grad
    assert wider.pointwise.weight.requires_grad
    assert vars(wider).keys() == vars(model).keys()


@pytest.mark.parametrize("kind", TOYS)
def test_map_names_exactly_the_tensors_that_grew_and_rebuilds_their_shapes(kind: type[nn.Module]) -> None:
    model, graph, _ = toy(kind)
    wider, channel_map = widen(model, graph, all_splits(graph, model), 0.1)
    old, new = model.state_dict(), wider.state_dict()
    assert channel_map.sources.keys() == {name for name in old if old[name].shape != new[name].shape}
    for name, tensor in old.items():
        taken = channel_map.take(name, tensor)
        assert taken.shape == new[name].shape
        assert taken.data_ptr() != tensor.data_ptr()
        assert torch.equal(taken[tuple(slice(n) for n in tensor.shape)], tensor)


def test_no_split_is_a_copy() -> None:
    model, graph, _ = toy(MLP)
    for splits in ([], [split_for(graph, model, 1, [])]):
        wider, _ = widen(model, graph, splits, 0.3)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), wider.state_dict().values(), strict=True))


# Refusals


def test_bad_splits_are_refused() -> None:
    model, graph, _ = toy(MLP)
    good = split_for(graph, model, 0, [1, 2])
    bad = {
        "channel 1 comes 2 times; name it once": replace(good, channels=torch.tensor([1, 1])),
        "channel 5 does not exist; the group has channels 0 to 4": replace(good, channels=torch.tensor([1, 5])),
        "channel -1 does not exist": replace(good, channels=torch.tensor([-1, 1])),
        r"shape \[2, 5\]; give one row of 6 weights per channel": replace(good, directions=good.directions[:, :5]),
        r"shape \[1, 6\]": replace(good, directions=good.directions[:1]),
        "NaN or infinity": replace(good, directions=good.directions * float("nan")),
        "1 away from 1; divide each by its length": replace(good, directions=2 * good.directions),
        "give int64": replace(good, channels=torch.tensor([1.0, 2.0])),
        "channel group is 2; the graph has groups 0 to 1": replace(good, group=2),
    }
    for message, split in bad.items():
        with pytest.raises(ValueError, match=message):
            widen(model, graph, [split], 0.1)
    with pytest.raises(ValueError, match="split 2 times in one call"):
        widen(model, graph, [good, good], 0.1)
    for step in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="split step is"):
            widen(model, graph, [good], step)


def test_stale_graph_is_refused() -> None:
    model, graph, _ = toy(MLP)
    wider, _ = widen(model, graph, [split_for(graph, model, 0, [1])], 0.1)
    with pytest.raises(ValueError, match="first has 6 outputs, but channel group 0 of the graph wants 5; trace the model again"):
        widen(wider, graph, [split_for(graph, model, 0, [1])], 0.1)


def test_modules_that_cannot_be_widened_are_refused_by_name() -> None:
    model, graph, _ = toy(MLP)
    split = split_for(graph, model, 0, [1])
    model.norm = nn.LayerNorm(5)
    with pytest.raises(TypeError, match="norm is a LayerNorm"):
        widen(model, graph, [split], 0.1)
    model, graph, _ = toy(MLP)
    model.shadow = model.first
    with pytest.raises(TypeError, match="first shares its weight with another module"):
        widen(model, graph, [split], 0.1)
    model, graph, _ = toy(MLP)
    nn.utils.parametrizations.weight_norm(model.first)
    with pytest.raises(TypeError, match=r"first is a parametrised .*Linear"):
        widen(model, graph, [split], 0.1)
