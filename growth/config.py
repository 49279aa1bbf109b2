"""How a network grows: every number of a run that is not data, network or cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["one_cycle", "cosine"]
StepRule = Literal["fixed", "line_search"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthConfig:
    """Stages: ``steps_per_round`` steps of the seed, the same after each of ``rounds`` growth rounds, then ``final_steps``.

    ``limit`` is what the grown network may cost, in the unit of the cost model.  ``operators`` add channels (``growth.operators``); one
    ranking chooses among all that they propose.  ``split_step`` is the distance of an offspring from its parent in units of the
    parent's norm; the step rule ``line_search`` scales it, for all offspring of a round alike, to where the loss falls most.
    ``softplus_beta`` shapes the softplus whose curvature stands in for ReLU's.  ``max_growth`` bounds each group's width in units of
    its seed width.  A search uses ``scoring_samples`` training images to find candidates, ``fresh_samples`` others to rank them and as
    many again to judge the best; while the gain is not reliable the fresh images are doubled, up to ``max_fresh_samples`` in all.
    With ``shrink`` a round also removes channels where what they free is worth more elsewhere (``growth.shrinking``).
    ``learning_rate`` is the peak of one schedule over all stages.
    With ``compute_limit_macs`` the final stage is as long as that much charged compute allows, and ``final_steps`` only plans the
    schedule.  With ``planned_widths``, the widths after each round, rounds follow that plan by exact twins (``growth.twins``) and score
    nothing.  With ``slimming``, the strength of an L1 penalty on the norms' scales until the last round, rounds remove the channels of
    smallest scales down to their limits (``growth.slimming``); neither is rolled back.  ValueError for a value out of range.
    """

    limit: float
    rounds: int = 3
    steps_per_round: int = 100
    final_steps: int = 200
    batch_size: int = 64
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "one_cycle"
    scorer: str = "splitting"
    operators: Sequence[str] = ("split",)
    step_rule: StepRule = "fixed"
    split_step: float = 0.3
    softplus_beta: float = 3.0
    max_growth: float = 4.0
    scoring_samples: int = 512
    fresh_samples: int = 256
    max_fresh_samples: int = 2048
    seed: int = 0
    compute_limit_macs: int | None = None
    planned_widths: Sequence[Sequence[int]] | None = None
    slimming: float | None = None
    shrink: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("limit", 1e-12, 1e30),
            ("rounds", 0, 1000),
            ("steps_per_round", 0, 10**9),
            ("final_steps", 0, 10**9),
            ("batch_size", 2, 10**6),
            ("learning_rate", 1e-9, 1e3),
            ("momentum", 0, 0.9999),
            ("weight_decay", 0, 1),
            ("split_step", 1e-6, 10),
            ("softplus_beta", 1e-3, 1e3),
            ("max_growth", 1, 1e6),
            ("scoring_samples", 2, 10**9),
            ("fresh_samples", 2, 10**9),
            ("max_fresh_samples", 2 * self.fresh_samples, 10**9),
            ("seed", 0, 2**63 - 1),
            *([("slimming", 0, 1)] if self.slimming is not None else []),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must lie between {low:g} and {high:g}")
        if self.schedule not in ("one_cycle", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; choose one_cycle or cosine")
        if self.slimming is not None and self.planned_widths is not None:
            raise ValueError("slimming and planned_widths both say what rounds do; give one of them")
        if self.step_rule not in ("fixed", "line_search"):
            raise ValueError(f"step_rule is {self.step_rule!r}; choose fixed or line_search")

    @property
    def growth_steps(self) -> int:
        """Steps before the final stage."""
        return self.steps_per_round * (1 + self.rounds)
