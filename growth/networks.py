"""Torch modules of a network family, built from its wiring: the one description that prices the network also builds it.

Module paths are the wiring's unit names.  A convolution unit holds ``conv`` (its bias left to the norm), ``norm`` and, where
it has one, ``activation``; so the first pointwise weights of a MobileNet are ``blocks.0.pointwise.conv.weight``.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from costs.families import Network
from costs.shapes import Activation, Counted, LayerShape

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}
CLASSIFIER_STD = 0.01  # small, so that a new network starts near equal class scores


class Block(nn.Sequential):
    """Units one after the other; a residual block adds its input to their output."""

    residual = False

    def forward(self, x: Tensor) -> Tensor:  # [B, C_in, H, W] -> [B, C_out, H', W']
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return x + y if self.residual else y


def build(network: Network, generator: torch.Generator | None = None) -> nn.Sequential:
    """A new network in train mode on the CPU: images [B, in_channels, size, size] -> class scores [B, classes].

    ``generator`` draws the weights (default: torch's global one); the same state of it gives the same weights bit for bit, and no
    other generator is touched.  ValueError when a field of ``network`` is out of range.
    """
    with torch.device("meta"):  # no memory yet, and none of torch's own random initialisation
        model = nn.Sequential()
        for unit in network.wiring().units:
            path, _, name = unit.name.rpartition(".")
            parent = _block(model, path) if path else model
            if unit.shape.op == "linear":
                parent.add_module("flatten", nn.Flatten())
            parent.add_module(name, unit_module(unit.shape))
            if isinstance(parent, Block):
                parent.residual |= unit.shape.residual
    model.to_empty(device="cpu")
    _initialise(model, generator)
    return model


def _block(model: nn.Sequential, path: str) -> Block:
    """The block at ``path`` ("blocks.3"), made when its first unit arrives."""
    row, _, index = path.partition(".")
    if row not in model._modules:
        model.add_module(row, nn.Sequential())
    blocks = model.get_submodule(row)
    if index not in blocks._modules:
        blocks.add_module(index, Block())
    block = blocks.get_submodule(index)
    assert isinstance(block, Block)
    return block


def unit_module(shape: LayerShape) -> nn.Module:
    """The layers of one unit, without its residual addition, which is the block's, and without a flatten before a linear layer."""
    if isinstance(shape, Counted):
        raise TypeError(f"{shape} is no unit that can be built or measured")
    if shape.op == "linear":
        return nn.Linear(shape.in_channels, shape.out_channels)
    if shape.op == "max_pool":
        return nn.MaxPool2d(shape.kernel, shape.stride)
    if shape.op == "global_pool":
        return nn.AdaptiveAvgPool2d(1)
    ins, outs = shape.in_channels, shape.out_channels
    conv = nn.Conv2d(ins, outs, shape.kernel, shape.stride, shape.kernel // 2, groups=shape.groups, bias=not shape.norm)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if shape.norm:
        parts["norm"] = nn.BatchNorm2d(outs)
    if shape.activation != "none":
        parts["activation"] = _ACTIVATIONS[shape.activation]()
    return nn.Sequential(parts)


@torch.no_grad()
def _initialise(model: nn.Module, generator: torch.Generator | None) -> None:
    """Kaiming normal by fan-out (He et al. 2015, arXiv 1502.01852) for convolutions, norms at 1 and 0, a small classifier."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            module.weight.normal_(0, math.sqrt(2 / fan_out), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0, CLASSIFIER_STD, generator=generator)
            module.bias.zero_()
