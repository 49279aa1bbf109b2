"""A module's per-channel tensors laid out anew: its rows, its columns, and the entries of a scale, each a copy of an old one.

All change the module in place, its sizes included; surgery calls them on copies.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from growth.fitting import CONVOLUTIONS, NORMS


def take_rows(module: nn.Module, old: Tensor) -> list[str]:
    """Row i of every per-channel tensor becomes a copy of row ``old[i]``; the names of those tensors."""
    names = [name for name in ("weight", "bias", "running_mean", "running_var") if getattr(module, name, None) is not None]
    for name in names:
        replace_tensor(module, name, tensor_of(module, name).detach()[old.to(tensor_of(module, name).device)])
    width = len(old)
    if isinstance(module, CONVOLUTIONS):
        module.out_channels = width
        if module.groups > 1:  # depthwise
            module.in_channels = module.groups = width
    elif isinstance(module, nn.Linear):
        module.out_features = width
    elif isinstance(module, NORMS):
        module.num_features = width
    return names


def take_columns(module: nn.Module, old: Tensor, shares: Tensor | None = None) -> None:
    """Input column i becomes a copy of column ``old[i]``, times its share [columns]."""
    weight = tensor_of(module, "weight").detach()
    taken = weight[:, old.to(weight.device)]
    if shares is not None:
        taken = taken * shares.to(weight).view(1, -1, *[1] * (weight.dim() - 2))
    replace_tensor(module, "weight", taken)
    if isinstance(module, CONVOLUTIONS):
        module.in_channels = len(old)
    else:
        cast(nn.Linear, module).in_features = len(old)


def take_entries(model: nn.Module, name: str, axis: int, old: Tensor) -> None:
    """The same along an axis of the parameter ``name``, a scale."""
    module, attribute = owner(model, name)
    scale = tensor_of(module, attribute).detach()
    replace_tensor(module, attribute, scale.index_select(axis, old.to(scale.device)))


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that a parameter belongs to, and its name there."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def tensor_of(module: nn.Module, name: str) -> Tensor:
    return cast(Tensor, getattr(module, name))


def replace_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """By one of another shape; a parameter stays a parameter, trained or frozen."""
    old = tensor_of(module, name)
    setattr(module, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
