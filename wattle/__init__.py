"""The face of Wattle: the ``wattle`` command, ``Client`` for the service, and ``grow`` for use without one.

Nothing heavy is imported until it is used: ``from wattle import Client`` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from growth.notebook import grow as grow
    from wattle.client import Client as Client
    from wattle.client import ProblemError as ProblemError

__all__ = ["Client", "ProblemError", "grow"]

_HOMES = {"Client": "wattle.client", "ProblemError": "wattle.client", "grow": "growth.notebook"}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'wattle' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
