"""What other packages add by entry point: names without importing anything, so that a process without torch can know them.

A package declares, for example,

    [project.entry-points."wattle.operators"]
    mine = "my_package.mine:Mine"

where ``Mine()`` keeps the contract of its kind.  It must be installed wherever specs are checked and wherever jobs run.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

Kind = Literal["operators", "scorers"]


class PluginError(ImportError):
    """An installed package declares what can't be used."""


def installed(kind: Kind) -> dict[str, EntryPoint]:
    """By name.  Nothing is imported."""
    return {found.name: found for found in entry_points(group=f"wattle.{kind}")}


def extended(kind: Kind, own: Mapping[str, Any]) -> dict[str, Any]:
    """Ours and an instance of each that is installed.  PluginError, with package and remedy, for one that can't be had."""
    everything = dict(own)
    for name, found in installed(kind).items():
        package = found.dist.name if found.dist is not None else found.value
        if name in own:
            raise PluginError(f"{package} declares {name!r} in wattle.{kind}, which Wattle has itself; rename it there, or uninstall it")
        try:
            everything[name] = found.load()()
        except Exception as error:
            raise PluginError(f"{name!r} of {package} in wattle.{kind} can't be loaded ({error}); mend or uninstall it") from error
    return everything
