"""``wattle up``, ``wattle demo`` and ``wattle worker`` as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wattle.demo import own_settings


def start(*arguments: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WATTLE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "wattle", *arguments],
        cwd=folder, env={**clean, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def first_document(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the process says first; it may run on."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.rstrip() == "}":
            break
    document: dict[str, Any] = json.loads(text)
    return document


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_up_says_where_it_runs_and_stops_when_asked(tmp_path: Path) -> None:
    process = start("up", "--json", folder=tmp_path, WATTLE_PORT="0")
    document = first_document(process)
    ask = start("devices", "--json", folder=tmp_path, WATTLE_URL=document["url"])
    assert [device["name"] for device in json.loads(ask.communicate()[0])["devices"]] == ["this-host"]
    again = start("up", "--json", folder=tmp_path, WATTLE_PORT="0")
    out, _ = again.communicate()
    assert again.returncode == 3
    assert "already runs" in json.loads(out)["detail"]
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0
    assert not [name for name, pid in document["processes"].items() if alive(pid)]


def test_interrupted_demo_leaves_nothing_running(tmp_path: Path) -> None:
    process = start("demo", folder=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Measuring"):
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    threads = [task.read_text().split() for task in Path(f"/proc/{process.pid}/task").glob("*/children")]
    pids = {int(pid) for pid in [*children, *(pid for each in threads for pid in each)]}
    assert len(pids) == 3  # broker, server, worker
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode not in (0, None)
    assert not [pid for pid in pids if alive(pid)]


def test_demo_leaves_the_users_service_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WATTLE_DATABASE_URL", "postgresql+psycopg://user@example/theirs")
    monkeypatch.setenv("WATTLE_BROKER_URL", "redis://example/0")
    settings = own_settings(tmp_path)
    assert settings.database_url == ""
    assert "broker_url" not in settings.model_fields_set


def test_worker_says_what_it_becomes(tmp_path: Path) -> None:
    process = start("worker", "--device", "bench", "--threads", "1", "--only-profiles", "--json", folder=tmp_path)
    out, _ = process.communicate()  # there is no database here: it ends at once
    assert json.loads(out)["command"][1:] == ["-m", "worker", "--device", "bench", "--threads", "1", "--only-profiles"]
    assert process.returncode != 0
