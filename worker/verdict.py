"""Did growing pay?  Means and scatter over seeds, paired differences with their intervals, and a verdict by one stated rule.

Pairs: both arms of a difference had the same seed, data, budget and compute.  With n differences of mean m and sample standard
deviation s, the interval is m +- t s / sqrt(n), t the quantile of Student's distribution with n - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from store.spec import FinalName

CONFIDENCE = 0.95
ONE_SEED = "one seed: nothing is known of the scatter"
_SAME = "All had the same budget and the same compute, scoring included."
RULE_ONE_SEED = (
    "Growing paid if the grown network's mean cross-entropy on the test images is lower than that of every control. "
    f"{_SAME} One seed: no statement about significance."
)
RULE_SEEDS = (
    f"Growing paid against a control if the {100 * CONFIDENCE:g} % t interval of the paired difference in test loss (mean cross-entropy of "
    "the grown network minus the control's, one difference per seed) lies wholly below zero; it paid if it paid against every control. "
    f"{_SAME} Seeds differ in initial weights, order of the images and scoring samples; the split of the data is the same, so "
    "an interval says nothing about other test images."
)

Document = dict[str, Any]
Losses = Mapping[str, Sequence[float]]  # of each arm, one per seed


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences, one per seed; ``sd``, ``low`` and ``high`` are None for one seed."""

    differences: tuple[float, ...]
    mean: float
    sd: float | None
    low: float | None
    high: float | None

    @property
    def below_zero(self) -> bool:
        """Wholly, where there is an interval."""
        return (self.mean if self.high is None else self.high) < 0

    @property
    def undecided(self) -> bool:
        """The interval holds zero."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high

    def document(self) -> Document:
        numbers = {"differences": list(self.differences), "mean": self.mean, "sd": self.sd, "low": self.low, "high": self.high}
        return {**numbers, "confidence": CONFIDENCE} if self.sd is not None else {**numbers, "reason": ONE_SEED}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Ours minus theirs, seed by seed."""
    differences = tuple(our - their for our, their in zip(ours, theirs, strict=True))
    mean, seeds = fmean(differences), len(differences)
    if seeds == 1:
        return Paired(differences, mean, None, None, None)
    sd = stdev(differences)
    half = float(stdtrit(seeds - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(seeds)
    return Paired(differences, mean, sd, mean - half, mean + half)


def spread(values: Sequence[float]) -> Document:
    """Mean, sample standard deviation and every seed's value."""
    if len(values) == 1:
        return {"mean": values[0], "sd": None, "values": list(values), "reason": ONE_SEED}
    return {"mean": fmean(values), "sd": stdev(values), "values": list(values)}


def verdict(grown: Sequence[float], controls: Losses) -> Document:
    """By the rule for this number of seeds, in names and in a sentence.  The numbers are test losses."""
    differences = {name: paired(grown, losses) for name, losses in controls.items()}
    better_than = sorted(name for name, found in differences.items() if found.below_zero)
    paid = len(better_than) == len(controls) if controls else None
    words = _one_seed_words if len(grown) == 1 else _seeds_words
    return {
        "paid": paid,
        "better_than": better_than,
        "not_better_than": sorted(set(controls) - set(better_than)),
        "undecided": sorted(name for name, found in differences.items() if found.undecided),
        "rule": RULE_ONE_SEED if len(grown) == 1 else RULE_SEEDS,
        "sentence": words(paid, grown, controls, differences) if controls else _no_control_words(grown),
    }


def delivered(final: FinalName, selection_losses: Mapping[str, float]) -> Document:
    """Which run's network the job delivers, and why.  The test images have no say in it."""
    if final == "inherit":
        return {"run": "grown", "why": "training.final is inherit: the grown network keeps its weights"}
    if final == "retrain":
        return {"run": "retrained", "why": "training.final is retrain: the widths that growing found, trained from scratch"}
    run = min(("grown", "retrained"), key=lambda name: selection_losses[name])
    listed = ", ".join(f"{name} {selection_losses[name]:.4f}" for name in ("grown", "retrained"))
    return {"run": run, "why": f"training.final is both: it has the lower loss on the selection images ({listed})"}


def _no_control_words(grown: Sequence[float]) -> str:
    return f"The grown network's test loss is {_mean_words(grown)}. No control was run, so whether growing paid is not known."


def _one_seed_words(paid: bool | None, grown: Sequence[float], controls: Losses, differences: Mapping[str, Paired]) -> str:
    ranked = sorted(controls, key=lambda name: controls[name][0])
    listed = ", ".join(f"{name} {controls[name][0]:.4f}" for name in ranked)
    caution = "One seed: not a significance statement."
    if paid:
        claim = f"Growing paid: its test loss of {grown[0]:.4f} is lower than that of every control"
        return f"{claim} with the same budget and compute ({listed}). {caution}"
    no_worse = [name for name in ranked if not differences[name].below_zero]
    return (
        f"Growing did not pay: {' and '.join(no_worse)} did no worse with the same budget and compute "
        f"(test loss {grown[0]:.4f}; controls: {listed}). {caution}"
    )


def _seeds_words(paid: bool | None, grown: Sequence[float], controls: Losses, differences: Mapping[str, Paired]) -> str:
    ranked = sorted(controls, key=lambda name: fmean(controls[name]))
    groups = {
        "better": [name for name in ranked if not (differences[name].below_zero or differences[name].undecided)],
        "no clear difference": [name for name in ranked if differences[name].undecided],
        "worse": [name for name in ranked if differences[name].below_zero],
    }
    claim = "Growing paid" if paid else "Growing did not pay" if groups["better"] else "That growing paid is not established"
    listed = "; ".join(f"{what}: {_listed(names, differences)}" for what, names in groups.items() if names)
    return (
        f"{claim} over {len(grown)} seeds: the grown network's mean test loss is {_mean_words(grown)}. "
        f"With the same budget and compute, {listed}. In brackets: grown minus control, mean and {100 * CONFIDENCE:g} % interval."
    )


def _listed(names: Sequence[str], differences: Mapping[str, Paired]) -> str:
    found = [(name, differences[name]) for name in names]
    return ", ".join(f"{name} ({pair.mean:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}])" for name, pair in found)


def _mean_words(values: Sequence[float]) -> str:
    return f"{values[0]:.4f}" if len(values) == 1 else f"{fmean(values):.4f} (sd {stdev(values):.4f})"
