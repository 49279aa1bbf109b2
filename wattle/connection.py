"""Which server the commands talk to, and which broker a worker of this folder listens to."""

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


def broker_here() -> dict[str, str]:
    """The environment by which a worker joins the service that runs on this data folder; empty where none does."""
    from wattle.specs import settings
    from wattle.state import read_state

    state = read_state(settings().data_dir)
    return {"WATTLE_BROKER_URL": state["broker_url"]} if state else {}
