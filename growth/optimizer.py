"""Carrying an optimizer's state over to a wider model.

The state of every old entry stays bit for bit; an offspring copies its parent's.  For duplicated inputs that is exact: each share
sees the gradient that the whole saw.  For an offspring's own row it is twice what a past gradient would have been, which momentum
forgets within a few steps.

Where a gradient is not like the parent's (a new neuron, or an offspring read with the opposite sign: ``ChannelMap.unlike``), running
means of gradients start at zero; running means of their squares still copy the parent's, for a step of the usual size.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from growth.surgery import ChannelMap

DIRECTED = ("momentum_buffer", "exp_avg", "grad_avg")  # state with the sign of gradients: SGD and RMSprop, Adam, centred RMSprop


def carry(optimizer: Optimizer, old: nn.Module, new: nn.Module, channel_map: ChannelMap) -> Optimizer:
    """An optimizer of the same class for ``new``: same parameter groups and hyper-parameters, state carried by parameter name.

    Works for optimizers whose state per parameter is numbers and tensors of the parameter's shape (SGD, Adam, AdamW, RMSprop).
    ``optimizer`` is untouched.  ValueError for a parameter that is not in ``old``, and for other kinds of state.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in old.named_parameters()}
    parameters = dict(new.named_parameters())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise ValueError(
                    f"the optimizer holds a parameter of shape {list(parameter.shape)} that is not in the old model; leave it out"
                )
    groups = [{**group, "params": [parameters[names[p]] for p in group["params"]]} for group in optimizer.param_groups]
    carried = _like(optimizer, groups)
    for parameter, state in optimizer.state.items():
        name = names[parameter]
        carried.state[parameters[name]] = {key: _carried(key, value, parameter, name, channel_map) for key, value in state.items()}
    return carried


def _like(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """A new optimizer of the same class.  Its defaults also go to the constructor, which sets switches such as ``fused`` by them."""
    accepted = inspect.signature(type(optimizer)).parameters
    return type(optimizer)(groups, **{key: value for key, value in optimizer.defaults.items() if key in accepted})


def _carried(key: str, value: object, parameter: Tensor, name: str, channel_map: ChannelMap) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        taken = channel_map.take(name, value)
        return channel_map.forget(name, taken) if key in DIRECTED else taken
    if isinstance(value, Tensor) and value.dim() == 0:
        return value.clone()  # a step counter
    kind = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
    raise ValueError(
        f"optimizer state {key!r} of {name} is {kind}, not of the parameter's shape {list(parameter.shape)}; "
        "use an optimizer with state per weight, such as SGD, Adam or AdamW"
    )
