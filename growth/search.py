"""One round's search: what could be added, what it is worth on fresh images, what the limit allows, and how far to go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from torch.nn.functional import cross_entropy

from costs.model import Macs
from growth import distributed, rounds, shrinking
from growth.choosing import Choice, Room, choose, everything, summary, take
from growth.config import GrowthConfig
from growth.groups import ChannelGraph
from growth.operators import OPERATORS, Candidates, Evidence
from growth.operators.base import Passes
from growth.operators.choice import channels_added
from growth.operators.stride import STEP_RULES, scaled
from growth.pointwise import Softplus
from growth.reliability import FreshSample, measure
from growth.scorers import SCORERS, GroupScore
from growth.shrinking import departures
from growth.training import Batch, Samples, seeded, size

RANKS_FOR_OTHERS = "split"  # the operator whose candidates rank channels for those that claim no gain
FILLS = "zero_output"  # the operator whose candidates take the room that is left


def check_names(config: GrowthConfig) -> None:
    """ValueError, with value and remedy, unless scorer and operators exist and go together."""
    if config.scorer not in SCORERS:
        raise ValueError(f"scorer is {config.scorer!r}; choose one of {', '.join(SCORERS)}")
    if not config.operators or len(set(config.operators)) < len(config.operators):
        raise ValueError(f"operators are {list(config.operators)}; name at least one, and each once")
    if unknown := [name for name in config.operators if name not in OPERATORS]:
        raise ValueError(f"operator is {unknown[0]!r}; choose from {', '.join(OPERATORS)}")
    silent = [name for name in config.operators if not OPERATORS[name].claims_gain]
    if silent and len(config.operators) > 1:
        raise ValueError(f"{silent[0]} claims no gain, so it can't be ranked among {list(config.operators)}; name it alone")
    if config.shrink and (silent or not SCORERS[config.scorer].claims_gain or config.step_rule != "fixed"):
        raise ValueError("shrink weighs removals against gains; use step_rule fixed, and a scorer and operators that claim a gain")
    seeing = [name for name in config.operators if not OPERATORS[name].uses_scores]
    if seeing and not SCORERS[config.scorer].claims_gain:
        raise ValueError(f"{seeing[0]} ranks by the loss, the scorer {config.scorer} by chance; use another scorer, or split")


@dataclass(slots=True)
class Search:
    """Round ``number`` of a run, for the present model.  ``spent_macs`` is the compute to be charged so far."""

    model: nn.Module
    graph: ChannelGraph
    data: Samples
    config: GrowthConfig
    number: int
    spent_macs: int = field(default=0, init=False)
    _proposals: dict[str, list[Candidates]] = field(default_factory=dict, init=False)  # by operator: each proposes once

    def choice(self, room: Room) -> Choice:
        """What to add.  The same search gives the same choice."""
        evidence, operators = self._evidence(), ranking_operators(self.config)
        candidates = self._proposed(evidence, operators)

        def draw(which: int) -> FreshSample:
            return self._measured(evidence, candidates, operators, rounds.fresh_batches(self.data, self.config, self.number, which))

        if SCORERS[self.config.scorer].claims_gain:
            choice = choose(candidates, self.config.scoring_samples, draw, len(draw_sizes(self.data, self.config)), room)
        else:
            choice = take(candidates, draw(0), room)
        if choice.taken and operators != tuple(self.config.operators):
            choice = self._substituted(evidence, choice)
        elif choice.taken and self.config.step_rule != "fixed":
            choice = self._scaled(evidence, choice, room)
        return choice.filled(self._proposed_by(FILLS, evidence), room) if fills(self.config) else choice

    def _evidence(self) -> Evidence:
        """The scoring images, and what the scorer finds on them if an operator asks for it."""
        config, curvature = self.config, Softplus(self.config.softplus_beta)
        scoring = rounds.scoring_batches(self.data, config, self.number)
        evidence = Evidence(self.model, self.graph, scoring, cross_entropy, (), curvature)
        if not uses_scores(config):
            return evidence
        self.spent_macs += macs(self.graph) * scorer_passes(config, fan_ins(self.model, self.graph)) * config.scoring_samples
        generator = seeded(config.seed, "scoring", self.number)
        scores = SCORERS[config.scorer](self.model, self.graph, scoring, cross_entropy, generator, curvature)
        return replace(evidence, scores=[_of_first_process(score) for score in scores])

    def _proposed(self, evidence: Evidence, operators: Sequence[str]) -> list[Candidates]:
        return [one for name in operators for one in self._proposed_by(name, evidence)]

    def _proposed_by(self, name: str, evidence: Evidence) -> list[Candidates]:
        if name not in self._proposals:
            self.spent_macs += (
                macs(self.graph) * operator_passes([name], fan_ins(self.model, self.graph)).scoring * self.config.scoring_samples
            )
            generator = seeded(self.config.seed, f"operator {name}", self.number)
            self._proposals[name] = OPERATORS[name].propose(evidence, self.config.split_step, generator)
        return self._proposals[name]

    def _measured(
        self, evidence: Evidence, candidates: Sequence[Candidates], operators: Sequence[str], batches: Sequence[Batch]
    ) -> FreshSample:
        passes = operator_passes(operators, fan_ins(self.model, self.graph)).fresh + removal_passes(self.graph, self.config)
        fresh = measure(evidence, candidates, batches)
        self.spent_macs += macs(self.graph) * passes * fresh.images
        if not self.config.shrink:
            return fresh
        return replace(fresh, departures=departures(self.model, self.graph, batches, evidence.loss))

    def _substituted(self, evidence: Evidence, choice: Choice) -> Choice:
        """The widths that were chosen, with what the operator that claims no gain proposes for the same parents."""
        proposed = {one.offspring.group: one for one in self._proposed(evidence, self.config.operators)}
        chosen = [proposed[one.offspring.group].take(one.offspring.parents) for one in choice.chosen]
        fresh = self._measured(evidence, chosen, self.config.operators, choice.judging.batches)
        return replace(choice, chosen=chosen, predicted=fresh.prediction(everything(chosen)), reason=summary(chosen))

    def _scaled(self, evidence: Evidence, choice: Choice, room: Room) -> Choice:
        """As far as the loss of the scoring images falls most, by the step rule."""
        offspring = [one.offspring for one in choice.chosen]
        rule = STEP_RULES[self.config.step_rule]
        stride = rule.find(self.model, self.graph, offspring, evidence.batches, cross_entropy)
        wider = [width + more for width, more in zip(room.wiring.widths, channels_added(choice.chosen, len(room.largest)), strict=True)]
        self.spent_macs += (macs(self.graph) + rule.passes * macs(self.graph, wider)) * self.config.scoring_samples
        if stride.change >= 0:
            return replace(choice, outcome="no_reliable_gain", reason="no step lowers the loss of the scoring images")
        chosen = [replace(one, offspring=scaled(one.offspring, stride.scale)) for one in choice.chosen]
        operators = tuple(dict.fromkeys(one.operator for one in chosen))
        fresh = self._measured(evidence, chosen, operators, choice.judging.batches)
        return replace(choice, chosen=chosen, predicted=fresh.prediction(everything(chosen)), scale=stride.scale)


def _of_first_process(score: GroupScore) -> GroupScore:
    """A scorer may go through batches in turn (``streaming``, ``rayleigh``), each process through all of them by itself."""
    return GroupScore(*distributed.from_first([score.index, score.direction, score.residual, score.parent_norm]))


def ranking_operators(config: GrowthConfig) -> tuple[str, ...]:
    """Those whose candidates compete: the config's, or splits in two on behalf of one that claims no gain."""
    return tuple(config.operators) if all(OPERATORS[name].claims_gain for name in config.operators) else (RANKS_FOR_OTHERS,)


def uses_scores(config: GrowthConfig) -> bool:
    return any(OPERATORS[name].uses_scores for name in config.operators)


def fills(config: GrowthConfig) -> bool:
    """Whether the room that is left is filled; a ranking that claims no gain takes all room by itself."""
    return config.fill and SCORERS[config.scorer].claims_gain


def draw_sizes(data: Samples, config: GrowthConfig) -> list[int]:
    """Sizes of the samples of fresh images that a round may use: where nothing is claimed, one shows what comes."""
    sizes = rounds.draw_sizes(size(data), config)
    return sizes if SCORERS[config.scorer].claims_gain else sizes[:1]


def most_macs(model: nn.Module, graph: ChannelGraph, data: Samples, config: GrowthConfig) -> int:
    """The most that a search can spend."""
    draws, weights = draw_sizes(data, config), fan_ins(model, graph)
    passes = operator_passes({*ranking_operators(config), *config.operators, *((FILLS,) if fills(config) else ())}, weights)
    scoring = passes.scoring + (scorer_passes(config, weights) if uses_scores(config) else 0)
    fresh = passes.fresh + removal_passes(graph, config)
    spent = macs(graph) * (scoring * config.scoring_samples + fresh * (sum(draws) + max(draws)))
    if config.step_rule != "fixed":
        spent += (macs(graph) + STEP_RULES[config.step_rule].passes * most_grown_macs(graph, config)) * config.scoring_samples
    return spent


def most_grown_macs(graph: ChannelGraph, config: GrowthConfig) -> int:
    """MACs of an image through the widest network that one round can make of this one."""
    times = 1 + max(OPERATORS[name].adds for name in config.operators)
    return macs(graph, [times * width for width in graph.wiring.widths])


def scorer_passes(config: GrowthConfig, fan_ins: Collection[int]) -> int:
    """Compute charged per scoring image, in units of the network's MACs: 3 to prepare, 2 per product S v, all for all groups."""
    products = max(map(SCORERS[config.scorer].products, fan_ins))
    return 3 + 2 * products if products else 0


def operator_passes(names: Iterable[str], fan_ins: Collection[int]) -> Passes:
    """Compute charged for these operators, each as in the group where it asks most."""
    passes = [max(map(OPERATORS[name].passes, fan_ins)) for name in names]
    return Passes(sum(one.scoring for one in passes), sum(one.fresh for one in passes))


def fan_ins(model: nn.Module, graph: ChannelGraph) -> set[int]:
    """Weights of a channel, in all groups."""
    return {sum(model.get_parameter(f"{name}.weight")[0].numel() for name in group.producers) for group in graph.groups}


def removal_passes(graph: ChannelGraph, config: GrowthConfig) -> int:
    """Compute charged per fresh image, in units of the network's MACs, to find out what removals cost."""
    return shrinking.passes(graph.steps[graph.output].shape[1]) if config.shrink else 0


def macs(graph: ChannelGraph, widths: Sequence[int] | None = None) -> int:
    """MACs of one image, at the present widths or others."""
    return int(Macs().network(graph.wiring.shapes(widths)).value)
