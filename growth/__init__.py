"""How a network grows: channel groups, splitting index, selection, surgery, training, the growth loop.

The public names below are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growth.checkpoint import CheckpointError, load_network, save_network
    from growth.classifier import Classifier
    from growth.config import GrowthConfig
    from growth.controls import CONTROLS, control
    from growth.events import Finished, Proposal, Round, Scored, Step
    from growth.groups import ChannelGraph, TraceError, find_groups
    from growth.loop import Growth
    from growth.networks import build
    from growth.notebook import grow
    from growth.operators import OPERATORS
    from growth.preprocessing import Preprocessing
    from growth.removal import Removal, remove_channels
    from growth.scorers import SCORERS
    from growth.selection import Selection, select
    from growth.shrinking import choose_removals, departures
    from growth.surgery import Offspring, Split, add_channels, widen
    from growth.training import Data, Evaluation, NotANumber, evaluate

_HOMES = {
    "checkpoint": ("CheckpointError", "load_network", "save_network"),
    "classifier": ("Classifier",),
    "config": ("GrowthConfig",),
    "controls": ("CONTROLS", "control"),
    "events": ("Finished", "Proposal", "Round", "Scored", "Step"),
    "groups": ("ChannelGraph", "TraceError", "find_groups"),
    "loop": ("Growth",),
    "networks": ("build",),
    "notebook": ("grow",),
    "operators": ("OPERATORS",),
    "preprocessing": ("Preprocessing",),
    "removal": ("Removal", "remove_channels"),
    "scorers": ("SCORERS",),
    "selection": ("Selection", "select"),
    "shrinking": ("choose_removals", "departures"),
    "surgery": ("Offspring", "Split", "add_channels", "widen"),
    "training": ("Data", "Evaluation", "NotANumber", "evaluate"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CONTROLS", "OPERATORS", "SCORERS", "ChannelGraph", "CheckpointError", "Classifier", "Data", "Evaluation", "Finished", "Growth",
    "GrowthConfig", "NotANumber", "Offspring", "Preprocessing", "Proposal", "Removal", "Round", "Scored", "Selection", "Split", "Step",
    "TraceError", "add_channels", "build", "choose_removals", "control", "departures", "evaluate", "find_groups", "grow", "load_network",
    "remove_channels", "save_network", "select", "widen",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'growth' has no attribute {name!r}")
    return getattr(importlib.import_module(f"growth.{_HOME[name]}"), name)
