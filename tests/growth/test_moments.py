"""Rounds open where they were asked to, in shares of a compute that stays the same."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from costs.families import Network
from costs.model import Budget, Macs, Parameters
from growth.config import GrowthConfig
from growth.events import Event, Finished, Scored, Step
from growth.loop import Growth
from growth.moments import at_moments, planned_macs
from growth.training import Data

SEED = Network("plain", (4, 6), 8, 1, 3)
WIRING = SEED.wiring()
LIMIT = 5 * Macs().network(WIRING.shapes()).value
CONFIG = GrowthConfig(limit=LIMIT, rounds=2, steps_per_round=4, final_steps=4, batch_size=16, scoring_samples=32, fresh_samples=16)


@settings(max_examples=40, deadline=None)
@given(
    moments=st.lists(st.floats(0.02, 0.98), min_size=1, max_size=4, unique=True).map(sorted),
    limit=st.floats(1, 9),
    params=st.floats(1, 9),
    final=st.integers(100, 3000),
)
def test_rounds_open_at_their_shares_of_the_same_planned_compute(moments: list[float], limit: float, params: float, final: int) -> None:
    budgets = [Budget(Macs(), limit * LIMIT / 5), Budget(Parameters(), params * Parameters().network(WIRING.shapes()).value)]
    before = GrowthConfig(limit=budgets[0].limit, rounds=len(moments), steps_per_round=1000, final_steps=final)
    after = at_moments(WIRING, budgets, before, moments)
    macs = planned_macs(WIRING, budgets, before)
    assert all(one <= other for one, other in pairwise(macs))
    step, whole = max(macs), sum(1000 * each for each in macs) + final * macs[-1]
    spent = list(accumulate(each * steps for each, steps in zip([*macs, macs[-1]], [*after.stage_steps, after.final_steps], strict=True)))
    assert spent[-1] == pytest.approx(whole, abs=len(spent) * step)
    assert spent[: len(moments)] == pytest.approx([moment * whole for moment in moments], abs=len(spent) * step)
    assert after.final_steps / after.stage_steps[-1] == pytest.approx(
        final / 1000, rel=0.1, abs=2 * max(1, final / 1000) / after.stage_steps[-1]
    )


def test_stages_of_unequal_length_open_rounds_there_and_resume(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = [
        TensorDataset(torch.randn(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (70, 24, 24)
    ]
    config = GrowthConfig(
        limit=LIMIT,
        rounds=2,
        steps_per_round=(5, 2, 3),
        final_steps=4,
        batch_size=16,
        scorer="random",
        scoring_samples=32,
        fresh_samples=16,
    )
    growth = Growth.start(SEED, Data(*images), Macs(), config)
    events: list[Event] = []
    for event in growth.events():
        events.append(event)
        growth.save(tmp_path / str(len(events)))
    opened = [sum(isinstance(before, Step) for before in events[:at]) for at, event in enumerate(events) if isinstance(event, Scored)]
    assert opened == [5, 7]
    assert isinstance(events[-1], Finished)
    assert (events[-1].steps, growth.total_steps) == (14, 14)
    for number in range(4, len(events)):
        *_, last = Growth.resume(tmp_path / str(number), Data(*images), Macs()).events()
        assert last == events[-1]


def test_too_few_stages_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps_per_round is \(5, 2\); give one number, or 3 of 0 to 1e\+09"):
        GrowthConfig(limit=1, rounds=2, steps_per_round=(5, 2))
