"""What a growth round adds: the candidates that gain most within its limit, if their gain is reliable."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from costs.model import Budget, Cost
from costs.shapes import Wiring
from growth import distributed
from growth.events import Outcome, Proposal
from growth.operators.base import Candidates
from growth.operators.choice import Floats, Menu, Pick, channels_added, menus, picked
from growth.prediction import Prediction
from growth.reliability import FreshSample
from growth.removal import Removal
from growth.selection import Selection, select
from growth.shrinking import Departures, floors


@dataclass(frozen=True, slots=True)
class Room:
    """How far a round may grow: what it may cost, and the ``largest`` width of each group.

    New widths are multiples of ``multiple_of``, those that removals leave included.
    """

    wiring: Wiring
    budgets: Sequence[Budget]
    largest: Sequence[int]
    multiple_of: int = 1

    def pick(self, candidates: Sequence[Candidates], departures: Departures | None = None) -> tuple[list[Pick], list[Removal], float]:
        """Those of largest total gain that fit, with the departures that pay for them, and the optimality gap that was proven.

        A group is widened or made narrower, whichever is worth more.
        """
        groups = menus(candidates, self.wiring.widths, self.largest)
        if departures is None:
            selection = self._selected([menu.totals for menu in groups], self.wiring)
            return _picks(groups, selection.counts), [], selection.gap
        keeps = departures.keeps(self._floors())
        totals = [np.append(keep.totals, keep.totals[-1] + menu.totals[1:]) for keep, menu in zip(keeps, groups, strict=True)]
        narrowest = replace(self.wiring, widths=tuple(keep.floor for keep in keeps))
        selection = self._selected(totals, narrowest)
        added = [max(0, after - width) for after, width in zip(selection.widths, self.wiring.widths, strict=True)]
        return _picks(groups, added), departures.leaving(keeps, selection.widths), selection.gap

    def fill(self, fillers: Sequence[Candidates]) -> list[Candidates]:
        """The most channels that fit, from one set of candidates per group."""
        room = [most - width for most, width in zip(self.largest, self.wiring.widths, strict=True)]
        free = [max(0, min(len(one.offspring.parents), more)) for one, more in zip(fillers, room, strict=True)]
        counts = self._selected([np.arange(count + 1.0) for count in free], self.wiring).counts
        return [one.take(torch.arange(count)) for one, count in zip(fillers, counts, strict=True) if count]

    def _selected(self, totals: Sequence[Floats], wiring: Wiring) -> Selection:
        """By the first of several processes: a solver that ran out of time would not find the same everywhere."""
        found = select(totals, wiring, self.budgets, multiple_of=self.multiple_of, kept=self.wiring.widths)
        return distributed.of_first(found)

    def _floors(self) -> list[int]:
        """How narrow each group may become."""
        lowest = zip(floors(self.wiring.widths), self.wiring.widths, strict=True)
        return [min(width, -(-floor // self.multiple_of) * self.multiple_of) for floor, width in lowest]

    def obstacle(self, candidates: Sequence[Candidates]) -> tuple[Outcome, str]:
        """Why nothing was picked."""
        useful = [one for one in candidates if one.gain is not None and (one.gain > 0).any()]
        if not useful:
            return "no_gain", "nothing that could be added is predicted to lower the loss"
        for one in useful:
            group = one.offspring.group
            if self.wiring.widths[group] + one.offspring.added <= self.largest[group]:
                limits = " and ".join(f"{budget.limit:.6g} {budget.cost_model.unit}" for budget in self.budgets)
                return "budget", f"nothing that gains fits the round's limit of {limits}"
        return "widest", "every group that would gain is as wide as max_growth allows"


def _picks(groups: Sequence[Menu], counts: Sequence[int]) -> list[Pick]:
    return [pick for menu, count in zip(groups, counts, strict=True) for pick in menu.chosen(count)]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a round does and why.  ``predicted`` is the change by the ``chosen``; they are added only if ``outcome`` is "grown"."""

    outcome: Outcome
    reason: str
    ranked: Sequence[Candidates]  # all, with the gains by which they were ranked
    gap: float
    chosen: Sequence[Candidates]
    predicted: Prediction
    judging: FreshSample  # what ``predicted`` was measured on
    fresh: FreshSample  # all fresh images that were used
    scale: float = 1.0  # how far the chosen go, in units of the split step
    leaving: Sequence[Removal] = ()  # what makes room for the chosen
    filler: Sequence[Candidates] = ()  # takes what room is left

    @property
    def taken(self) -> Sequence[Candidates]:
        """What is added."""
        return [*(self.chosen if self.outcome == "grown" else ()), *self.filler]

    @property
    def removed(self) -> Sequence[Removal]:
        """What goes."""
        return self.leaving if self.outcome == "grown" else ()

    def filled(self, fillers: Sequence[Candidates], room: Room) -> Choice:
        """With the most of these channels that the room still holds, one beside each parent that nothing else was taken of.

        No gain is claimed for them, so they are chosen by cost alone.
        """
        net = net_channels(self.taken, self.removed, len(room.largest))
        wider = replace(room, wiring=replace(room.wiring, widths=tuple(map(sum, zip(room.wiring.widths, net, strict=True)))))
        filler = wider.fill([_beside(one, self.taken, self.removed) for one in fillers])
        if not filler:
            return self
        added = f"{sum(one.channels for one in filler)} channels that nothing reads yet took the room that was left"
        outcome: Outcome = self.outcome if self.outcome == "grown" else "filled"
        return replace(self, outcome=outcome, filler=filler, reason=f"{self.reason}; {added}")

    def proposal(self, number: int, room: Room, cost_before: Cost, loss_before: float, split_step: float) -> Proposal:
        """The choice as round ``number`` of a run with this ``split_step`` reports it, before anything is added."""
        reliable = [
            (one.offspring.group, one.offspring.parents.numpy()[each.reliable])
            for one, each in zip(self.ranked, self.fresh.each(), strict=True)
        ]
        gaining = [(one.offspring.group, one.offspring.parents[one.gain > 0].numpy()) for one in self.ranked if one.gain is not None]
        return Proposal(
            number=number,
            widths_before=room.wiring.widths,
            channels_added=net_channels(self.taken, self.removed, len(room.largest)),
            added_by=added_by(self.taken) | removed_by(self.removed),
            cost_before=cost_before,
            limit=room.budgets[0].limit,
            split_step=self.scale * split_step,
            predicted_change=self.predicted.change,
            predicted_error=self.predicted.error,
            change_at_growth=None,
            loss_before=loss_before,
            channels_scored=sum(room.wiring.widths),
            channels_gaining=len({(group, int(parent)) for group, parents in gaining for parent in parents}),
            channels_reliable=len({(group, int(parent)) for group, parents in reliable for parent in parents}),
            fresh_images=self.fresh.images,
            gap=self.gap,
            outcome=self.outcome,
            reason=self.reason,
        )


def _beside(fillers: Candidates, taken: Sequence[Candidates], removed: Sequence[Removal]) -> Candidates:
    """Those whose parent neither grows otherwise nor goes."""
    group, parents = fillers.offspring.group, fillers.offspring.parents
    busy = [one.offspring.parents for one in taken if one.offspring.group == group]
    busy += [one.channels for one in removed if one.group == group]
    return fillers.take((~torch.isin(parents, torch.cat([parents[:0], *busy]))).nonzero().flatten())


def choose(candidates: Sequence[Candidates], scoring_images: int, draw: Callable[[int], FreshSample], draws: int, room: Room) -> Choice:
    """Rank all candidates with fresh images, select, judge the selected on others; with more images while their gain is not reliable.

    The best of a ranking look better on its images than they are, so images that ranked never judge.  A sample whose judgement is not
    reliable joins the ranking, and the next one judges a new selection.  When the last of ``draws`` has judged so, nothing is added.
    """
    ranking = draw(0)
    for number in range(1, draws):
        known = ranked(candidates, scoring_images, ranking)
        picks, removals, gap = room.pick(known, ranking.departures)
        if not picks:
            return _nothing(known, gap, room, ranking)
        judging = draw(number)
        choice = _judged(known, picks, removals, gap, judging, ranking.joined(judging))
        if choice.predicted.reliable:
            return choice
        ranking = choice.fresh
    return replace(choice, outcome="no_reliable_gain", reason=_doubt(choice))


def ranked(candidates: Sequence[Candidates], scoring_images: int, ranking: FreshSample) -> list[Candidates]:
    """The same candidates with gains to rank by; none where the loss does not fall on the fresh images alone.

    The gain is the mean over scoring and fresh images.  The scoring images, to which candidates were fitted, make all gains too large
    but tell good ones from bad: with both, the best that are chosen are better than by either alone (docs/decisions/003).
    """
    fresh_part = ranking.images / (ranking.images + scoring_images)
    known = []
    for one, fresh in zip(candidates, ranking.each(), strict=True):
        assert one.gain is not None
        change = torch.from_numpy(fresh.change)
        known.append(replace(one, gain=torch.where(change < 0, (1 - fresh_part) * one.gain - fresh_part * change, 0.0)))
    return known


def take(candidates: Sequence[Candidates], judging: FreshSample, room: Room) -> Choice:
    """What a ranking that claims no gain likes best, whatever fresh images say about it."""
    picks, _, gap = room.pick(candidates)
    if not picks:
        return _nothing(candidates, gap, room, judging)
    return _judged(candidates, picks, [], gap, judging, judging)


def everything(candidates: Sequence[Candidates]) -> list[Pick]:
    """All candidates of all sets."""
    return [Pick(source, torch.arange(len(one.offspring.parents))) for source, one in enumerate(candidates)]


def added_by(chosen: Sequence[Candidates]) -> dict[str, int]:
    """Channels added, by operator; the one that adds most first."""
    counts: Counter[str] = Counter()
    for one in chosen:
        counts[one.operator] += one.channels
    return dict(counts.most_common())


def digest(choice: Choice) -> str:
    """Of everything that is added and removed, bit for bit."""
    found = hashlib.sha256(repr([(one.group, one.channels.tolist()) for one in choice.removed]).encode())
    for one in choice.taken:
        added = one.offspring
        statistics = [part for known in added.statistics if known is not None for part in known]
        found.update(f"{one.operator} {added.group}".encode())
        for tensor in (added.parents, added.moves, added.shares, *added.reads, *statistics):
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def removed_by(removals: Sequence[Removal]) -> dict[str, int]:
    """Channels removed, below 0."""
    gone = sum(len(one.channels) for one in removals)
    return {"removal": -gone} if gone else {}


def net_channels(chosen: Sequence[Candidates], removals: Sequence[Removal], groups: int) -> tuple[int, ...]:
    """By group, channels added, or below 0 where some go."""
    counts = list(channels_added(chosen, groups))
    for one in removals:
        counts[one.group] -= len(one.channels)
    return tuple(counts)


def summary(chosen: Sequence[Candidates], removals: Sequence[Removal] = ()) -> str:
    """In words."""
    gone = sum(len(one.channels) for one in removals)
    return (
        f"added {sum(one.channels for one in chosen)} channels: "
        + ", ".join(f"{count} by {operator}" for operator, count in added_by(chosen).items())
        + (f"; removed {gone} to make room" if gone else "")
    )


def _judged(
    candidates: Sequence[Candidates], picks: Sequence[Pick], removals: Sequence[Removal], gap: float, judging: FreshSample,
    fresh: FreshSample,
) -> Choice:  # fmt: skip
    """The selected candidates with what other images say about them."""
    chosen, predicted = picked(candidates, picks), judging.prediction(picks, removals)
    return Choice("grown", summary(chosen, removals), candidates, gap, chosen, predicted, judging, fresh, leaving=removals)


def _doubt(choice: Choice) -> str:
    change, error = choice.predicted.change, choice.predicted.error
    return f"no reliable gain: predicted {change:+.4g} ± {error:.2g} nats on {choice.judging.images} fresh images"


def _nothing(candidates: Sequence[Candidates], gap: float, room: Room, fresh: FreshSample) -> Choice:
    """Nothing is added, and why."""
    outcome, reason = room.obstacle(candidates)
    return Choice(outcome, reason, candidates, gap, [], Prediction(0.0, 0.0), fresh, fresh)
