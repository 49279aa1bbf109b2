"""T17: after growth the optimizer goes on as if nothing had happened, for every old entry bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from costs.families import Network, default_widths
from growth.groups import find_groups
from growth.networks import build
from growth.optimizer import carry
from growth.surgery import ChannelMap, Split, widen

torch.set_num_threads(1)
NETWORK = Network("mobilenet_v1", default_widths("mobilenet_v1", 0.02), 12, 1, 4)

OPTIMIZERS: dict[str, Callable[[list[dict[str, object]]], Optimizer]] = {
    "sgd": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "sgd without momentum": lambda groups: SGD(groups, lr=0.1),
    "adam": lambda groups: Adam(groups, lr=1e-3, betas=(0.8, 0.99)),
    "adam with amsgrad": lambda groups: Adam(groups, lr=1e-3, amsgrad=True),
    "adamw": lambda groups: AdamW(groups, lr=1e-3, weight_decay=0.1),
    "rmsprop": lambda groups: RMSprop(groups, lr=1e-3, momentum=0.9),
}


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 1, 12, 12, generator=generator), torch.randint(4, (6,), generator=generator)


def take_step(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    images, labels = batch(step)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


def trained(name: str) -> tuple[nn.Module, Optimizer]:
    """A model after two steps; weight decay on matrices only, so that there are two parameter groups in another order than the model's."""
    model = build(NETWORK, torch.Generator().manual_seed(0))
    vectors = [p for p in model.parameters() if p.dim() == 1]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    optimizer = OPTIMIZERS[name]([{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 1e-3, "lr": 0.05}])
    for step in range(2):
        take_step(model, optimizer, step)
    return model, optimizer


def grown(model: nn.Module) -> tuple[nn.Module, ChannelMap]:
    graph = find_groups(model, batch(0)[0])
    splits = []
    for number, group in enumerate(graph.groups):
        d = sum(model.get_submodule(name).weight[0].numel() for name in group.producers)
        splits.append(Split(number, torch.tensor([1]), nn.functional.normalize(torch.ones(1, d), dim=1)))
    return widen(model, graph, splits, 0.3)


def named_state(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, object]]:
    return {name: optimizer.state[parameter] for name, parameter in model.named_parameters() if parameter in optimizer.state}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_old_entries_are_bit_equal_and_offspring_copy_their_parent(name: str) -> None:
    model, optimizer = trained(name)
    before = copy.deepcopy(optimizer.state_dict())
    wider, channel_map = grown(model)
    carried = carry(optimizer, model, wider, channel_map)
    old, new = named_state(model, optimizer), named_state(wider, carried)
    assert old.keys() == new.keys()
    duplicated = 0
    for path, parameter in wider.named_parameters():
        for key, value in old.get(path, {}).items():
            now = new[path][key]
            if not isinstance(value, Tensor) or value.dim() == 0:
                assert now == value
                continue
            assert now.shape == parameter.shape
            assert torch.equal(now[tuple(slice(n) for n in value.shape)], value)
            for axis in range(value.dim()):
                if parameter.shape[axis] > value.shape[axis] and value.shape[axis] > 1:  # one offspring, of channel 1, at the end
                    assert torch.equal(now.select(axis, -1), now.select(axis, 1))
                    duplicated += 1
    assert duplicated > 0 or name == "sgd without momentum"
    after = optimizer.state_dict()
    assert str(after) == str(before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_and_hyper_parameters_are_kept_in_order_by_name(name: str) -> None:
    model, optimizer = trained(name)
    wider, channel_map = grown(model)
    optimizer.param_groups[0]["initial_lr"] = 0.7  # as a learning-rate schedule leaves it
    carried = carry(optimizer, model, wider, channel_map)
    assert type(carried) is type(optimizer)
    assert carried.defaults == optimizer.defaults
    old_names = {p: n for n, p in model.named_parameters()}
    new_names = {p: n for n, p in wider.named_parameters()}
    for old, new in zip(optimizer.param_groups, carried.param_groups, strict=True):
        assert [old_names[p] for p in old["params"]] == [new_names[p] for p in new["params"]]
        assert {k: v for k, v in old.items() if k != "params"} == {k: v for k, v in new.items() if k != "params"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_and_loaded_it_takes_the_same_step_bit_for_bit(name: str) -> None:
    model, optimizer = trained(name)
    wider, channel_map = grown(model)
    carried = carry(optimizer, model, wider, channel_map)
    again = copy.deepcopy(wider)
    reloaded = carry(optimizer, model, again, channel_map)
    for parameter in again.parameters():
        reloaded.state[parameter] = {}
    reloaded.load_state_dict(copy.deepcopy(carried.state_dict()))
    for net, its_optimizer in ((wider, carried), (again, reloaded)):
        for step in (2, 3):
            take_step(net, its_optimizer, step)
    assert all(torch.equal(a, b) for a, b in zip(wider.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(wider.parameters(), grown(model)[0].parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_growth_the_next_step_is_the_same_bit_for_bit(name: str) -> None:
    model, optimizer = trained(name)
    twin, channel_map = widen(model, find_groups(model, batch(0)[0]), [], 0.3)
    carried = carry(optimizer, model, twin, channel_map)
    take_step(model, optimizer, 2)
    take_step(twin, carried, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


def test_fresh_optimizer_and_named_parameters_are_carried() -> None:
    model = build(NETWORK, torch.Generator().manual_seed(0))
    wider, channel_map = grown(model)
    carried = carry(SGD(model.named_parameters(), lr=0.1), model, wider, channel_map)
    assert not carried.state
    assert [p is q for p, q in zip(carried.param_groups[0]["params"], wider.parameters(), strict=True)]
    take_step(wider, carried, 0)


class Factored(SGD):
    """An optimizer that keeps one number per row, as Adafactor does."""

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["row"] = parameter.grad.flatten(1).mean(1) if parameter.dim() > 1 else parameter.grad


def test_state_of_another_shape_is_refused_with_a_remedy() -> None:
    model = build(NETWORK, torch.Generator().manual_seed(0))
    optimizer = Factored(model.parameters(), lr=0.1)
    take_step(model, optimizer, 0)
    wider, channel_map = grown(model)
    with pytest.raises(ValueError, match=r"'row' of stem.conv.weight is of shape \[2\].*use an optimizer with state per weight"):
        carry(optimizer, model, wider, channel_map)
    optimizer.state.clear()
    optimizer.state[model.classifier.bias]["history"] = []
    with pytest.raises(ValueError, match=r"'history' of classifier\.bias is of type list"):
        carry(optimizer, model, wider, channel_map)


def test_foreign_parameter_is_refused() -> None:
    model = build(NETWORK, torch.Generator().manual_seed(0))
    wider, channel_map = grown(model)
    with pytest.raises(ValueError, match=r"parameter of shape \[3\] that is not in the old model"):
        carry(SGD([nn.Parameter(torch.zeros(3))], lr=0.1), model, wider, channel_map)
