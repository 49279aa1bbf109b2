"""Which server the commands talk to."""

from __future__ import annotations

import os

from wattle.client import Client


def connect() -> Client:
    """The server at WATTLE_URL; else the service that runs on this data folder; else the host and port of the settings."""
    if url := os.environ.get("WATTLE_URL"):
        return Client(url)
    from wattle.specs import settings  # only now: what a command needs for its help is little
    from wattle.state import read_state

    found = settings()
    state = read_state(found.data_dir)
    return Client(state["url"] if state else f"http://{found.host}:{found.port}")
