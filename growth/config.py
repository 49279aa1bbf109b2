"""How a network grows: every number of a run that is not data, network or cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Schedule = Literal["one_cycle", "cosine"]
Precision = Literal["float32", "bfloat16"]
MemoryFormat = Literal["contiguous", "channels_last"]
StepRule = Literal["fixed", "line_search", "gauss_newton"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthConfig:
    """Stages: ``steps_per_round`` steps of the seed, the same after each of ``rounds`` growth rounds, then ``final_steps``.  Of several
    ``steps_per_round`` the first are the seed's, the next those after the first round, and so on (``growth.moments``).

    ``limit`` is what the grown network may cost, in the unit of the cost model.  ``operators`` add channels (``growth.operators``); one
    ranking chooses among all that they propose.  ``split_step`` is the distance of an offspring from its parent in units of the
    parent's norm; step rules other than ``fixed`` scale it, for all offspring of a round alike,
    to where the loss falls most (``growth.operators.stride``).
    ``softplus_beta`` shapes the softplus whose curvature stands in for ReLU's.  ``max_growth`` bounds each group's width in units of
    its seed width; widths that change become multiples of ``multiple_of``.  A search uses ``scoring_samples`` training images to find
    candidates, ``fresh_samples`` others to rank them and as many again to judge the best; while the gain is not reliable the fresh
    images are doubled, up to ``max_fresh_samples`` in all.
    With ``fill`` the room that no reliable gain asks for goes to the most channels that fit, which nothing reads at first
    (``growth.choosing``).
    With ``shrink`` a round also removes channels where what they free is worth more elsewhere (``growth.shrinking``).
    ``learning_rate`` is the peak of one schedule over all stages.  ``distillation`` is the part of the loss, after growing and until the
    round is over, that is the cross-entropy against the parent's class probabilities instead of the classes.  Training steps compute
    in ``precision`` (weights and all that is judged stay in float32), in ``memory_format``, and ``compiled`` by torch; scores do not.
    With ``compute_limit_macs`` the final stage is as long as that much charged compute allows, and ``final_steps`` only plans the
    schedule.  With ``planned_widths``, the widths after each round, rounds follow that plan by exact twins (``growth.twins``) and score
    nothing.  With ``slimming``, the strength of an L1 penalty on the norms' scales until the last round, rounds remove the channels of
    smallest scales down to their limits (``growth.slimming``); neither is rolled back.  ValueError for a value out of range.
    """

    limit: float
    rounds: int = 3
    steps_per_round: int | Sequence[int] = 100
    final_steps: int = 200
    batch_size: int = 64
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "one_cycle"
    scorer: str = "splitting"
    operators: Sequence[str] = ("split",)
    fill: bool = True
    step_rule: StepRule = "fixed"
    split_step: float = 0.1
    softplus_beta: float = 3.0
    max_growth: float = 4.0
    multiple_of: int = 1
    scoring_samples: int = 512
    fresh_samples: int = 256
    max_fresh_samples: int = 2048
    distillation: float = 0.0
    precision: Precision = "float32"
    memory_format: MemoryFormat = "contiguous"
    compiled: bool = False
    seed: int = 0
    compute_limit_macs: int | None = None
    planned_widths: Sequence[Sequence[int]] | None = None
    slimming: float | None = None
    shrink: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("limit", 1e-12, 1e30),
            ("rounds", 0, 1000),
            ("final_steps", 0, 10**9),
            ("batch_size", 2, 10**6),
            ("learning_rate", 1e-9, 1e3),
            ("momentum", 0, 0.9999),
            ("weight_decay", 0, 1),
            ("split_step", 1e-6, 10),
            ("distillation", 0, 1),
            ("softplus_beta", 1e-3, 1e3),
            ("max_growth", 1, 1e6),
            ("multiple_of", 1, 1024),
            ("scoring_samples", 2, 10**9),
            ("fresh_samples", 2, 10**9),
            ("max_fresh_samples", 2 * self.fresh_samples, 10**9),
            ("seed", 0, 2**63 - 1),
            *([("slimming", 0, 1)] if self.slimming is not None else []),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must lie between {low:g} and {high:g}")
        if len(self.stage_steps) <= self.rounds or not all(0 <= steps <= 10**9 for steps in self.stage_steps):
            raise ValueError(f"steps_per_round is {self.steps_per_round}; give one number, or {1 + self.rounds} of 0 to 1e+09")
        if self.schedule not in ("one_cycle", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; choose one_cycle or cosine")
        choices = {"step_rule": StepRule, "precision": Precision, "memory_format": MemoryFormat}
        for name, literal in choices.items():
            if getattr(self, name) not in get_args(literal):
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(get_args(literal))}")
        if self.slimming is not None and self.planned_widths is not None:
            raise ValueError("slimming and planned_widths both say what rounds do; give one of them")

    @property
    def stage_steps(self) -> tuple[int, ...]:
        """Steps of the seed's stage and of each round's."""
        if isinstance(self.steps_per_round, int):
            return (self.steps_per_round,) * (1 + self.rounds)
        return tuple(self.steps_per_round)[: 1 + self.rounds]

    def stage_end(self, number: int) -> int:
        """The step at which the stage of round ``number`` ends; 0 is the seed's."""
        return sum(self.stage_steps[: number + 1])

    @property
    def growth_steps(self) -> int:
        """Steps before the final stage."""
        return sum(self.stage_steps)
