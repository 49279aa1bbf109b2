"""The growth loop: train the seed; in rounds search, grow, train and check; train to the end.

A run is a function of its network, data, config and number of steps: its random numbers come from generators seeded by (seed, purpose,
number), and the data position is the step.  So a checkpoint holds no generator state, and a resumed run equals an undisturbed one bit
for bit (on a CPU, with the same torch and threads, and a data set that does not draw from torch's global generator).

Compute is charged in MACs: 3 times the network's for each image trained on, once for each image evaluated or used to settle norms, and
for a search as ``growth.search`` says.  Evaluations for reports (test data, the end) are free.

Training that diverges after growing costs the round, not the run: it goes on from the parent, at the step that failed.

Under ``torchrun`` every process goes through the same run (``growth.distributed``); the first one writes its checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from costs.families import Network, largest_widths
from costs.model import Budget, Cost, CostModel
from growth import checkpoint, distributed, rounds
from growth.checkpoint import CheckpointError
from growth.choosing import Room, digest
from growth.config import GrowthConfig
from growth.events import Event, Finished, Outcome, Proposal, Round, Scored, Step, proposal_from, round_from
from growth.groups import find_groups
from growth.networks import build
from growth.operators import Candidates
from growth.optimizer import carry
from growth.removal import Removal, remove_channels
from growth.search import Search, check_names, draw_sizes, macs, most_grown_macs, most_macs
from growth.shrinking import LEFT_PASSES, left_behind
from growth.slimming import scales, slimmest
from growth.surgery import ChannelMap, add_channels
from growth.training import (
    EXPLODED,
    Batch,
    Data,
    Evaluation,
    Learner,
    NotANumber,
    batch_indices,
    evaluate,
    evaluate_batches,
    fetch,
    learning_rate,
    seeded,
    settle_norms,
    size,
)
from growth.twins import twin

_PLANNED: dict[Outcome, str] = {"planned": "became exact twins", "slimmed": "had the smallest scales and were removed"}


class Growth:
    """One run.  Iterate ``events()``; whenever it is suspended at a yield, ``save()`` writes a checkpoint to ``resume()`` from.

    ``step`` training steps have been taken, ``rounds`` are over, ``charged_macs`` have been spent.  One image through the present
    network takes ``macs``.  It keeps to all ``budgets``: the config's limit by ``cost_model``, and ``further`` ones.
    """

    def __init__(
        self, model: nn.Module, network: Network | None, data: Data, cost_model: CostModel, config: GrowthConfig,
        further: Sequence[Budget] = (),
    ) -> None:  # fmt: skip
        """A run at its beginning.  ``network`` describes ``model``; a run without it can't be saved."""
        self.data, self.cost_model, self.config = data, cost_model, config
        self.budgets = (Budget(cost_model, config.limit), *further)
        self.step = 0
        self.rounds: list[Round] = []
        self.charged_macs = 0
        self.seed_evaluation: Evaluation | None = None
        self._network = network
        self._proposal: Proposal | None = None  # of the open round
        self._parent: Learner | None = None  # of the open round, if it added anything
        distributed.check_batch(min(config.batch_size, size(data.train)))
        self._adopt(Learner.of(self._beside_images(model), config))
        self.seed_widths = self.graph.wiring.widths

    @classmethod
    def start(
        cls, network: Network, data: Data, cost_model: CostModel, config: GrowthConfig, further: Sequence[Budget] = ()
    ) -> Growth:  # fmt: skip
        """A new run from a seed network.  ValueError, with value, limit and remedy, for a config that network or data don't allow."""
        growth = cls(build(network, seeded(config.seed, "weights")), network, data, cost_model, config, further)
        growth.check()
        return growth

    @classmethod
    def resume(cls, path: Path, data: Data, cost_model: CostModel, further: Sequence[Budget] = ()) -> Growth:
        """The run that was saved to ``path``, with the same data, cost model and budgets.  CheckpointError if it can't be continued."""
        tensors, state = checkpoint.read(path)
        network = checkpoint.network_from(state["network"])
        growth = cls(build(network, torch.Generator()), network, data, cost_model, GrowthConfig(**state["config"]), further)
        growth._restore(tensors, state)
        return growth

    def check(self) -> None:
        """ValueError, with value, limit and remedy, if this run can't be done."""
        rounds.check_samples(size(self.data.train), self.config)
        if self.config.slimming is not None:
            scales(self.model, self.graph)  # every group must have some
        else:
            self._check_budgets()
        check_names(self.config)

    def _check_budgets(self) -> None:
        for budget in self.budgets:
            cost = budget.cost_model.network(self.graph.wiring.shapes())
            if cost.value > budget.limit:
                raise ValueError(
                    f"the seed costs {cost.value:.6g} {cost.unit}, more than the limit of {budget.limit:.6g}; "
                    "raise the limit or start from a narrower seed"
                )

    # The story.  A resumed run goes through the same lines: each part does what is left of it.

    def events(self) -> Iterator[Event]:
        """Train the seed; in every round search, grow, train and check; train to the end."""
        yield from self._train(0, until=self.config.stage_end(0))
        while self._another_round():
            number = len(self.rounds) + 1
            if self._proposal is None:
                yield self._follow_plan(number) if self._planned else self._grow(number)
            yield from self._train(number, until=self.config.stage_end(number))
            yield self._check()
        yield from self._train(self.config.rounds + 1, until=self.total_steps if self.config.compute_limit_macs is None else math.inf)
        yield self._finish()

    def _train(self, stage: int, until: float) -> Iterator[Step]:
        """Training steps until ``until`` have been taken, or the compute that is allowed has been spent."""
        config, train, penalty = self.config, self.data.train, self._penalty()
        while self.step < until and self._affords(self._step_macs() + self._reserved_macs()):
            rate = learning_rate(config.schedule, config.learning_rate, self._progress(self.step))
            indices = batch_indices(size(train), config.batch_size, config.seed, self.step).tolist()
            batch = fetch(train, distributed.mine(indices))
            try:
                highest = EXPLODED if self._parent else math.inf
                loss, accuracy = self.learner.step(batch, rate, self.step + 1, highest, self._teacher, penalty)
            except NotANumber as error:
                if self._parent is None:
                    raise
                self.charged_macs += self._step_macs() // 3  # it ended after the forward pass
                self._revert(str(error))
                continue
            self.charged_macs += self._step_macs()
            self.step += 1
            yield Step(self.step, self.total_steps, stage, loss, accuracy, rate)

    def _grow(self, number: int) -> Scored:
        """Search on seeded samples, within the round's share of the budget, and add what was chosen; the parent stays for a roll-back."""
        started, config, loss_before = time.monotonic(), self.config, self._loss_before(number)
        room = Room(self.graph.wiring, self._shares(number), largest_widths(self.seed_widths, config.max_growth), config.multiple_of)
        search = Search(self.model, self.graph, self.data.train, config, number)
        choice = search.choice(room)
        self.charged_macs += search.spent_macs
        distributed.agree(f"what round {number} adds", digest(choice))
        self._proposal = choice.proposal(number, room, self._cost(), loss_before, config.split_step)
        if choice.taken:
            self._add(choice.taken, choice.removed, choice.judging.batches)
        return Scored(number, time.monotonic() - started, self._proposal)

    def _follow_plan(self, number: int) -> Scored:
        """Change the widths as the config says, by exact twins or by slimming: no score, no roll-back."""
        started, config, widths, loss_before = time.monotonic(), self.config, self.graph.wiring.widths, self._loss_before(number)
        budgets, cost_before = self._shares(number), self._cost()
        fresh = rounds.fresh_batches(self.data.train, config, number, 0)
        before = self._judge(fresh)
        outcome = self._slim(budgets) if config.planned_widths is None else self._add_twins(number)
        counts = tuple(after - width for after, width in zip(self.graph.wiring.widths, widths, strict=True))
        self._proposal = Proposal(
            number=number,
            widths_before=widths,
            channels_added=counts,
            added_by={"twins" if outcome == "planned" else "slimming": sum(counts)},
            cost_before=cost_before,
            limit=budgets[0].limit,
            split_step=0.0,
            predicted_change=0.0,
            predicted_error=0.0,
            change_at_growth=self._judge(fresh).loss - before.loss,
            loss_before=loss_before,
            channels_scored=0,
            channels_gaining=0,
            channels_reliable=0,
            fresh_images=sum(len(classes) for _, classes in fresh),
            gap=0.0,
            outcome=outcome,
            reason=f"{outcome}: {abs(sum(counts))} of {sum(widths)} channels {_PLANNED[outcome]}",
        )
        return Scored(number, time.monotonic() - started, self._proposal)

    def _add_twins(self, number: int) -> Outcome:
        """Widen to the planned widths: no new function."""
        assert self.config.planned_widths is not None
        *history, widths = self.config.planned_widths[:number]
        self._grow_into(*twin(self.model, self.graph, self.seed_widths, history, widths))
        return "planned"

    def _slim(self, budgets: Sequence[Budget]) -> Outcome:
        """Remove the channels of smallest scales."""
        self._grow_into(*remove_channels(self.model, self.graph, slimmest(self.model, self.graph, budgets)))
        return "slimmed"

    def _add(self, chosen: Sequence[Candidates], removals: Sequence[Removal], judging: Sequence[Batch]) -> None:
        """Add channels and remove others, carrying momentum; note the change of the loss on the judging images."""
        self._parent, before = self.learner, self._judge(judging)
        self._grow_into(*add_channels(self.model, self.graph, [one.offspring for one in chosen]))
        if removals:  # channels keep their numbers when others are appended
            self.charged_macs += LEFT_PASSES * self.macs * sum(len(classes) for _, classes in judging)
            left = left_behind(self.model, self.graph, judging)
            now = [replace(one, left=tuple(each[one.channels] for each in left[one.group])) for one in removals]
            self._grow_into(*remove_channels(self.model, self.graph, now))
        try:
            change = self._judge(judging).loss - before.loss
        except NotANumber as error:
            self._revert(str(error))
        else:
            self._proposal = replace(self._open, change_at_growth=change)

    def _grow_into(self, model: nn.Module, channel_map: ChannelMap) -> None:
        """Go on with a model of other widths, carrying momentum."""
        optimizer = carry(self.learner.optimizer, self.model, model, channel_map)
        assert isinstance(optimizer, SGD)
        self._adopt(Learner(model, optimizer, self.config))

    def _loss_before(self, number: int) -> float:
        """On the selection data, as round ``number`` opens; the first round also notes where the seed stands."""
        loss = self._settled(number).loss
        if number == 1:
            self.seed_evaluation = evaluate(self.model, self.data.test, self.config.batch_size)
        return loss

    def _revert(self, why: str) -> None:
        """Undo what the open round added: go on from its parent."""
        assert self._parent is not None
        self._proposal = replace(self._open, reason=f"{self._open.reason}, rolled back: {why}")
        self._adopt(self._parent)
        self._parent = None

    def _check(self) -> Round:
        """Close the round; roll it back if the loss on the selection data is no number, or worse than before though the rate fell.

        While the learning rate rises the loss may rise without any growth.
        """
        try:
            after = self._settled(self._open.number)
        except NotANumber as error:
            if self._parent is None:
                raise
            self._revert(str(error))
            after = self._settled(self._open.number)
        if self._parent is not None and after.loss > self._open.loss_before and self._rate_fell():
            self._revert(f"the loss rose from {self._open.loss_before:.6g} to {after.loss:.6g}")
        rolled_back = self._open.grew and self._parent is None
        closed = Round.of(self._open, self.graph.wiring.widths, self._cost(), after, rolled_back)
        self.rounds.append(closed)
        self._proposal = self._parent = None
        return closed

    def _finish(self) -> Finished:
        selection, test = (evaluate(self.model, data, self.config.batch_size) for data in (self.data.selection, self.data.test))
        return Finished(selection, test, self.seed_evaluation, self._cost(), self.charged_macs, self.step)

    # Where the run stands

    @property
    def model(self) -> nn.Module:
        """The present network's module."""
        return self.learner.model

    @property
    def network(self) -> Network:
        """The present network as data.  ValueError for a model that was not built from a family."""
        if self._network is None:
            raise ValueError("this model was not built from a network family and has no description; use `growth.build` for the seed")
        return replace(self._network, widths=self.graph.wiring.widths)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run.  With a compute limit this is a plan until the final stage is on, and exact from then on."""
        limit, planned = self.config.compute_limit_macs, self.config.growth_steps + self.config.final_steps
        if limit is None or self._proposal is not None or self.step < self.config.growth_steps:
            return planned
        return self.step + max(0, limit - self.charged_macs) // self._step_macs()

    def _progress(self, step: int) -> float:
        """Position in the schedule, 0 to 1.  A final stage of another length than planned stretches its part of the schedule."""
        before, planned = self.config.growth_steps, self.config.growth_steps + self.config.final_steps
        if step <= before:
            return step / planned if planned else 0.0
        return before / planned + (1 - before / planned) * (step - before) / (self.total_steps - before)

    def _rate_fell(self) -> bool:
        """Since the open round began to train."""
        opened = self.config.stage_end(self._open.number - 1)
        before, now = (learning_rate(self.config.schedule, 1.0, self._progress(step)) for step in (opened, self.step))
        return now < before

    def _another_round(self) -> bool:
        """A round is open, or there is one to come and compute for all that it may take."""
        if self._proposal is not None or len(self.rounds) == self.config.rounds:
            return self._proposal is not None
        if self._planned:
            return True  # no dearer than the run that a plan was taken from; and slimming is what keeps the limit
        grown, train, config = most_grown_macs(self.graph, self.config), self.data.train, self.config
        passes = LEFT_PASSES if config.shrink else 0
        judging = (self.macs + (1 + passes) * grown) * max(draw_sizes(train, config))  # before, while and after growing
        checks = 2 * self._check_macs() + grown * (config.scoring_samples + size(self.data.selection))
        return self._affords(most_macs(self.model, self.graph, train, config) + judging + checks)

    @property
    def _planned(self) -> bool:
        """Rounds search nothing."""
        return self._slims or self.config.planned_widths is not None

    @property
    def _slims(self) -> bool:
        return self.config.slimming is not None

    def _rounds_left(self) -> int:
        """To be opened yet."""
        return self.config.rounds - len(self.rounds) - (self._proposal is not None)

    def _penalty(self) -> float:
        """On the norms' scales."""
        return self.config.slimming or 0.0 if self._rounds_left() else 0.0

    @property
    def _open(self) -> Proposal:
        """What the open round set out to do."""
        assert self._proposal is not None
        return self._proposal

    def _affords(self, macs: int) -> bool:
        limit = self.config.compute_limit_macs
        return limit is None or self.charged_macs + macs <= limit

    @property
    def _teacher(self) -> nn.Module | None:
        """Whom the present network also learns from."""
        return self._parent.model if self._parent is not None and self.config.distillation else None

    def _step_macs(self) -> int:
        teacher = 0 if self._teacher is None else macs(self.graph, self._open.widths_before)
        return (3 * self.macs + teacher) * min(self.config.batch_size, size(self.data.train))

    def _check_macs(self) -> int:
        return self.macs * (self.config.scoring_samples + size(self.data.selection))

    def _reserved_macs(self) -> int:
        """What closing the open round takes: a check, and another one of the parent if the first comes to nothing.  And slimming."""
        if self._proposal is None:
            return self._rounds_left() * 2 * (self._check_macs() + self.macs * self.config.fresh_samples) if self._slims else 0
        return self._check_macs() * (1 if self._parent is None else 2)

    def _cost(self) -> Cost:
        return self.cost_model.network(self.graph.wiring.shapes())

    def _shares(self, number: int) -> list[Budget]:
        """What round ``number`` may cost."""
        return rounds.shares(replace(self.graph.wiring, widths=self.seed_widths), self.budgets, number, self.config.rounds)

    def _settled(self, number: int) -> Evaluation:
        """Evaluation on the selection data, with norm statistics that fit the present weights."""
        settling = rounds.scoring_batches(self.data.train, self.config, number)
        settle_norms(self.model, settling)
        self.charged_macs += self.macs * self.config.scoring_samples
        return self._judge()

    def _judge(self, data: Sequence[Batch] | None = None) -> Evaluation:
        """A charged evaluation, by default on the selection data."""
        self.charged_macs += self.macs * (size(self.data.selection) if data is None else sum(len(classes) for _, classes in data))
        if data is None:
            return evaluate(self.model, self.data.selection, self.config.batch_size)
        return evaluate_batches(self.model, data)

    def _adopt(self, learner: Learner) -> None:
        """Go on with this model and optimizer."""
        self.learner = learner
        self.graph = find_groups(learner.model, fetch(self.data.train, range(2))[0])
        self.macs = macs(self.graph)

    def _beside_images(self, model: nn.Module) -> nn.Module:
        """The model, on the device that the data set gives its images on."""
        return model.to(fetch(self.data.train, range(2))[0].device)

    # Checkpoints

    def save(self, path: Path) -> None:
        """Write everything to one file, whole or not at all.  ValueError for a model that was not built from a family.

        Of several processes only the first writes, and none waits for it.
        """
        if distributed.rank() > 0:
            return
        tensors = self.learner.tensors()
        if self._parent is not None:
            tensors |= {f"parent.{name}": tensor for name, tensor in self._parent.tensors().items()}
        checkpoint.write(path, tensors, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "network": asdict(self.network),
            "config": asdict(self.config),
            "seed_widths": self.seed_widths,
            "step": self.step,
            "charged_macs": self.charged_macs,
            "rounds": [asdict(closed) for closed in self.rounds],
            "proposal": self._proposal and asdict(self._proposal),
            "seed_evaluation": self.seed_evaluation and asdict(self.seed_evaluation),
            "samples": [size(self.data.train), size(self.data.selection)],
            "torch": torch.__version__,
        }

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        samples, expected = [size(self.data.train), size(self.data.selection)], state["samples"]
        if samples != expected:
            raise CheckpointError(f"the data has {samples} training and selection images, the checkpoint's {expected}; use the same")
        self.learner.load(tensors)
        self.step, self.charged_macs, self.seed_widths = state["step"], state["charged_macs"], tuple(state["seed_widths"])
        self.rounds = [round_from(closed) for closed in state["rounds"]]
        self._proposal = state["proposal"] and proposal_from(state["proposal"])
        self.seed_evaluation = state["seed_evaluation"] and Evaluation(**state["seed_evaluation"])
        parent = {name.removeprefix("parent."): tensor for name, tensor in tensors.items() if name.startswith("parent.")}
        if parent and self._proposal is not None:
            parent_network = replace(self.network, widths=self._proposal.widths_before)
            self._parent = Learner.of(self._beside_images(build(parent_network, torch.Generator())), self.config)
            self._parent.load(parent)
