"""A server process to be measured, and HTTP spoken by hand: a library's client would need as much of two cores as the server."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from store.settings import Settings
from wattle.client import Client

SERVER = (sys.executable, "-m", "server")


@contextmanager
def started(commands: Sequence[Sequence[str]], folder: Path, environment: Mapping[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """These programs, until the end of the block."""
    children = [subprocess.Popen(command, env={**os.environ, **environment}, cwd=folder) for command in commands]
    try:
        yield children
    finally:
        for child in reversed(children):
            child.terminate()
            child.wait(20)


def as_environment(settings: Settings) -> dict[str, str]:
    """What a process must find in its environment to have these settings."""
    return {f"WATTLE_{name.upper()}": str(value) for name, value in settings.model_dump().items()}


def wait_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until the server answers.  RuntimeError if it ends first, or takes a minute."""
    deadline = time.monotonic() + 60
    with Client(f"http://127.0.0.1:{port}") as client:
        while not client.ready():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server ended, or was not ready within 60 s; its messages are above")
            time.sleep(0.1)


def request(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    """A request as it goes over the wire."""
    content = b"" if body is None else b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode() + content + b"\r\n" + (body or b"")


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> tuple[int, bytes]:
    """Status and body of the answer."""
    writer.write(sent)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(answer.partition("content-length: ")[2].partition("\r\n")[0])
    return int(answer.split(" ", 2)[1]), await reader.readexactly(length)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_seconds(pid: int) -> float:
    """User and system time of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
