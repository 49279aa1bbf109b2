"""The ranking over operators against brute force, and against the plain ranking where every candidate adds one channel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growth.offspring import Offspring
from growth.operators import Candidates
from growth.operators.choice import Menu, channels_added, menus, picked


def candidates(operator: str, added: int, gain: list[float] | None, parents: list[int], group: int = 0) -> Candidates:
    n = len(parents)
    offspring = Offspring(group, torch.tensor(parents), torch.zeros(n, added + 1, 2), torch.full((n, added + 1), 1 / (added + 1)))
    return Candidates(operator, offspring, None if gain is None else torch.tensor(gain, dtype=torch.float64))


def menu(found: list[Candidates], most: int) -> Menu:
    """Of one group that may add ``most`` channels."""
    return menus(found, [0], [most])[0]


def taken(one: Menu, found: list[Candidates], count: int) -> list[tuple[str, int, int, float]]:
    """(operator, channels added, parent, gain)"""
    return [
        (chosen.operator, chosen.offspring.added, parent, gain)
        for chosen in picked(found, one.chosen(count))
        for parent, gain in zip(chosen.offspring.parents.tolist(), chosen.gain.tolist(), strict=True)
    ]


gains = st.floats(-1, 2, allow_subnormal=False)


@given(table=st.lists(st.tuples(gains, gains, gains), min_size=1, max_size=5), most=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_totals_are_the_best_of_all_sets(table: list[tuple[float, float, float]], most: int) -> None:
    offered = [candidates(f"adds {k + 1}", k + 1, [row[k] for row in table], list(range(len(table)))) for k in range(3)]
    one = menu(offered, most)
    best = np.zeros(most + 1)
    for widths in itertools.product(range(4), repeat=len(table)):
        gain = sum(row[width - 1] for row, width in zip(table, widths, strict=True) if width)
        if sum(widths) <= most:
            best[sum(widths) :] = np.maximum(best[sum(widths) :], gain)
    assert one.totals == pytest.approx(best[: len(one.totals)], abs=1e-12)
    assert one.totals[-1] == pytest.approx(best[-1], abs=1e-12)
    for count in range(len(one.totals)):
        found = taken(one, offered, count)
        assert sum(gain for *_, gain in found) == pytest.approx(one.totals[count], abs=1e-12)
        assert sum(added for _, added, _, _ in found) <= count
        assert len({parent for _, _, parent, _ in found}) == len(found)
        assert all(gain > 0 for *_, gain in found)


@given(values=st.lists(st.integers(-20, 100).map(lambda number: number / 100), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_where_each_adds_one_it_is_the_plain_ranking_bit_for_bit(values: list[float]) -> None:
    offered = [candidates("split", 1, values, list(range(len(values))))]
    one = menu(offered, len(values))
    useful = np.sort([value for value in values if value > 0])[::-1]
    assert one.totals.tolist() == [0, *np.cumsum(useful)]
    for count in range(len(one.totals)):
        assert [parent for _, _, parent, _ in taken(one, offered, count)] == np.argsort(-np.array(values), kind="stable")[:count].tolist()


def test_an_unknown_or_broken_gain_is_refused() -> None:
    with pytest.raises(ValueError, match="zero_output claims no gain, so it can't be ranked"):
        menu([candidates("zero_output", 1, None, [0])], 1)
    with pytest.raises(ValueError, match="not finite"):
        menu([candidates("split", 1, [float("nan")], [0])], 1)


def test_groups_are_ranked_each_for_itself_within_their_largest_widths() -> None:
    both = [candidates("split", 1, [1, 2, 3], [0, 1, 2], 0), candidates("signed", 2, [4, 5, 6], [0, 1, 2], 1)]
    first, second = menus(both, (3, 3), (5, 6))
    assert first.totals.tolist() == [0, 3, 5]
    assert second.totals.tolist() == [0, 0, 6, 6]
    chosen = picked(both, [*first.chosen(2), *second.chosen(3)])
    assert [(one.operator, one.offspring.parents.tolist()) for one in chosen] == [("split", [2, 1]), ("signed", [2])]
    assert channels_added(chosen, 2) == (2, 2)
    assert [one.totals.tolist() for one in menus(both, (3, 3), (2, 3))] == [[0], [0]]
