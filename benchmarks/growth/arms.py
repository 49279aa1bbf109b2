"""What is compared: rules for widths, and whether the weights are inherited from a smaller network or trained from scratch.

All arms of a setting cost the same on the device and are charged the same compute, scoring and checks included: the final stage of
each is as long as what is left allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.growth import tasks
from benchmarks.growth.nets import CONSTANT, PYRAMID, SmallMobileNet, macs, small, times
from benchmarks.growth.toward import register
from costs.families import Network
from costs.model import Budget, CostModel, Macs
from growth.config import GrowthConfig
from growth.controls import WIDTH_RULES, Widths, control, retrained
from growth.events import Finished, Scored
from growth.loop import Growth
from growth.training import Data, size

Planned = tuple[Network, GrowthConfig]
SEEDS: Mapping[str, Widths] = {"constant": CONSTANT, "pyramid": PYRAMID}
FINAL = 2.0  # the final network costs what this multiple of the pyramid does
EPOCHS = 8  # of the pyramid at that cost: the compute that every arm is charged
ROUNDS, GROWTH_SAMPLES = 3, 50 * 64  # training images of each stage before the last
SEED_COMPUTE_PART = 0.55  # of the final network's, on average while growing; it only plans the schedule


@dataclass(frozen=True)
class Setting:
    """A task, a seed network, and the cost that is bounded.  ``ours`` is what the energy-aware run does otherwise than by default."""

    task: str
    start: str
    cost_model: CostModel = Macs()  # noqa: RUF009 - it is frozen
    ours: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed_network(self) -> SmallMobileNet:
        return small(SEEDS[self.start], tasks.TASKS[self.task].classes)

    @property
    def expert(self) -> Network:
        """The pyramid at the limit."""
        return times(replace(self.seed_network, widths=PYRAMID), FINAL)

    def config(self, data: Data, seed: int, learning_rate: float, batch_size: int) -> GrowthConfig:
        """Of every arm, but for what the arm changes."""
        steps_per_round, compute = GROWTH_SAMPLES // batch_size, EPOCHS * size(data.train) * 3 * macs(self.expert)
        whole = EPOCHS * size(data.train) // batch_size
        return GrowthConfig(
            limit=self.cost_model.network(self.expert.wiring().shapes()).value,
            rounds=ROUNDS,
            steps_per_round=steps_per_round,
            final_steps=whole - round(SEED_COMPUTE_PART * steps_per_round * (1 + ROUNDS)),
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_growth=5.0,
            seed=seed,
            compute_limit_macs=compute,
            scoring_samples=128,  # a whole run sees 32 000 images, so scoring has to do with few
            fresh_samples=32,
            max_fresh_samples=512,
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished run, how it ended, and what it was charged until its widths were final."""

    growth: Growth
    finished: Finished
    search_macs: int

    def values(self) -> dict[str, Any]:
        """What is kept of it.  Losses in nats."""
        end, rounds = self.finished, self.growth.rounds
        return {
            "selection_loss": end.selection.loss,
            "selection_accuracy": end.selection.accuracy,
            "test_loss": end.test.loss,
            "test_accuracy": end.test.accuracy,
            "widths": list(self.growth.graph.wiring.widths),
            "cost": end.network_cost.value,
            "charged_macs": end.charged_macs,
            "search_macs": self.search_macs,
            "steps": end.steps,
            "rounds": [
                {
                    "outcome": one.outcome,
                    "predicted": one.predicted_change,
                    "at_growth": one.change_at_growth,
                    "rolled_back": one.rolled_back,
                }
                for one in rounds
            ],
        }


@dataclass(frozen=True)
class Runs:
    """The runs of one setting and seed.  ``tuned`` gives (learning rate, batch size) by arm.

    A run is a function of its settings and seed, so what was made in an earlier process is made again where another arm refers to it.
    """

    setting: Setting
    data: Data
    seed: int
    tuned: Mapping[str, tuple[float, int]]
    _known: dict[str, Ended] = field(default_factory=dict, init=False)

    def run(self, arm: str) -> Ended:
        """The finished run of an arm; made once, since others may refer to it."""
        if arm not in self._known:
            self._known[arm] = self.at(arm, *self.tuned[arm])
        return self._known[arm]

    @property
    def main(self) -> Growth:
        """The energy-aware run, which sets what the others may spend."""
        return self.run("energy/inherited").growth

    def control(self, name: str, config: GrowthConfig, network: Network | None = None) -> Planned:
        """The product's own control of this name."""
        return control(name, network or self.setting.seed_network, self.main, config)

    def after_search(self, arm: str, config: GrowthConfig) -> Planned:
        """The widths that an arm found, from scratch, with what its search left of the compute."""
        found = self.run(arm)
        left = found.growth.charged_macs - found.search_macs
        network, whole = retrained(found.growth, config)
        return network, replace(whole, final_steps=whole.final_steps * left // found.growth.charged_macs, compute_limit_macs=left)

    def toward(self, rule: str, config: GrowthConfig) -> Planned:
        """Grown to the widths of a rule, by new channels that nothing reads yet."""
        seed = self.setting.seed_network
        widths = (
            self.setting.expert.widths
            if rule == "pyramid"
            else WIDTH_RULES[rule](seed.wiring(), [Budget(self.setting.cost_model, config.limit)], config)
        )
        return seed, replace(config, scorer=register(seed.widths, widths, config.rounds), operators=("zero_output",))

    def at(self, arm: str, rate: float, batch: int) -> Ended:
        """The run of an arm at this learning rate and batch size, whatever it is tuned to."""
        network, config = ARMS[arm](self, self.setting.config(self.data, self.seed, rate, batch))
        growth, search_macs = Growth.start(network, self.data, self.setting.cost_model, config), 0
        for event in growth.events():
            if isinstance(event, Scored):
                search_macs = growth.charged_macs
        assert isinstance(event, Finished)
        return Ended(growth, event, search_macs)


ARMS: dict[str, Callable[[Runs, GrowthConfig], Planned]] = {
    "energy/inherited": lambda runs, config: (runs.setting.seed_network, replace(config, **runs.setting.ours)),
    "energy/retrained": lambda runs, config: retrained(runs.main, config),
    "energy/retrained, search charged": lambda runs, config: runs.after_search("energy/inherited", config),
    "uniform/inherited": lambda runs, config: runs.toward("uniform", config),
    "uniform/retrained": lambda runs, config: runs.control("uniform", config),
    "pyramid/inherited": lambda runs, config: runs.toward("pyramid", config),
    "pyramid/retrained": lambda runs, config: runs.control("seed_alone", config, runs.setting.expert),
    "cost_only/inherited": lambda runs, config: runs.toward("cost_only", config),
    "cost_only/retrained": lambda runs, config: runs.control("cost_only", config),
    "random/inherited": lambda runs, config: runs.control("random", config),
    "random/retrained": lambda runs, config: retrained(runs.run("random/inherited").growth, config),
    "twins": lambda runs, config: runs.control("twins", config),
    "seed_alone": lambda runs, config: runs.control("seed_alone", config),
}
