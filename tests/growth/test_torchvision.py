"""Ordinary networks of torchvision: groups found, widened at random with the function kept and narrowed again, the reasons for what
can't grow, scores against autograd, and one round of growth that lowers the loss it predicted to lower.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.regnet import BlockParams
from torchvision.ops import StochasticDepth

from costs.model import Macs
from growth.config import GrowthConfig
from growth.groups import ChannelGraph, find_groups
from growth.notebook import grow
from growth.offspring import Offspring, theta
from growth.pointwise import POINTWISE, SILU
from growth.reference import reference_product
from growth.removal import Removal, remove_channels
from growth.segments import closed
from growth.solvers import lanczos
from growth.splitting import Batch, SplittingProduct
from growth.surgery import Split, add_channels, widen

CLASSES = 4
TARGET = torch.arange(6) % CLASSES


def vgg11_bn() -> nn.Module:
    """Its hidden layers 4 096 wide would be most of the work."""
    cfg = [8, "M", 8, "M", 12, 12, "M", 16, 16, "M", 16, 16, "M"]
    model = zoo.VGG(zoo.vgg.make_layers(cfg, batch_norm=True), CLASSES, init_weights=False)  # type: ignore[arg-type]
    model.classifier[0], model.classifier[3], model.classifier[6] = nn.Linear(16 * 49, 10), nn.Linear(10, 9), nn.Linear(9, CLASSES)
    return model


def efficientnet() -> nn.Module:
    setting, last = zoo.efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=1.0)
    return zoo.EfficientNet(setting, dropout=0.2, last_channel=last, num_classes=CLASSES)


def regnet() -> nn.Module:
    params = BlockParams.from_init_params(depth=16, w_0=48, w_a=27.89, w_m=2.09, group_width=8, se_ratio=0.25)
    return zoo.RegNet(params, num_classes=CLASSES, stem_width=8)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobilenet_v2": (lambda: zoo.mobilenet_v2(width_mult=0.15, num_classes=CLASSES), 32),
    "mobilenet_v3_small": (lambda: zoo.mobilenet_v3_small(width_mult=0.25, num_classes=CLASSES), 32),
    "resnet18": (lambda: zoo.resnet18(num_classes=CLASSES), 32),
    "vgg11_bn": (vgg11_bn, 32),
    "densenet121": (lambda: zoo.DenseNet(4, (6, 12, 24, 16), 8, 2, num_classes=CLASSES), 32),
    "squeezenet1_1": (lambda: zoo.squeezenet1_1(num_classes=CLASSES), 32),
    "shufflenet_v2_x0_5": (lambda: zoo.ShuffleNetV2([4, 8, 4], [8, 16, 24, 32, 48], num_classes=CLASSES), 32),
    "efficientnet_b0": (efficientnet, 32),
    "regnet_y_400mf": (regnet, 32),
    "convnext_tiny": (
        lambda: zoo.ConvNeXt(
            [CNBlockConfig(8, 12, 2), CNBlockConfig(12, 16, 2), CNBlockConfig(16, 20, 3), CNBlockConfig(20, None, 2)], num_classes=CLASSES
        ),
        32,
    ),
    "vit_b_16": (lambda: zoo.VisionTransformer(32, 16, 3, 2, 16, 24, num_classes=CLASSES), 32),
}  # fmt: skip


def smoothed(model: nn.Module) -> nn.Module:
    """Smooth functions instead of those with kinks, which have no second derivative to hold a prediction against."""
    for name, child in model.named_children():
        if isinstance(child, nn.ReLU | nn.ReLU6 | nn.Hardswish):
            setattr(model, name, nn.SiLU())
        elif isinstance(child, nn.Hardsigmoid):
            setattr(model, name, nn.Sigmoid())
        else:
            smoothed(child)
    return model


@cache
def network(name: str, smooth: bool = False) -> tuple[nn.Module, ChannelGraph, Tensor]:
    """In float64, with weights and norms of ordinary size, settled statistics, and nothing random in train mode."""
    make, size = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    model = smoothed(model) if smooth else model
    inputs = torch.randn(6, 3, size, size, dtype=torch.float64, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.rand(parameter.shape, generator=generator).double() - 0.5
            else:  # the same strength everywhere: some start with scales of layers or a head that are nearly zero
                reach = (3 / parameter[0].numel()) ** 0.5
                parameter.copy_(reach * (2 * torch.rand(parameter.shape, generator=generator).double() - 1))
        for _ in range(20):
            model.train()(inputs)
    return model.eval(), find_groups(model, inputs[:2]), inputs


def output(model: nn.Module, inputs: Tensor, train: bool) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).train(train)(inputs)


def random_splits(model: nn.Module, graph: ChannelGraph, seed: int) -> list[Split]:
    generator = torch.Generator().manual_seed(seed)
    splits = []
    for number, group in enumerate(graph.groups):
        count = int(torch.randint(1, min(4, group.width) + 1, (), generator=generator))
        channels = torch.randperm(group.width, generator=generator)[:count]
        fan_in = sum(model.get_parameter(f"{name}.weight")[0].numel() for name in group.producers)
        directions = torch.randn(count, fan_in, dtype=torch.float64, generator=generator)
        splits.append(Split(number, channels, directions / directions.norm(dim=1, keepdim=True)))
    return splits


@pytest.mark.parametrize("name", NETWORKS)
def test_widened_at_random_it_computes_the_same(name: str) -> None:
    model, graph, inputs = network(name)
    wider, channel_map = widen(model, graph, random_splits(model, graph, 0), 0.0)
    for name, tensor in wider.state_dict().items():
        parent = channel_map.take(name, model.state_dict()[name])
        assert ((tensor == parent) | (tensor == parent / 2)).all()
    again, _ = widen(wider, find_groups(wider, inputs[:1]), random_splits(wider, find_groups(wider, inputs[:1]), 1), 0.0)
    for train in (False, True):
        expected = output(model, inputs, train)
        for grown in (wider, again):
            assert (output(grown, inputs, train) - expected).abs().max() < 1e-9 * max(1, float(expected.abs().max()))
    apart, _ = widen(model, graph, random_splits(model, graph, 0), 0.3)
    assert (output(apart, inputs, False) - output(model, inputs, False)).abs().max() > 1e-6


def beside(model: nn.Module, graph: ChannelGraph, number: int, parents: Tensor) -> Offspring:
    """Unread channels with rows by chance, beside these parents."""
    rows = theta(model, graph.groups[number])[parents]
    moves = torch.stack([torch.zeros_like(rows), torch.randn(rows.shape, generator=torch.Generator().manual_seed(number)).double()], 1)
    return Offspring(number, parents, moves, torch.tensor([1.0, 0.0]).double().expand(len(parents), 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_added_can_be_removed_again_without_a_trace(name: str) -> None:
    model, graph, inputs = network(name)
    offspring = [beside(model, graph, split.group, split.channels) for split in random_splits(model, graph, 3)]
    wider, _ = add_channels(model, graph, offspring)
    removals = [Removal(one.group, graph.groups[one.group].width + torch.arange(len(one.parents))) for one in offspring]
    back, channel_map = remove_channels(wider, find_groups(wider, inputs[:1]), removals)
    for path, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[path], tensor)
        assert torch.equal(channel_map.take(path, wider.state_dict()[path]), tensor)
    assert torch.equal(output(back, inputs, False), output(model, inputs, False))


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_that_nothing_reads_can_be_removed_without_a_change(name: str) -> None:
    model, graph, inputs = copy.deepcopy(network(name)[0]), *network(name)[1:]
    removals = [Removal(number, torch.tensor([0])) for number, group in enumerate(graph.groups) if group.width > 2]
    with torch.no_grad():
        for removal in removals:
            for place in graph.groups[removal.group].consumers:
                model.get_parameter(f"{place.name}.weight")[:, place.entries(removal.channels).flatten()] = 0
    narrower, _ = remove_channels(model, graph, removals)
    for train in (False, True):
        expected = output(model, inputs, train)
        assert (output(narrower, inputs, train) - expected).abs().max() < 1e-9 * max(1, float(expected.abs().max()))
    assert sum(p.numel() for p in narrower.parameters()) < sum(p.numel() for p in model.parameters())


# For each network: what of it grows, by a pattern and how often it comes among the producers; and why the rest is fixed, if there is any
# besides the class scores.
GROWS = {
    "mobilenet_v2": (r"conv\.", 33, ""),
    "mobilenet_v3_small": (r"fc1|fc2", 18, ""),
    "resnet18": (r"conv|downsample", 20, ""),
    "vgg11_bn": (r"features|classifier", 10, ""),
    "densenet121": (r"denselayer|transition", 119, ""),
    "squeezenet1_1": (r"squeeze|expand", 24, ""),
    "shufflenet_v2_x0_5": (r"branch2\.0", 16, "its channels reach 'view.* does not keep the .* channels side by side"),
    "efficientnet_b0": (r"fc1|fc2", 32, ""),
    "regnet_y_400mf": (r"fc1|\.c\.0|proj", 36, r"convolution '.*\.b\.0' splits its .* channels into .* groups"),
    "convnext_tiny": (r"block\.3", 9, "statistics over several channels|a tensor whose channels are fixed"),
    "vit_b_16": (r"mlp\.0", 3, "a tensor whose channels are fixed|'reshape'.*written as 16|divides one width among its heads"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_grows_and_why_the_rest_does_not(name: str) -> None:
    model, graph, _ = network(name)
    pattern, count, reason = GROWS[name]
    producers = [producer for group in graph.groups for producer in group.producers]
    assert sum(bool(re.search(pattern, producer)) for producer in producers) == count
    *others, last = graph.fixed
    assert last.reason == "its channels are the model's output"
    assert all(reason and re.search(reason, fixed.reason) for fixed in others), others
    placed = {place.name for group in graph.groups for place in group.passengers}
    for path, module in model.named_modules():
        if (
            isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention)
            and getattr(module, "groups", 1) == 1
            and "out_proj" not in path
        ):
            assert path in {*producers, *placed, *(fixed.path for fixed in graph.fixed)}


@pytest.mark.parametrize("name", NETWORKS)
def test_product_is_the_double_backward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions with kinks are taken for SiLU on both sides: autograd sees no curvature in a kink."""
    for key, function in list(POINTWISE.items()):
        if function.kinks:
            monkeypatch.setitem(POINTWISE, key, SILU)
    model, _, inputs = network(name)
    graph, batch = find_groups(model, inputs[:1]), (inputs, TARGET)
    generator = torch.Generator().manual_seed(1)
    product = SplittingProduct(model, graph, [batch], functional.cross_entropy)
    v = [torch.randn(zero.shape, generator=generator, dtype=torch.float64) for zero in product.zeros()]
    bends = 0
    for ours, theirs in zip(product(v), reference_product(model, graph, batch, functional.cross_entropy, v), strict=True):
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()
        bends += bool(theirs.any())
    assert bends >= len(graph.groups) - 7  # linear bottlenecks do not bend
    gated = name in ("mobilenet_v3_small", "efficientnet_b0", "densenet121", "squeezenet1_1")
    assert (len(closed(graph)) < len(graph.groups)) == gated


def grown(name: str, smooth: bool, step: float) -> tuple[float, float]:
    """The predicted and the realised change of the loss when the best fifth of all channels is split."""
    model, graph, inputs = network(name, smooth)
    batch: Batch = (inputs, TARGET)
    pairs = lanczos(SplittingProduct(model, graph, [batch], functional.cross_entropy), torch.Generator().manual_seed(0), steps=3)
    norms = [
        torch.cat([model.get_parameter(f"{producer}.weight").detach().flatten(1) for producer in group.producers], 1).norm(dim=1)
        for group in graph.groups
    ]
    relative = [pair.index * norm**2 for pair, norm in zip(pairs, norms, strict=True)]
    bar = min(torch.cat(relative).quantile(0.2).item(), 0)
    predicted, splits = 0.0, []
    for number, (index, pair) in enumerate(zip(relative, pairs, strict=True)):
        channels = (index < bar).nonzero().flatten()
        splits.append(Split(number, channels, pair.direction[channels]))
        predicted += step**2 / 2 * index[channels].sum().item()
    wider, _ = widen(model, graph, splits, step)
    with torch.no_grad():
        return predicted, float(functional.cross_entropy(wider(inputs), TARGET) - functional.cross_entropy(model(inputs), TARGET))


@pytest.mark.parametrize("name", NETWORKS)
def test_one_round_lowers_the_loss_that_it_predicted_to_lower(name: str) -> None:
    """With the network's own activations; across kinks of ReLU and maxima that move the prediction is only a guide to the size."""
    predicted, realised = grown(name, False, 1e-2)
    assert predicted < 0
    assert realised < 0.1 * predicted


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_changes_by_the_predicted_amount_where_activations_are_smooth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "relu", functional.silu)  # densenet's last one
    predicted, realised = grown(name, True, 3e-4)
    assert predicted < 0
    assert realised == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_exact_at_any_widths(name: str) -> None:
    """What the wiring says of wider networks before they are made, against the networks themselves and torch's own counter."""
    model, graph, inputs = network(name)
    splits = random_splits(model, graph, 2)
    wider, _ = widen(model, graph, splits, 0.1)
    widths = [group.width + len(split.channels) for group, split in zip(graph.groups, splits, strict=True)]
    shapes = graph.wiring.shapes(widths)
    with FlopCounterMode(display=False) as counter:
        wider(inputs)  # gradients on: without them attention takes a fused path that is not counted
    assert sum(shape.macs for shape in shapes) == counter.get_total_flops() // 2 // len(inputs)
    assert sum(shape.parameters for shape in shapes) == sum(parameter.numel() for parameter in wider.parameters())
    assert sum(shape.macs for shape in shapes) > sum(shape.macs for shape in graph.wiring.shapes())


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_16"])
def test_the_whole_loop_grows_it_within_a_budget_of_macs(name: str) -> None:
    make, size = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (96,), generator=generator)
    images = torch.randn(96, 3, size, size, generator=generator) + torch.randn(CLASSES, 3, size, size, generator=generator)[target]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    seed = Macs().network(find_groups(model, images[:2]).wiring.shapes())
    config = GrowthConfig(
        limit=1.4 * seed.value,
        rounds=1,
        steps_per_round=6,
        final_steps=4,
        batch_size=16,
        scoring_samples=32,
        fresh_samples=16,
        learning_rate=0.05,
        scorer="random",  # always splits: so few images can't show that a gain is reliable
    )
    growth = grow(model, DataLoader(TensorDataset(images, target)), Macs(), config)
    (round_,) = growth
    assert round_.predicted_change != 0
    assert round_.rolled_back or sum(round_.widths_after) > sum(round_.widths_before)
    assert growth.finished is not None
    assert seed.value <= growth.finished.network_cost.value <= config.limit
    assert Macs().network(find_groups(growth.model, images[:2]).wiring.shapes()) == growth.finished.network_cost
