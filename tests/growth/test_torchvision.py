"""Ordinary networks of torchvision: groups found, widened at random with the function kept, and the reasons for what can't grow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.regnet import BlockParams
from torchvision.ops import StochasticDepth

from growth.groups import ChannelGraph, find_groups
from growth.surgery import Split, widen

CLASSES = 4


def vgg11_bn() -> nn.Module:
    """Its hidden layers 4 096 wide would be most of the work."""
    cfg = [8, "M", 8, "M", 12, 12, "M", 16, 16, "M", 16, 16, "M"]
    model = zoo.VGG(zoo.vgg.make_layers(cfg, batch_norm=True), CLASSES, init_weights=False)  # type: ignore[arg-type]
    model.classifier[0], model.classifier[3], model.classifier[6] = nn.Linear(16 * 49, 10), nn.Linear(10, 9), nn.Linear(9, CLASSES)
    return model


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
    "efficientnet_b0": (lambda: zoo.efficientnet_b0(num_classes=CLASSES), 32),
    "regnet_y_400mf": (regnet, 32),
    "convnext_tiny": (
        lambda: zoo.ConvNeXt(
            [CNBlockConfig(8, 12, 2), CNBlockConfig(12, 16, 2), CNBlockConfig(16, 20, 3), CNBlockConfig(20, None, 2)], num_classes=CLASSES
        ),
        32,
    ),
    "vit_b_16": (lambda: zoo.VisionTransformer(32, 16, 3, 2, 16, 24, num_classes=CLASSES), 32),
}  # fmt: skip


@cache
def network(name: str) -> tuple[nn.Module, ChannelGraph, Tensor]:
    """In float64, with norms away from 1 and 0 and settled statistics, and nothing random in train mode."""
    make, size = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
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
    wider, _ = widen(model, graph, random_splits(model, graph, 0), 0.0)
    again, _ = widen(wider, find_groups(wider, inputs[:1]), random_splits(wider, find_groups(wider, inputs[:1]), 1), 0.0)
    for train in (False, True):
        expected = output(model, inputs, train)
        for grown in (wider, again):
            assert (output(grown, inputs, train) - expected).abs().max() < 1e-9 * max(1, float(expected.abs().max()))
    apart, _ = widen(model, graph, random_splits(model, graph, 0), 0.3)
    assert (output(apart, inputs, False) - output(model, inputs, False)).abs().max() > 1e-6
