"""One training run of a job after another: resumed from its checkpoint or started, watched event by event, checkpointed as it goes.

A run ends in a ``Trained``.  Nothing but checkpoints is needed to get there again: a run that had finished before a crash is resumed at
its last step, finishes once more, and gives the same result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from costs.families import Network
from costs.model import Budget
from growth.config import GrowthConfig
from growth.events import Event, Finished, Round, Scored, Step
from growth.loop import Growth
from growth.training import Data
from store import jobs
from store.problems import InvalidSpec, Problem
from worker.attempt import Attempt, Reporter, Stopped
from worker.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

ALL_POINTS = 10_000_000
TRAINING_SHARE = 0.97  # of a job; the rest is measuring and the report


@dataclass(frozen=True, slots=True)
class Result:
    """What is left of a finished run without its weights.  ``seconds`` is wall-clock time over all attempts, without what a crash
    threw away."""

    network: Network
    rounds: tuple[Round, ...]
    finished: Finished
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run."""

    growth: Growth
    finished: Finished
    seconds: float

    @property
    def result(self) -> Result:
        return Result(self.growth.network, tuple(self.growth.rounds), self.finished, self.seconds)

    def standing(self) -> dict[str, Any]:
        """Progress that shows this network, in place of the one that was trained last."""
        test = self.finished.test
        return {**_standing(self.growth), "loss": None, "accuracy": None, "test_loss": test.loss, "test_accuracy": test.accuracy}


@dataclass(slots=True)
class Eta:
    """Seconds left, by the pace of this attempt."""

    _started: float = field(default_factory=time.monotonic)
    _first: float | None = None

    def seconds(self, fraction: float) -> float | None:
        """None before there is a pace to go by."""
        if self._first is None:
            self._first, self._started = fraction, time.monotonic()
        done = fraction - self._first
        return None if done < 0.01 else (time.monotonic() - self._started) / done * (1 - fraction)


@dataclass(slots=True)
class Runs:
    """The runs of one job.  ``names`` are all that will come, in order, so that progress knows the whole."""

    attempt: Attempt
    reporter: Reporter
    data: Data
    budgets: Sequence[Budget]
    names: Sequence[str]
    _eta: Eta = field(default_factory=Eta)
    _saved: float = 0.0

    def train(self, name: str, network: Network, config: GrowthConfig) -> Trained:
        """Train a run to its end, from wherever it stands.  Stopped if asked to, after a checkpoint."""
        restored = Checkpoints(self.attempt).restore(name, self.data, self.budgets)
        return self.follow(name, restored or _start(network, self.data, self.budgets, config))

    def follow(self, name: str, growth: Growth) -> Trained:
        """Train on to the end."""
        checkpoints = Checkpoints(self.attempt)
        started = time.monotonic() - self._seconds_so_far(name)
        self._saved = time.monotonic()
        standing = _standing(growth)
        if growth.step == 0:
            self.reporter.point(name, 0, cost=standing["cost"])
        self._tell(name, growth, {"phase": _phase(growth), "loss": None, "accuracy": None, **standing}, at_once=True)
        for event in growth.events():
            if isinstance(event, Finished):
                return Trained(growth, event, time.monotonic() - started)
            self._note(name, growth, event)
            stop = self.attempt.asked_to_stop()
            if stop or self._due(growth, event):
                self.reporter.point(name, growth.step, seconds=time.monotonic() - started)
                self.reporter.flush()
                checkpoints.save(name, growth)
                self._saved = time.monotonic()
            if stop:
                raise Stopped
        raise AssertionError(f"run {name} ended without a result")

    def _due(self, growth: Growth, event: Event) -> bool:
        """A checkpoint is due at each round, at the last step, and when the last one is old enough."""
        last = isinstance(event, Step) and growth.step == growth.total_steps
        return last or isinstance(event, Round) or time.monotonic() - self._saved >= self.attempt.settings.checkpoint_seconds

    def _note(self, name: str, growth: Growth, event: Event) -> None:
        """Pass an event on to whoever watches the job."""
        if isinstance(event, Step):
            self.reporter.point(name, event.step, loss=event.loss, accuracy=event.accuracy, learning_rate=event.learning_rate)
            phase = _phase(growth)
            self._tell(name, growth, {"phase": phase, "loss": event.loss, "accuracy": event.accuracy}, at_once=phase == "scoring")
        elif isinstance(event, Scored):
            standing = _standing(growth)
            self.reporter.point(name, growth.step, cost=standing["cost"])
            self._tell(name, growth, {"phase": "training", **standing}, at_once=True)
        elif isinstance(event, Round):
            self.reporter.point(name, growth.step, selection_loss=event.loss_after, cost=event.cost_after.value)
            self.reporter.flush()
            payload = {**asdict(event), "run": name}
            jobs.add_round(self.attempt.db, self.attempt.lease, name, event.number, payload, step=growth.step)
            logger.info("run %s, round %d: %s", name, event.number, event.reason)
            self._tell(name, growth, {"phase": _phase(growth), **_standing(growth)})

    def _tell(self, name: str, growth: Growth, changes: dict[str, Any], at_once: bool = False) -> None:
        total = max(1, growth.total_steps)
        fraction = TRAINING_SHARE * (self.names.index(name) + min(1.0, growth.step / total)) / len(self.names)
        place = {
            "run": name, "runs": len(self.names), "round": min(len(growth.rounds), growth.config.rounds), "rounds": growth.config.rounds,
            "step": growth.step, "total_steps": total, "overall_fraction": fraction, "eta_seconds": self._eta.seconds(fraction),
            "limit": self.budgets[0].limit, "unit": self.budgets[0].cost_model.unit,
        }  # fmt: skip
        self.reporter.tell({**place, **changes}, at_once)

    def _seconds_so_far(self, name: str) -> float:
        """Training time of earlier attempts, up to the checkpoint that is resumed."""
        curves = jobs.metrics(self.attempt.db, self.attempt.job_id, ALL_POINTS).get(name, {})
        return curves["seconds"][-1][1] if "seconds" in curves else 0.0


def _standing(growth: Growth) -> dict[str, Any]:
    """What the network is and costs now."""
    wiring = growth.graph.wiring
    return {"cost": growth.cost_model.network(wiring.shapes()).value, "widths": list(wiring.widths)}


def _phase(growth: Growth) -> str:
    """What comes next, unless the round that opens here has been scored."""
    opens = len(growth.rounds) < growth.config.rounds and growth.step == growth.config.stage_end(len(growth.rounds))
    return "scoring" if opens else "training"


def _start(network: Network, data: Data, budgets: Sequence[Budget], config: GrowthConfig) -> Growth:
    try:
        return Growth.start(network, data, budgets[0].cost_model, config, budgets[1:])
    except ValueError as error:
        raise InvalidSpec([Problem("growth", None, None, str(error), str(error))]) from error
