"""The mathematics against closed forms and scipy's own test, and the rule in all its cases, also where growth did not pay."""

from __future__ import annotations

import json
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from growth.controls import CONTROLS
from store.spec import ControlName
from worker.verdict import delivered, paired, spread, verdict

LOSS = st.floats(0, 10).map(lambda value: round(value, 6))
PAIRS = st.lists(st.tuples(LOSS, LOSS), min_size=2, max_size=20)


def test_the_paired_interval_by_hand() -> None:
    """Differences -1, -2, -3: mean -2, sample sd 1, t(2 degrees, 97.5 %) = 4.302653, half width 4.302653 / sqrt(3)."""
    found = paired([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert (found.differences, found.mean, found.sd) == ((-1.0, -2.0, -3.0), -2.0, 1.0)
    assert (found.low, found.high) == pytest.approx((-4.484138, 0.484138), abs=1e-6)
    assert found.undecided
    assert not found.below_zero


def test_two_seeds_need_a_large_difference() -> None:
    """t(1 degree, 97.5 %) = 12.7062: differences of -0.9 and -1.1 (sd sqrt(0.02)) give -1 -+ 1.27062."""
    found = paired([0.1, 0.1], [1.0, 1.2])
    assert (found.low, found.high) == pytest.approx((-2.27062, 0.27062), abs=1e-5)


@given(PAIRS)
def test_the_interval_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    found = paired(ours, theirs)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean <= found.high
    if found.sd is not None and found.sd > 1e-6:
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    other_way = paired(theirs, ours)
    assert (other_way.mean, other_way.low, other_way.high) == pytest.approx((-found.mean, -found.high, -found.low))
    assert not (found.below_zero and other_way.below_zero)


@given(st.lists(LOSS, min_size=2, max_size=20), st.floats(-5, 5))
def test_a_shift_of_both_arms_changes_no_difference(losses: list[float], shift: float) -> None:
    found = paired([loss + shift for loss in losses], losses)
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.sd == pytest.approx(0, abs=1e-9)


def test_spread_is_of_the_sample() -> None:
    assert spread([1.0, 2.0, 4.0]) == {"mean": pytest.approx(7 / 3), "sd": pytest.approx(math.sqrt(7 / 3)), "values": [1.0, 2.0, 4.0]}


def test_one_seed_has_no_scatter() -> None:
    found = paired([0.2], [0.3])
    assert (found.mean, found.sd, found.low, found.high) == (pytest.approx(-0.1), None, None, None)
    for document in (found.document(), spread([0.2])):
        assert document["sd"] is None
        assert "one seed" in document["reason"]
        json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(
    ("controls", "paid", "words"),
    [
        ({"uniform": 0.3, "random": 0.4}, True, "Growing paid"),
        ({"uniform": 0.1, "random": 0.4}, False, "Growing did not pay: uniform did no worse"),
        ({"uniform": 0.2, "random": 0.4}, False, "Growing did not pay: uniform did no worse"),
        ({"uniform": 0.15, "random": 0.1}, False, "random and uniform did no worse"),
        ({}, None, "No control was run"),
    ],
)
def test_one_seed(controls: dict[str, float], paid: bool | None, words: str) -> None:
    found = verdict([0.2], {name: [loss] for name, loss in controls.items()})
    assert found["paid"] is paid
    assert words in found["sentence"]
    assert set(found["better_than"]) | set(found["not_better_than"]) == set(controls)
    assert found["undecided"] == []
    assert "interval" not in found["sentence"] + found["rule"]
    if controls:
        assert "not a significance statement" in found["sentence"]


FAR_WORSE, NEAR, FAR_BETTER = [0.5, 0.51, 0.52], [0.21, 0.19, 0.21], [0.1, 0.11, 0.12]


@pytest.mark.parametrize(
    ("controls", "paid", "better_than", "undecided", "words"),
    [
        ({"uniform": FAR_WORSE, "random": FAR_WORSE}, True, ["random", "uniform"], [], "Growing paid over 3 seeds"),
        ({"uniform": FAR_WORSE, "random": NEAR}, False, ["uniform"], ["random"], "That growing paid is not established over 3 seeds"),
        ({"uniform": FAR_BETTER, "random": NEAR}, False, [], ["random"], "Growing did not pay over 3 seeds"),
        ({"twins": FAR_BETTER, "random": FAR_WORSE}, False, ["random"], [], "better: twins (+0.0900 ["),
        ({}, None, [], [], "test loss is 0.2000 (sd 0.0100). No control was run"),
    ],
)
def test_seeds(controls: dict[str, list[float]], paid: bool | None, better_than: list[str], undecided: list[str], words: str) -> None:
    found = verdict([0.19, 0.2, 0.21], controls)
    assert (found["paid"], found["better_than"], found["undecided"]) == (paid, better_than, undecided)
    assert set(found["better_than"]) | set(found["not_better_than"]) == set(controls)
    assert words in found["sentence"]
    assert "95 % t interval" in found["rule"]


def test_equal_arms_are_undecided() -> None:
    """Growth that split nothing equals its twins, bit for bit."""
    found = verdict([0.1, 0.2], {"twins": [0.1, 0.2]})
    assert (found["paid"], found["undecided"]) == (False, ["twins"])


@pytest.mark.parametrize(
    ("final", "losses", "run", "why"),
    [
        ("inherit", {"grown": 0.3}, "grown", "keeps its weights"),
        ("retrain", {"grown": 0.1, "retrained": 0.2}, "retrained", "trained from scratch"),
        ("both", {"grown": 0.1, "retrained": 0.2, "uniform": 0.0}, "grown", "(grown 0.1000, retrained 0.2000)"),
        ("both", {"grown": 0.3, "retrained": 0.2}, "retrained", "lower loss on the selection images"),
    ],
)
def test_what_is_delivered(final: str, losses: dict[str, float], run: str, why: str) -> None:
    found = delivered(final, losses)  # type: ignore[arg-type]
    assert found["run"] == run
    assert why in found["why"]


def test_a_spec_can_name_every_control() -> None:
    assert get_args(ControlName) == CONTROLS
