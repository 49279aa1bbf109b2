"""Process groups: is one alive, kill one for certain, and remember one on disk so that a stray can be found after a crash.

Linux: reads /proc.  A zombie counts as dead: it holds no memory, no device, no file.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


class StillAlive(RuntimeError):  # noqa: N818 - named for what it says
    """A process group that SIGKILL did not end in time: a process hangs in the kernel."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A process beyond doubt: a pid alone may have been given to another process since.  ``started`` is in ticks since boot."""

    pid: int
    started: int
    host: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a living process, None if there is none."""
        status = _status(pid)
        return None if status is None else cls(pid, status.started, socket.gethostname())

    @property
    def alive(self) -> bool:
        return Identity.of(self.pid) == self


@dataclass(frozen=True, slots=True)
class _Status:
    group: int
    started: int


def _status(pid: int) -> _Status | None:
    """Group and start time of a process that lives; None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return None if fields[0] in "ZX" else _Status(group=int(fields[2]), started=int(fields[19]))


def members(group: int) -> Iterator[int]:
    """The pids of the living processes of a group."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            status = _status(int(entry))
            if status is not None and status.group == group:
                yield int(entry)


def group_alive(group: int) -> bool:
    return any(True for _ in members(group))


def send(group: int, number: signal.Signals) -> None:
    """A signal to every process of a group; nothing happens if there is none left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def kill_group(group: int, seconds: float = 10.0) -> None:
    """SIGKILL a group and return when it is verifiably dead.  StillAlive if it isn't after ``seconds``."""
    deadline = time.monotonic() + seconds
    while group_alive(group):
        if time.monotonic() > deadline:
            raise StillAlive(f"process group {group} lives {seconds:g} s after SIGKILL: {list(members(group))}; look at it, then restart")
        send(group, signal.SIGKILL)
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Register:
    """One small file per running child, so that the next attempt on this host can end what a crash left behind."""

    folder: Path

    def add(self, child: int, job_id: str) -> Path:
        """Remember that this process supervises ``child``, which leads its own group."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{job_id}-{child}.json"
        known = {"child": _plain(Identity.of(child)), "supervisor": _plain(Identity.of(os.getpid()))}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(known))
        return partial.replace(path)

    def end_strays(self, job_id: str) -> list[int]:
        """Kill the groups whose supervisor died, and every older group of this very job.  Returns the groups that were alive."""
        ended: list[int] = []
        for path in self.folder.glob("*.json"):
            known = json.loads(path.read_text())
            child = known["child"] and Identity(**known["child"])
            supervisor = known["supervisor"] and Identity(**known["supervisor"])
            elsewhere = child is not None and child.host != socket.gethostname()  # its pids mean nothing here
            wanted = supervisor is not None and supervisor.alive and not path.name.startswith(f"{job_id}-")
            if elsewhere or wanted:
                continue
            if child is not None and _leads_living_group(child):
                kill_group(child.pid)
                ended.append(child.pid)
            path.unlink(missing_ok=True)
        return ended


def _leads_living_group(child: Identity) -> bool:
    """Linux gives no new process the number of a group that still has members, so a leaderless group is still the child's."""
    now = Identity.of(child.pid)
    return now == child or (now is None and group_alive(child.pid))


def _plain(identity: Identity | None) -> dict[str, int | str] | None:
    return None if identity is None else asdict(identity)
