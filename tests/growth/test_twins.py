"""Exact twins add no function, at the split or after any training; families stay even."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from costs.families import Family, Network
from costs.model import Macs
from growth.config import GrowthConfig
from growth.events import Finished, Scored
from growth.groups import find_groups
from growth.loop import Growth
from growth.networks import build
from growth.training import Data
from growth.twins import families, to_double, twin

PLANS: dict[Family, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {
    "plain": ((3, 4), [(5, 8), (7, 8), (11, 13)]),
    "mobilenet_v1": ((4,) * 14, [(7,) * 14, (4 * 2,) * 14, (13,) * 14]),
}


@pytest.mark.parametrize("family", PLANS)
def test_a_network_computes_the_same_after_any_number_of_rounds(family: Family) -> None:
    seed, plan = PLANS[family]
    model = build(Network(family, seed, 16, 1, 3), torch.Generator().manual_seed(0)).double().eval()
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = model(images)
    for number, widths in enumerate(plan):
        model, _ = twin(model, find_groups(model, images), seed, plan[:number], widths)
        assert find_groups(model, images).wiring.widths == widths
        torch.testing.assert_close(model(images), expected)


class Concatenating(nn.Module):
    """Two groups side by side, before a norm, a convolution and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 2, 3)
        self.norm, self.both, self.head = nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3), nn.Linear(4 * 16, 3)

    def forward(self, images: Tensor) -> Tensor:
        beside = functional.silu(self.norm(torch.cat([self.left(images), self.right(images)], 1)))
        scores: Tensor = self.head(functional.silu(self.both(beside)).flatten(1))
        return scores


def test_groups_that_are_concatenated_share_alike() -> None:
    """Uneven families would show: each consumer must read all twins of a family with the same weights."""
    torch.manual_seed(0)
    model: nn.Module = Concatenating().double().eval()
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    expected, plan = model(images), [(5, 3, 6), (7, 6, 11)]
    for number, widths in enumerate(plan):
        model, _ = twin(model, find_groups(model, images), (3, 2, 4), plan[:number], widths)
        torch.testing.assert_close(model(images), expected)
    left, right, both = (torch.tensor(families(seed, [widths[i] for widths in plan])) for i, seed in enumerate((3, 2, 4)))
    read = model.get_parameter("both.weight").split([7, 6], 1)
    flat = model.get_parameter("head.weight").view(3, 11, 16)
    for weight, members in ((read[0], left), (read[1], right), (flat, both)):
        for family in range(int(members.max()) + 1):
            twins = weight[:, members == family]
            torch.testing.assert_close(twins, twins[:, :1].expand_as(twins))


@given(seed=st.integers(1, 12), factors=st.lists(st.floats(1, 2), max_size=5))
def test_families_stay_even(seed: int, factors: list[float]) -> None:
    widths, width = [], seed
    for factor in factors:
        width = int(width * factor)
        widths.append(width)
    members = families(seed, widths)
    sizes = Counter(members)
    assert len(members) == width
    assert set(sizes) == set(range(seed))
    # each channel is doubled at most once a round, which may hold back a small family among few
    assert max(sizes.values()) <= 2 * min(sizes.values()) + 1


@pytest.mark.parametrize("width", [3, 9])
def test_a_width_out_of_reach_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"planned width is {width}; from 4, one round of twins reaches 4 to 8"):
        to_double([0, 1, 2, 3], width)


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 1, 8, 8, generator=generator), torch.randint(3, (count,), generator=generator))


DATA = Data(images(64, 0), images(20, 1), images(20, 2))
SEED = Network("plain", (3, 4), 8, 1, 3)
CONFIG = GrowthConfig(
    limit=1e9, rounds=3, steps_per_round=8, final_steps=8, batch_size=16, scoring_samples=32, fresh_samples=16, learning_rate=0.05,
    planned_widths=PLANS["plain"][1],
)  # fmt: skip


def test_twins_stay_twins_in_training() -> None:
    """After three rounds, the second and third of which double some twins and not others."""
    growth = Growth.start(SEED, DATA, Macs(), replace(CONFIG, learning_rate=0.02))
    list(growth.events())
    for number, (group, seed_width) in enumerate(zip(growth.graph.groups, SEED.widths, strict=True)):
        members = torch.tensor(families(seed_width, [widths[number] for widths in PLANS["plain"][1]]))
        for producer in group.producers:
            weight = growth.model.get_parameter(f"{producer}.weight").detach()
            for family in range(seed_width):
                twins = weight[members == family]
                torch.testing.assert_close(twins, twins[:1].expand_as(twins), rtol=1e-3, atol=1e-5)


def test_a_plan_is_resumed_at_any_of_its_events(tmp_path: Path) -> None:
    undisturbed = Growth.start(SEED, DATA, Macs(), CONFIG)
    expected = list(undisturbed.events())
    growth, seen = Growth.start(SEED, DATA, Macs(), CONFIG), []
    while not seen or not isinstance(seen[-1], Finished):
        seen.append(next(growth.events()))
        growth.save(tmp_path / "run")
        growth = Growth.resume(tmp_path / "run", DATA, Macs())
    assert [replace(event, seconds=0) if isinstance(event, Scored) else event for event in seen] == [
        replace(event, seconds=0) if isinstance(event, Scored) else event for event in expected
    ]
    for name, tensor in growth.model.state_dict().items():
        assert torch.equal(tensor, undisturbed.model.state_dict()[name]), name
