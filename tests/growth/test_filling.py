"""Room that no reliable gain asks for goes to the most channels that fit, and these change nothing when they come."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from costs.families import Network
from costs.model import Budget, Macs
from growth.choosing import Choice, Room
from growth.config import GrowthConfig
from growth.events import Outcome, Round
from growth.loop import Growth
from growth.offspring import Offspring
from growth.operators import Candidates
from growth.prediction import Prediction
from growth.reliability import FreshSample
from growth.training import Data

SEED = Network("plain", (4, 4), 8, 1, 3)
SEED_MACS = Macs().network(SEED.wiring().shapes()).value
CONFIG = GrowthConfig(
    limit=2.2 * SEED_MACS, rounds=2, steps_per_round=3, final_steps=24, batch_size=16, scoring_samples=32, fresh_samples=16,
    learning_rate=0.05,
)  # fmt: skip


def images(count: int, seed: int, pattern: float) -> TensorDataset:
    """Patterns of three classes in noise, with classes by chance where ``pattern`` is 0."""
    patterns = pattern * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (count,), generator=generator)
    return TensorDataset(patterns[classes] + 0.3 * torch.randn(count, 1, 8, 8, generator=generator), classes)


DATA = Data(images(140, 0, 1.0), images(24, 1, 1.0), images(24, 2, 1.0))
NOISE = Data(images(140, 3, 0.0), images(24, 4, 0.0), images(24, 5, 0.0))


def some(operator: str, group: int, parents: list[int]) -> Candidates:
    moves, shares = torch.zeros(len(parents), 2, 9), torch.full((len(parents), 2), 0.5)
    gain = torch.ones(len(parents), dtype=torch.float64) if operator == "split" else None
    return Candidates(operator, Offspring(group, torch.tensor(parents), moves, shares), gain)


def decided(outcome: Outcome, chosen: list[Candidates]) -> Choice:
    sample = FreshSample([], [])
    return Choice(outcome, "why", [], 0.0, chosen, Prediction(-0.1, 0.01), sample, sample)


@settings(max_examples=40, deadline=None)
@given(
    split=st.lists(st.integers(0, 3), unique=True, max_size=4),
    doubtful=st.booleans(),
    times=st.floats(1.0, 4.0),
    largest=st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
def test_the_most_channels_that_fit_beside_what_was_chosen(
    split: list[int], doubtful: bool, times: float, largest: tuple[int, int]
) -> None:  # fmt: skip
    """Against all widths."""
    chosen = [some("split", 0, split)] if split and 4 + len(split) <= largest[0] else []
    start = (4 + (0 if doubtful or not chosen else len(split)), 4)
    limit = Macs().network(SEED.wiring().shapes(start)).value * times
    room = Room(SEED.wiring(), [Budget(Macs(), limit)], largest)
    fillers = [some("zero_output", group, [0, 1, 2, 3]) for group in (0, 1)]
    choice = decided("no_reliable_gain" if doubtful or not chosen else "grown", chosen).filled(fillers, room)

    widths = [4, 4]
    for one in choice.taken:
        widths[one.offspring.group] += len(one.offspring.parents)
    free = [range(a, min(most, 8) + 1) for a, most in zip(start, largest, strict=True)]
    possible = [a + b for a in free[0] for b in free[1] if Macs().network(SEED.wiring().shapes((a, b))).value <= limit]
    assert sum(widths) == max(possible)
    assert Macs().network(SEED.wiring().shapes(widths)).value <= limit
    parents = [(one.offspring.group, parent) for one in choice.taken for parent in one.offspring.parents.tolist()]
    assert len(set(parents)) == len(parents)
    assert (choice.outcome == "filled") == (sum(widths) > sum(start) and choice.taken == choice.filler)


def rounds_of(data: Data, config: GrowthConfig) -> list[Round]:
    growth = Growth.start(SEED, data, Macs(), config)
    return [event for event in growth.events() if isinstance(event, Round)]


@pytest.mark.parametrize("data", [DATA, NOISE], ids=["patterns", "noise"])
def test_no_round_leaves_room_for_another_channel(data: Data) -> None:
    for closed in rounds_of(data, replace(CONFIG, max_growth=64.0)):
        reached = closed.widths_after
        doubled = [width == 2 * before for width, before in zip(reached, closed.widths_before, strict=True)]
        wider = [tuple(width + (number == group) for number, width in enumerate(reached)) for group in range(2) if not doubled[group]]
        assert all(Macs().network(SEED.wiring().shapes(one)).value > closed.limit for one in wider)
        assert closed.cost_after.value <= closed.limit


def test_where_nothing_can_be_learned_cost_alone_decides_and_nothing_changes_at_growth() -> None:
    filled = [closed for closed in rounds_of(NOISE, CONFIG) if closed.outcome == "filled"]
    assert filled
    for closed in filled:
        assert closed.grew
        assert not closed.rolled_back
        assert set(closed.added_by) == {"zero_output"}
        assert closed.change_at_growth == pytest.approx(0, abs=1e-5)
        assert closed.reason.startswith(("no reliable gain: predicted", "nothing that could be added"))
        assert closed.reason.endswith("channels that nothing reads yet took the room that was left")


def test_a_loss_that_rises_with_the_rate_undoes_nothing() -> None:
    """The selection images have other classes than the training images, so all that is learned makes them worse."""
    sorted_out = DATA.selection.tensors  # type: ignore[attr-defined]  # a TensorDataset
    misleading = replace(DATA, selection=TensorDataset(sorted_out[0], (sorted_out[1] + 1) % 3))
    rising = rounds_of(misleading, replace(CONFIG, rounds=1, final_steps=60, learning_rate=0.2))
    falling = rounds_of(misleading, replace(CONFIG, rounds=1, final_steps=60, learning_rate=0.2, schedule="cosine"))
    assert [one.loss_after > one.loss_before for one in (*rising, *falling)] == [True, True]
    assert [one.rolled_back for one in (*rising, *falling)] == [False, True]
