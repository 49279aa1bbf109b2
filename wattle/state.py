"""``service.json``: where the embedded service of a data folder is found.  Light, since every command looks there first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def state_path(data_dir: Path) -> Path:
    return data_dir / "service.json"


def read_state(data_dir: Path) -> dict[str, Any] | None:
    """``{pid, url, broker_url, processes: {name: pid}}`` of the service that runs on this data folder, None if none does."""
    try:
        state: dict[str, Any] = json.loads(state_path(data_dir).read_text())
        os.kill(state["pid"], 0)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state
