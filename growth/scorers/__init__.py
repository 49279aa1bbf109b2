"""How channels are scored, by name."""

from growth.scorers.at_random import at_random
from growth.scorers.base import GroupScore, Scorer
from growth.scorers.by_solver import BySolver
from growth.solvers import dense, lanczos, rayleigh

__all__ = ["SCORERS", "GroupScore", "Scorer"]

SCORERS: dict[str, Scorer] = {
    "splitting": BySolver(lanczos),
    "rayleigh": BySolver(rayleigh),
    "exact": BySolver(dense),
    "random": at_random,
}
