"""What a channel's departure is predicted to cost, against removing it; and the cheapest departures within a limit, against all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from costs.families import Network
from costs.model import Cost, Macs, Parameters
from costs.shapes import LayerShape, Wiring
from growth.groups import ChannelGraph, find_groups
from growth.networks import build
from growth.removal import Removal, remove_channels
from growth.shrinking import Departures, choose_removals, departures
from growth.splitting import Batch
from growth.training import settle_norms

CLASSES = 4
FAMILIES = {
    "plain": Network("plain", (8, 16), 8, 1, CLASSES, "relu"),
    "without norms": Network("plain", (8, 16), 8, 1, CLASSES, norm=False),
    "mobilenet_v2": Network("mobilenet_v2", (4, 4, *[6, 4] * 2, *[6, 4, 6, 6] * 5, 6, 4, 8)[:25], 8, 1, CLASSES),
}


class Tokens(nn.Module):
    """A linear layer that reads channels last, a concatenation, two columns per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 3, 1)
        self.mlp, self.out, self.head = nn.Linear(7, 6), nn.Linear(6, 4), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.tanh(self.left(x)), functional.silu(self.right(x))], 1).permute(0, 2, 3, 1)
        x = functional.silu(self.out(functional.gelu(self.mlp(x)))).permute(0, 3, 1, 2)
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, (1, 2)), 1))


def images(count: int, seed: int) -> Batch:
    """Four noisy patterns."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (count,), generator=generator)
    patterns = torch.randn(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    return patterns[target] + 1.5 * torch.randn(count, 1, 8, 8, generator=generator), target


def fresh_net(name: str) -> nn.Module:
    if name in FAMILIES:
        return build(FAMILIES[name], torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tokens()


NETS = (*FAMILIES, "tokens")


@cache
def trained(name: str) -> tuple[nn.Module, ChannelGraph, list[Batch]]:
    """A network that has learned something, and 4 batches of unequal size."""
    model = fresh_net(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(60):
        x, target = images(64, step)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    settle_norms(model, [images(256, 1000)])
    return (
        model.double().eval(),
        find_groups(model, images(1, 0)[0].double()),
        [doubled(images(count, 2000 + count)) for count in (64, 48, 64, 32)],
    )


def doubled(batch: Batch) -> Batch:
    return batch[0].double(), batch[1]


def loss_of(model: nn.Module, batches: Sequence[Batch]) -> float:
    x, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        return float(functional.cross_entropy(model(x), target))


def each_alone(name: str) -> tuple[Departures, list[np.ndarray]]:
    """Predicted, and by removing every channel."""
    model, graph, batches = trained(name)
    found = departures(model, graph, batches, functional.cross_entropy)
    before, realised = loss_of(model, batches), []
    for number, group in enumerate(graph.groups):
        alone = [
            remove_channels(model, graph, [found.removal(number, torch.tensor([k]))])[0] for k in range(group.width) if group.width > 2
        ]
        realised.append(np.array([loss_of(one, batches) - before for one in alone]))
    return found, realised


@pytest.mark.parametrize("name", NETS)
def test_predictions_rank_channels_as_their_removal_does(name: str) -> None:
    found, realised = each_alone(name)
    predicted = np.concatenate([change for (change, _), real in zip(found.each(), realised, strict=True) if len(real)])
    real = np.concatenate(realised)
    assert spearmanr(predicted, real)[0] > 0.85
    cheapest = np.argsort(predicted)[: len(real) // 5]
    assert real[cheapest].sum() < 0.25 * np.sort(real)[::-1][: len(real) // 5].sum()


def faded(name: str, scale: float) -> tuple[nn.Module, ChannelGraph, list[Batch]]:
    """The same network with outgoing weights so small that the scores are linear in what one channel gives."""
    model, graph, batches = fresh_net(name).double(), trained(name)[1], trained(name)[2]
    model.load_state_dict(trained(name)[0].state_dict())
    with torch.no_grad():
        for group in graph.groups:
            for place in group.consumers:
                model.get_parameter(f"{place.name}.weight")[:, place.entries(torch.tensor([0])).flatten()] *= scale
    return model.eval(), graph, batches


@pytest.mark.parametrize("name", NETS[1:])
def test_predictions_are_exact_to_first_order_in_what_a_channel_gives(name: str) -> None:
    """The error falls with the square of the channel's weights, where nothing has kinks."""

    def errors(scale: float) -> np.ndarray:
        model, graph, batches = faded(name, scale)
        found, before, apart = departures(model, graph, batches, functional.cross_entropy), loss_of(model, batches), []
        for number in range(len(graph.groups)):
            narrower, _ = remove_channels(model, graph, [found.removal(number, torch.tensor([0]))])
            apart.append(abs(loss_of(narrower, batches) - before - found.each()[number][0][0]))
        return np.array(apart)

    large, small = errors(1e-2), errors(1e-3)
    assert (small <= large / 50 + 1e-12).all()


def test_the_last_layer_is_exact_and_errors_cover_the_scatter_over_batches() -> None:
    """The scores are linear in what the head reads: nothing is left to approximate."""
    graph = trained("plain")[1]
    found, realised = each_alone("plain")
    last = next(number for number, group in enumerate(graph.groups) if group.consumers[0].name == "classifier")
    assert np.allclose(found.each()[last][0], realised[last], atol=1e-9)
    both = [found.removal(last, torch.tensor([0, 3]))]
    prediction = found.prediction(both)
    assert prediction.change == pytest.approx(sum(found.each()[last][0][[0, 3]]))
    per_batch = found.changes[last][:, [0, 3]].sum(axis=1)
    assert 0 < prediction.error < per_batch.std(ddof=1)


def test_a_channel_that_changes_nothing_costs_nothing_to_lose() -> None:
    model, graph, batches = faded("plain", 0.0)
    for change, error in departures(model, graph, batches, functional.cross_entropy).each():
        assert change[0] == pytest.approx(0, abs=1e-12)
        assert error[0] == pytest.approx(0, abs=1e-12)
        assert abs(change[1:]).min() > 1e-6


# Choosing


class Stairs(Macs):
    """MACs with both widths rounded up to multiples of 4."""

    def layer(self, shape: LayerShape) -> Cost:
        return Cost(float(-(-shape.in_channels // 4) * -(-shape.out_channels // 4)), "steps", "exact")

    def network(self, shapes: Sequence[LayerShape]) -> Cost:
        return Cost(sum(self.layer(shape).value for shape in shapes), "steps", "exact")


def made_up(changes: Sequence[Sequence[float]]) -> Departures:
    """Certain, so that a loss is what it says."""
    return Departures([np.array([one, one]) for one in changes], [() for _ in changes], np.array([8.0, 8.0]))


def brute_force(changes: Sequence[Sequence[float]], wiring: Wiring, fits: Callable[[Sequence[int]], bool]) -> float:
    best = np.inf
    for widths in product(*(range(2, len(one) + 1) for one in changes)):
        if fits(widths):
            best = min(
                best,
                sum(sum(sorted(max(change, 0) for change in one)[: len(one) - width]) for one, width in zip(changes, widths, strict=True)),
            )
    return best


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_cheapest_departures_of_all_that_fit_are_chosen(data: st.DataObject) -> None:
    network = Network("plain", (6, 7, 5), 8, 1, CLASSES)
    numbers = st.floats(-0.2, 1.0).map(lambda x: round(x, 3))
    changes = [data.draw(st.lists(numbers, min_size=width, max_size=width)) for width in network.widths]
    wiring, cost_model = network.wiring(), data.draw(st.sampled_from([Stairs(), Macs(), Parameters()]))
    least, most = (cost_model.network(wiring.shapes(widths)).value for widths in ((2, 2, 2), network.widths))
    limit = least + data.draw(st.floats(0, 1)) * (most - least)
    found = choose_removals(made_up(changes), wiring, cost_model, limit)
    widths = [len(one) - sum(len(r.channels) for r in found.removals if r.group == g) for g, one in enumerate(changes)]
    assert cost_model.network(wiring.shapes(widths)).value <= limit
    lost = sum(max(changes[removal.group][channel], 0) for removal in found.removals for channel in removal.channels.tolist())
    fewest = brute_force(changes, wiring, lambda widths: cost_model.network(wiring.shapes(widths)).value <= limit)
    assert lost == pytest.approx(fewest, abs=1e-6)
    assert min(widths) >= 2


def test_a_channel_goes_at_its_error_when_it_seems_to_do_harm() -> None:
    """Two that seem to do harm: the less certain one stays longer, and both stay where there is room."""
    wiring = Network("plain", (3, 4), 8, 1, CLASSES).wiring()
    changes = [np.array([[-0.3, -0.01, 0.5], [0.2, -0.01, 0.5]]), np.full((2, 4), 1.0)]
    found = Departures(changes, [(), ()], np.array([8.0, 8.0]))
    full = Macs().network(wiring.shapes()).value
    assert choose_removals(found, wiring, Macs(), full - 1).removals[0].channels.tolist() == [1]
    assert [len(removal.channels) for removal in choose_removals(found, wiring, Macs(), full).removals] == [1]


def test_chosen_channels_can_be_removed_and_free_what_was_asked() -> None:
    model, graph, batches = trained("mobilenet_v2")
    present = Macs().network(graph.wiring.shapes()).value
    found = departures(model, graph, batches, functional.cross_entropy)
    shrinkage = choose_removals(found, graph.wiring, Macs(), 0.9 * present)
    narrower, _ = remove_channels(model, graph, shrinkage.removals)
    assert Macs().network(find_groups(narrower, batches[0][0][:1]).wiring.shapes()).value <= 0.9 * present
    change = loss_of(narrower, batches) - loss_of(model, batches)
    chance, _ = remove_channels(model, graph, [Removal(one.group, torch.arange(len(one.channels))) for one in shrinkage.removals])
    assert change < loss_of(chance, batches) - loss_of(model, batches)
    with pytest.raises(ValueError, match="raise the limit"):
        choose_removals(found, graph.wiring, Macs(), 1.0)


def test_a_loss_that_is_no_number_is_refused_by_name() -> None:
    model, graph, batches = trained("plain")
    poisoned = fresh_net("plain").double()
    poisoned.load_state_dict(model.state_dict())
    with torch.no_grad():
        poisoned.get_parameter("classifier.weight")[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"without a channel of group 0 \(blocks.0.conv"):
        departures(poisoned.eval(), graph, batches, functional.cross_entropy)
