"""How a round chooses: images that judge have not ranked, more of them while the gain may be chance, and a plain answer when they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costs.families import Network
from costs.model import Budget, Macs
from growth.choosing import Choice, Room, choose, ranked, take
from growth.offspring import Offspring
from growth.operators import Candidates
from growth.operators.choice import channels_added
from growth.reliability import FreshSample
from growth.shrinking import Departures

WIRING = Network("plain", (4, 4), 8, 1, 3).wiring()
SEED_MACS = Macs().network(WIRING.shapes()).value
ROOM = Room(WIRING, [Budget(Macs(), 2 * SEED_MACS)], (16, 16))
FITTED = [np.array([-4.0, -3.0, -2.0, -1.0]), np.array([-2.0, -2.5, -1.5, -0.5])]


def candidates(changes: list[np.ndarray] = FITTED) -> list[Candidates]:
    """One channel beside each, changing the loss of the scoring images by so much."""
    return [
        Candidates("split", Offspring(group, torch.arange(4), torch.zeros(4, 2, 9), torch.full((4, 2), 0.5)), -torch.from_numpy(change))
        for group, change in enumerate(changes)
    ]


def sample(means: list[np.ndarray], spread: float, seed: int, images: int = 64) -> FreshSample:
    """8 batches whose changes scatter around these means by ``spread``."""
    rng = np.random.default_rng(seed)
    batches = [(torch.zeros(images // 8, 1), torch.zeros(images // 8)) for _ in range(8)]
    return FreshSample(batches, [mean + spread * rng.standard_normal((8, len(mean))) for mean in means])


def drawing(means: list[np.ndarray], spread: float, seed: int) -> tuple[Callable[[int], FreshSample], list[int]]:
    """A draw that doubles, and the numbers of the draws that were asked for."""
    asked: list[int] = []

    def draw(number: int) -> FreshSample:
        asked.append(number)
        return sample(means, spread / 2 ** (max(number - 1, 0) / 2), 1000 * seed + number, 64 * 2 ** max(number - 1, 0))

    return draw, asked


def decide(means: list[np.ndarray], spread: float, seed: int = 0, draws: int = 4) -> tuple[Choice, list[int]]:
    draw, asked = drawing(means, spread, seed)
    return choose(candidates(), 64, draw, draws, ROOM), asked


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_departures_pay_for_the_widths_that_are_worth_most(data: st.DataObject) -> None:
    """Against all widths: what is gained, less what is lost, within the limit; at most a quarter of a group goes, and what changes
    becomes a multiple."""
    numbers = st.floats(0.01, 4).map(lambda x: round(x, 2))
    gains, losses = ([np.array(data.draw(st.lists(numbers, min_size=8, max_size=8))) for _ in range(2)] for _ in range(2))
    wiring, multiple_of = Network("plain", (8, 8), 8, 1, 3).wiring(), data.draw(st.integers(1, 5))
    present = Macs().network(wiring.shapes()).value
    limit = present * data.draw(st.floats(1, 1.3))
    room = Room(wiring, [Budget(Macs(), limit)], (12, 12), multiple_of)
    offered = [
        Candidates("split", Offspring(group, torch.arange(8), torch.zeros(8, 2, 9), torch.full((8, 2), 0.5)), torch.from_numpy(gain))
        for group, gain in enumerate(gains)
    ]
    departures = Departures([np.array([one, one]) for one in losses], [(), ()], np.array([8.0, 8.0]))
    picks, removals, _ = room.pick(offered, departures)
    widths = [8, 8]
    for pick in picks:
        widths[pick.source] += len(pick.rows)
    for removal in removals:
        widths[removal.group] -= len(removal.channels)
    assert not {pick.source for pick in picks} & {removal.group for removal in removals}

    def worth(group: int, width: int) -> float:
        if width < 8:
            return -np.sort(losses[group])[: 8 - width].sum()
        return np.sort(gains[group])[::-1][: width - 8].sum()

    able = [width for width in range(6, 13) if width == 8 or width % multiple_of == 0]
    possible = [worth(0, a) + worth(1, b) for a in able for b in able if Macs().network(wiring.shapes((a, b))).value <= limit]
    found = sum(gains[pick.source][pick.rows].sum() for pick in picks)
    found -= sum(losses[removal.group][removal.channels].sum() for removal in removals)
    assert Macs().network(wiring.shapes(widths)).value <= limit
    assert set(widths) <= set(able)
    assert found == pytest.approx(max(possible), abs=1e-6)


def test_a_clear_gain_is_split_at_the_first_judgement() -> None:
    choice, asked = decide(FITTED, 0.1)
    assert choice.outcome == "grown"
    assert asked == [0, 1]
    added = sum(channels_added(choice.taken, 2))
    assert added == sum(one.channels for one in choice.taken) > 0
    assert choice.reason == f"added {added} channels: {added} by split"
    assert (choice.judging.images, choice.fresh.images) == (64, 128)


def test_noise_is_seldom_split_and_clear_gains_always() -> None:
    """Means of zero: the ranking finds winners all the same, and other images see through them."""
    nothing = [np.zeros(4), np.zeros(4)]
    outcomes = [decide(nothing, 1.0, seed)[0].outcome for seed in range(80)]
    assert outcomes.count("grown") / len(outcomes) < 0.15  # three looks at 2 errors with 7 degrees of freedom: 4 % each
    assert outcomes.count("no_reliable_gain") / len(outcomes) > 0.75
    assert {decide(FITTED, 1.0, seed)[0].outcome for seed in range(20)} == {"grown"}


def test_a_doubtful_gain_is_judged_with_more_images_until_it_is_sure() -> None:
    looks = [len(decide([0.1 * mean for mean in FITTED], 1.5, seed, draws=9)[1]) - 1 for seed in range(30)]
    assert max(looks) > min(looks) == 1
    assert {decide([0.1 * mean for mean in FITTED], 1.5, seed, draws=12)[0].outcome for seed in range(30)} == {"grown"}


def test_judging_images_have_not_ranked() -> None:
    """Each judgement is of the last draw alone, and of the channels that all draws before it rank best."""
    means = [np.full(4, 0.02), np.full(4, 0.02)]
    choice, asked = decide(means, 1.0, seed=5, draws=3)
    draw, _ = drawing(means, 1.0, 5)
    assert choice.outcome == "no_reliable_gain"
    assert asked == [0, 1, 2]
    first, second, last = map(draw, range(3))
    known = ranked(candidates(), 64, first.joined(second))
    assert all(torch.equal(one.gain, other.gain) for one, other in zip(choice.ranked, known, strict=True))
    assert choice.predicted == last.prediction(ROOM.pick(known)[0])
    assert (choice.judging.images, choice.fresh.images) == (128, 256)
    change, error = choice.predicted.change, choice.predicted.error
    assert choice.reason == f"no reliable gain: predicted {change:+.4g} ± {error:.2g} nats on 128 fresh images"
    assert choice.chosen
    assert not choice.taken


@given(seed=st.integers(0, 10_000), spread=st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_a_candidate_that_loses_on_fresh_images_is_never_selected(seed: int, spread: float) -> None:
    draw, _ = drawing([np.zeros(4), np.zeros(4)], spread, seed)
    choice = choose(candidates(), 64, draw, 2, ROOM)
    fresh = draw(0).each()
    for one in choice.chosen:
        assert (fresh[one.offspring.group].change[one.offspring.parents.numpy()] < 0).all()


def test_ranks_weigh_scoring_and_fresh_images_alike() -> None:
    fresh = sample([np.array([-1.0, -4.0, 1.0, -2.0]), np.ones(4)], 0.0, 0, images=128)
    first, second = ranked(candidates(), 64, fresh)
    assert first.gain.numpy() == pytest.approx(np.array([(2 * 1 + 4) / 3, (2 * 4 + 3) / 3, 0, (2 * 2 + 1) / 3]))
    assert second.gain.tolist() == [0, 0, 0, 0]


def test_reasons_to_add_nothing() -> None:
    good, bad = sample(FITTED, 0.0, 0), sample([np.ones(4), np.ones(4)], 0.0, 0)
    full = replace(ROOM, budgets=[Budget(Macs(), SEED_MACS)])
    cases: list[tuple[FreshSample, Room, str, str]] = [
        (bad, ROOM, "no_gain", "nothing that could be added is predicted to lower the loss"),
        (good, full, "budget", f"nothing that gains fits the round's limit of {SEED_MACS:.6g} MACs"),
        (good, replace(ROOM, largest=(4, 4)), "widest", "every group that would gain is as wide as max_growth allows"),
    ]
    for fresh, room, outcome, reason in cases:
        asked: list[int] = []

        def draw(number: int, fresh: FreshSample = fresh, asked: list[int] = asked) -> FreshSample:
            asked.append(number)
            return fresh

        choice = choose(candidates(), 64, draw, 4, room)
        assert (choice.outcome, choice.reason) == (outcome, reason)
        assert (choice.predicted.change, list(choice.chosen), asked) == (0, [], [0])


def test_a_ranking_that_claims_nothing_is_taken_as_it_is() -> None:
    against = sample([np.ones(4), np.ones(4)], 0.0, 0)
    choice = take(candidates(), against, ROOM)
    assert choice.outcome == "grown"
    assert choice.predicted.change == pytest.approx(sum(channels_added(choice.taken, 2)))
    assert choice.predicted == against.prediction(ROOM.pick(candidates())[0])


def test_all_operators_share_one_ranking_and_a_parent_grows_once() -> None:
    """A candidate that adds two channels competes with those that add one, by what it gains on the same images."""
    split, twice = candidates(), candidates([np.array([-9.0, -1.0, -1.0, -1.0]), np.array([-1.0, -1.0, -1.0, -1.0])])
    pairs = [
        Candidates("pair", Offspring(one.offspring.group, torch.arange(4), torch.zeros(4, 3, 9), torch.full((4, 3), 1 / 3)), one.gain)
        for one in twice
    ]
    fresh = FreshSample(sample(FITTED, 0.0, 0).batches, [np.repeat(-one.gain.numpy()[None], 8, 0) for one in (*split, *pairs)])
    choice = choose([*split, *pairs], 64, lambda _: fresh, 2, replace(ROOM, budgets=[Budget(Macs(), 1e9)]))
    assert {one.operator: one.offspring.parents.tolist() for one in choice.taken if one.offspring.group == 0} == {
        "pair": [0], "split": [1, 2, 3],
    }  # fmt: skip
    assert channels_added(choice.taken, 2) == (5, 5)
    assert choice.reason == "added 10 channels: 6 by split, 4 by pair"
    assert choice.predicted.change == pytest.approx(-9 - 6 - 7)
