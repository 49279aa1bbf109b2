"""How channels are scored, by name: ours, and those of installed packages (``costs.plugins``)."""

from costs.plugins import extended
from growth.scorers.at_random import AtRandom
from growth.scorers.base import GroupScore, Scorer
from growth.scorers.by_solver import BySolver
from growth.solvers import RayleighSettings, automatic, dense, krylov_size, rayleigh

__all__ = ["SCORERS", "GroupScore", "Scorer"]

_OWN: dict[str, Scorer] = {
    "splitting": BySolver(automatic, krylov_size),
    "rayleigh": BySolver(rayleigh, lambda _: RayleighSettings().epochs + 1),
    "exact": BySolver(dense, lambda fan_in: fan_in),
    "random": AtRandom(),
}
SCORERS: dict[str, Scorer] = extended("scorers", _OWN)
