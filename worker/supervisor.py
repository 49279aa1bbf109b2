"""One attempt at a job: win the lease, own a child process, keep the lease alive, and give a verdict when the child is dead.

The child (``worker.child``) gets its order as one JSON line on stdin and answers with one JSON line on stdout, its *outcome*; its
stderr is the job's log.  It never writes the job's state: that is done here, after its process group is verifiably dead, so that no
finished, failed or cancelled job has a living process.  Every write is fenced by the lease; a supervisor that lost it kills and is silent.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from store import jobs
from store.database import Database, DatabaseUnavailable
from store.jobs import Cause, Lease, LeaseLost
from store.settings import Settings
from worker.processes import Register, kill_group, send

logger = logging.getLogger(__name__)

CHILD = (sys.executable, "-m", "worker.child")
GRACE_SECONDS = 20.0  # from SIGTERM to SIGKILL: time for a last checkpoint


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a child says about its end.  ``stopped``: it was told to stop and left a checkpoint behind."""

    state: Literal["succeeded", "failed", "stopped"]
    cause: Cause | None = None
    message: str | None = None


def supervise(
    db: Database,
    settings: Settings,
    job_id: str,
    device: str,
    stopping: Callable[[], bool] = lambda: False,
    command: Sequence[str] = CHILD,
    grace_seconds: float = GRACE_SECONDS,
) -> None:
    """Run one attempt to its end.  Returns without a trace when the job is not to be had: another worker has it, or it has ended.

    ``stopping`` turns true when this worker must make way: the child saves a checkpoint and the job goes back to the queue.
    """
    lease = jobs.claim(db, job_id, f"{device}@{socket.gethostname()}:{os.getpid()}", settings.lease_seconds)
    if lease is None:
        logger.info("job %s is not to be had; its message is dropped", job_id)
        return
    try:
        _carry_out(db, settings, lease, device, stopping, command, grace_seconds)
    except LeaseLost:
        logger.warning("lost the lease of job %s (attempt %d); its process is killed, nothing is written", job_id, lease.attempt)
    except OSError as error:
        logger.exception("job %s can't be run here", job_id)
        cause: Cause = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "internal"
        jobs.requeue(db, lease, cause, f"the worker could not run the job: {error}; look at its disk and its limits")


def _carry_out(
    db: Database, settings: Settings, lease: Lease, device: str, stopping: Callable[[], bool], command: Sequence[str], grace_seconds: float
) -> None:  # fmt: skip
    """Start the child, watch it, and settle.  Whatever happens, its group is dead afterwards."""
    register = Register(settings.data_dir / "pids")
    for stray in register.end_strays(lease.job.id):
        logger.warning("ended process group %d, left behind by an attempt whose supervisor died", stray)
    with open_log(settings, lease) as log:
        child = Child.start(command, order(lease, settings, device), log)
        try:
            note = register.add(child.pid, lease.job.id)
            _watch(db, lease, child, settings, stopping, grace_seconds)
            child.kill()
            note.unlink(missing_ok=True)  # the next attempt may have taken it for a stray's
            _settle(db, lease, child, settings)
        finally:
            child.kill()


def order(lease: Lease, settings: Settings, device: str) -> dict[str, Any]:
    """What the child needs to know.  It travels over stdin: the token and the database's password are for nobody else to see."""
    return {
        "job": lease.job.id,
        "token": lease.token,
        "attempt": lease.attempt,
        "device": device,
        "supervisor": os.getpid(),
        "settings": settings.model_dump(mode="json"),
    }


def log_path(settings: Settings, job_id: str) -> Path:
    return settings.data_dir / "logs" / f"{job_id}.log"


def open_log(settings: Settings, lease: Lease) -> IO[bytes]:
    path = log_path(settings, lease.job.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("ab", buffering=0)
    log.write(f"--- attempt {lease.attempt} of {lease.job.max_attempts}, {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n".encode())
    return log


@dataclass(frozen=True, slots=True)
class Child:
    """A running child, leader of a session and process group of its own."""

    process: subprocess.Popen[bytes]
    pidfd: int

    @classmethod
    def start(cls, command: Sequence[str], order: dict[str, Any], log: IO[bytes]) -> Child:
        process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )  # fmt: skip
        child = cls(process, os.pidfd_open(process.pid))
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.close()
        except BrokenPipeError:
            logger.warning("the child of job %s ended before it took its order", order["job"])
        return child

    @property
    def pid(self) -> int:
        return self.process.pid

    def ended(self, within_seconds: float) -> bool:
        """Whether the child has ended, waiting for it at most so long."""
        return bool(select.select([self.pidfd], [], [], max(0.0, within_seconds))[0])

    def kill(self) -> None:
        """End the whole group and reap the child."""
        kill_group(self.pid)
        self.process.wait()

    def outcome(self) -> Outcome | None:
        """The outcome the dead child left in the pipe; None if it died without one.  To be read once."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)  # should anybody else hold the pipe open, don't wait for them
        lines = (self.process.stdout.read() or b"").splitlines()
        return Outcome(**json.loads(lines[-1])) if self.process.returncode == 0 and lines else None


def _watch(
    db: Database, lease: Lease, child: Child, settings: Settings, stopping: Callable[[], bool], grace_seconds: float
) -> None:  # fmt: skip
    """Heartbeats until the child has ended or its grace is over.  LeaseLost if the lease went to somebody else or can't be kept."""
    last_beat, kill_at, desired = time.monotonic(), float("inf"), "run"
    while not child.ended(min(0.5, settings.heartbeat_seconds)):
        now = time.monotonic()
        if now - last_beat >= settings.heartbeat_seconds:
            try:
                desired, last_beat = jobs.heartbeat(db, lease), now
            except DatabaseUnavailable as error:
                logger.warning("no heartbeat for job %s: %s", lease.job.id, error)
                if now - last_beat > settings.lease_seconds:
                    raise LeaseLost(lease.job.id, lease.attempt) from error
        if (desired == "cancel" or stopping()) and kill_at == float("inf"):
            send(child.pid, signal.SIGTERM)
            kill_at = now + grace_seconds
        if now > kill_at:
            return


def _settle(db: Database, lease: Lease, child: Child, settings: Settings) -> None:
    """Write what became of the attempt.  The child is dead: nothing else of this job is running here."""
    outcome, deadline = child.outcome(), time.monotonic() + settings.lease_seconds
    while True:
        try:
            return _write_verdict(db, lease, outcome, child.process.returncode)
        except DatabaseUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _write_verdict(db: Database, lease: Lease, outcome: Outcome | None, returncode: int) -> None:
    if outcome is not None and outcome.state == "succeeded":
        jobs.finish(db, lease, "succeeded")
    elif jobs.heartbeat(db, lease) == "cancel":
        jobs.finish(db, lease, "cancelled")
    elif outcome is None:
        jobs.requeue(db, lease, "lost_worker", _how_it_died(returncode))
    elif outcome.state == "failed":
        jobs.finish(db, lease, "failed", outcome.cause, outcome.message)
    else:
        jobs.requeue(db, lease, "lost_worker", "the worker was stopped; the job goes on from its last checkpoint", counts=False)


def _how_it_died(returncode: int) -> str:
    if returncode == -signal.SIGKILL:
        return (
            "the training process was killed by signal 9 (SIGKILL). When memory runs short the kernel does that: "
            "if it happens again, lower training.batch_size or growth.scoring_samples, or free memory"
        )
    if returncode < 0:
        return f"the training process was killed by signal {-returncode} ({signal.Signals(-returncode).name}); the job's log tells more"
    return f"the training process ended with exit code {returncode} and no word about why; the job's log tells more"
