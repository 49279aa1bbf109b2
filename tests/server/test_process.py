"""The server as a process of its own: it serves on loopback, ends its streams when it is stopped, and the next one takes them up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from store.settings import Settings
from wattle.client import Client, Event


class Process:
    """``python -m server`` on the settings' port."""

    def __init__(self, settings: Settings, log: Path) -> None:
        environment = {**os.environ, **{f"WATTLE_{name.upper()}": str(value) for name, value in settings.model_dump().items()}}
        self.log = log
        with log.open("ab") as output:
            self.child = subprocess.Popen([sys.executable, "-m", "server"], env=environment, stdout=output, stderr=output)
        with Client(f"http://127.0.0.1:{settings.port}") as client:
            while not client.ready():
                assert self.child.poll() is None, log.read_text()
                time.sleep(0.05)

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        self.child.send_signal(with_signal)
        self.child.wait(20)


@pytest.fixture
def on_port(settings: Settings) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return settings.model_copy(update={"port": probe.getsockname()[1]})


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGKILL])
def test_streams_go_on_with_the_next_server(with_signal: int, on_port: Settings, tmp_path: Path, spec: dict[str, Any]) -> None:
    seen: list[Event] = []
    first = Process(on_port, tmp_path / "log")
    try:
        client = Client(f"http://127.0.0.1:{on_port.port}")
        job = client.submit(spec)
        watcher = threading.Thread(target=lambda: seen.extend(Client(client.url).events(job["id"])), daemon=True)
        watcher.start()
        time.sleep(0.5)
        assert "libtorch" not in Path(f"/proc/{first.child.pid}/maps").read_text()
    finally:
        first.stop(with_signal)
    second = Process(on_port, tmp_path / "log")
    try:
        client.cancel(job["id"])
        watcher.join(30)
    finally:
        second.stop()
    assert [event.payload["state"] for event in seen] == ["queued", "cancelled"]
    assert "Traceback" not in first.log.read_text()


def test_wrong_settings_end_it_with_the_reason(on_port: Settings) -> None:
    environment = {**os.environ, "WATTLE_HOST": "0.0.0.0"}
    done = subprocess.run([sys.executable, "-m", "server"], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no authentication" in done.stderr
