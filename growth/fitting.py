"""Whether a graph fits a model, and whether every module of a channel group can be widened."""

from __future__ import annotations

from collections import Counter
from typing import cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from growth.groups import ChannelGroup

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def shared_weights(model: nn.Module) -> set[str]:
    """Names of the parameters that more than one module has."""
    names = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    uses = Counter(names.values())
    return {name for name, key in names.items() if uses[key] > 1}


def check_group(model: nn.Module, number: int, group: ChannelGroup, shared: set[str]) -> int:
    """The number of weights of one channel of ``group``, once every module of it is found fit to be widened.

    ValueError for a graph that does not fit the model, TypeError for a module that can't be widened.
    """
    fan_in = 0
    for name in group.producers:
        weight = _check_module(model, name, (*CONVOLUTIONS, nn.Linear), shared)
        _check_width(number, name, "outputs", len(weight), group.width)
        if getattr(model.get_submodule(name), "groups", 1) != 1:
            raise TypeError(f"{name} is a grouped convolution and produces channels; only convolutions with groups=1 can be split")
        fan_in += weight[0].numel()
    for place in group.passengers:
        _check_module(model, place.name, (*NORMS, *CONVOLUTIONS), shared)
        module = model.get_submodule(place.name)
        _check_width(number, place.name, "channels", features(module), group.width * place.columns + place.beside)
        if isinstance(module, CONVOLUTIONS) and not module.out_channels == module.in_channels == module.groups:
            raise TypeError(
                f"{place.name} makes {module.out_channels} channels of {module.groups}; a depthwise passenger must keep the number"
            )
    for place in group.consumers:
        weight = _check_module(model, place.name, (*CONVOLUTIONS, nn.Linear), shared)
        _check_width(number, place.name, "inputs", weight.shape[1], group.width * place.columns + place.beside)
    for place in group.scales:
        path, _, attribute = place.name.rpartition(".")
        scale = cast(Tensor, getattr(model.get_submodule(path), attribute))
        _check_width(number, place.name, "entries", scale.shape[place.axis], group.width * place.columns + place.beside)
    return fan_in


def features(module: nn.Module) -> int:
    """Entries of a module's output axis."""
    if isinstance(module, NORMS):
        return module.num_features
    return len(cast(Tensor, module.weight))


def _check_module(model: nn.Module, name: str, types: tuple[type[nn.Module], ...], shared: set[str]) -> Tensor:
    module = model.get_submodule(name)
    if not isinstance(module, types) or is_parametrized(module):
        kind = "parametrised " * is_parametrized(module) + type(module).__name__
        raise TypeError(f"{name} is a {kind}; here only {', '.join(t.__name__ for t in types)} can be widened: replace or freeze it")
    if f"{name}.weight" in shared:
        raise TypeError(f"{name} shares its weight with another module; give each its own weight before splitting")
    return cast(Tensor, module.weight)


def _check_width(number: int, name: str, what: str, width: int, expected: int) -> None:
    if width != expected:
        raise ValueError(
            f"{name} has {width} {what}, but channel group {number} of the graph wants {expected}; trace the model again (find_groups)"
        )
