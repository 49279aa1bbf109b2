"""What a growing network reports on its way.  Plain data; losses are mean cross-entropies in nats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from costs.model import Cost
from growth.training import Evaluation

# What a round did.  no_gain: nothing that could be added is predicted to lower the loss.  no_reliable_gain: what the best promise may
# be chance, or no step keeps it.  budget: nothing that gains fits the round's limit.  widest: all groups that would gain are as wide as
# they may become.  filled: one of these, and channels chosen by cost alone took the room.  planned: the widths were given, and channels
# became exact twins.  slimmed: the channels of smallest scales were removed.
Outcome = Literal["grown", "no_reliable_gain", "no_gain", "budget", "widest", "filled", "planned", "slimmed"]


@dataclass(frozen=True, slots=True)
class Step:
    """A training step was taken.  ``step`` counts from 1; ``round`` is 0 for the seed and ``rounds + 1`` for the final stage.

    ``loss`` and ``accuracy`` are those of the batch, in train mode, before the step.
    """

    step: int
    total_steps: int
    round: int
    loss: float
    accuracy: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a round set out to do, known right after it has grown.

    ``channels_added`` counts by group, ``added_by`` by operator; both are below 0 where channels were removed.  ``limit`` is the round's
    share of the budget.  ``predicted_change`` of the loss is what the selected candidates do to it by their laws (``growth.operators.law``)
    at ``split_step``, measured on images that neither chose nor shaped them; ``predicted_error`` is its standard error over batches of
    them.  They were added only if ``outcome`` is
    "grown"; what fills the room besides changes nothing.  ``change_at_growth`` is what happened on those same images, in eval mode, before
    any training; None if nothing was added, or if the loss after that is no number.  The two agree for small steps, except that the
    prediction does not see the kinks of max pooling and only approximates ReLU's.
    Of ``channels_scored``, ``channels_gaining`` were worth growing from by the ranking and ``channels_reliable`` gain by more than chance
    explains, each on its own, on all ``fresh_images``.  ``gap`` is the optimality gap that selection proved.
    """

    number: int
    widths_before: tuple[int, ...]
    channels_added: tuple[int, ...]
    added_by: dict[str, int]
    cost_before: Cost
    limit: float
    split_step: float
    predicted_change: float
    predicted_error: float
    change_at_growth: float | None
    loss_before: float
    channels_scored: int
    channels_gaining: int
    channels_reliable: int
    fresh_images: int
    gap: float
    outcome: Outcome
    reason: str

    @property
    def grew(self) -> bool:
        """Whether channels were added by what the round found, or in its place."""
        return self.outcome in ("grown", "filled")


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates were ranked, selected and added; training of round ``round`` comes next."""

    round: int
    seconds: float
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class Round(Proposal):
    """A round is over.  ``loss_before``, ``loss_after`` and ``accuracy_after`` are on the selection data.

    ``loss_after`` is the loss after the round's training.  If that is worse than ``loss_before``, or training diverged after growing,
    the round is ``rolled_back``, and ``widths_after`` and ``cost_after`` are those before the round again; ``reason`` says why, or why
    nothing was added.  Training that diverged went on from the parent, whose loss ``loss_after`` then is.
    """

    widths_after: tuple[int, ...]
    cost_after: Cost
    loss_after: float
    accuracy_after: float
    rolled_back: bool

    @classmethod
    def of(cls, proposal: Proposal, widths: tuple[int, ...], cost: Cost, after: Evaluation, rolled_back: bool) -> Round:
        """A proposal with its outcome."""
        planned = {field.name: getattr(proposal, field.name) for field in fields(Proposal)}
        return cls(
            **planned, widths_after=widths, cost_after=cost, loss_after=after.loss, accuracy_after=after.accuracy, rolled_back=rolled_back
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over.  ``seed`` is the seed network at the end of its stage (None for a run without rounds), on the test data."""

    selection: Evaluation
    test: Evaluation
    seed: Evaluation | None
    network_cost: Cost
    charged_macs: int
    steps: int


Event = Step | Scored | Round | Finished


def proposal_from(data: Mapping[str, Any]) -> Proposal:
    """A proposal from its JSON form."""
    return Proposal(**_revived(data))


def round_from(data: Mapping[str, Any]) -> Round:
    """A round from its JSON form."""
    return Round(**_revived(data))


def _revived(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON lists become tuples, cost objects become costs."""
    costs = {key: Cost(**value) for key, value in data.items() if key.startswith("cost_")}
    tuples = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return {**data, **costs, **tuples}
