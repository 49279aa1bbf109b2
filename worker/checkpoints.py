"""Checkpoints of a job's runs: a file under its hash, registered in the store when it is whole, found again by the next attempt."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from costs.model import Budget
from growth.checkpoint import CheckpointError
from growth.loop import Growth
from growth.training import Data
from store import jobs
from store.jobs import Checkpoint
from worker.attempt import Attempt

logger = logging.getLogger(__name__)

KEPT_PER_RUN = 2  # one more than needed: the newest may turn out damaged


class Checkpoints:
    """The checkpoints of one job.  Only what is registered under the lease is ever resumed, so a zombie's files do no harm."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.folder = attempt.settings.job_dir(attempt.job_id) / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_over in (*self.folder.glob("attempt-*"), *self.folder.glob(".attempt-*")):  # of attempts that died while writing
            left_over.unlink()

    def save(self, run: str, growth: Growth) -> None:
        """Write a checkpoint, register it, and forget old ones."""
        attempt = self._attempt
        fresh = self.folder / f"attempt-{attempt.lease.attempt}"
        growth.save(fresh)
        sha256, size = _hash(fresh), fresh.stat().st_size
        fresh.replace(self._path(sha256))
        _sync(self.folder)
        jobs.register_checkpoint(attempt.db, attempt.lease, run, growth.step, sha256, size)
        for forgotten in jobs.forget_checkpoints(attempt.db, attempt.lease, run, KEPT_PER_RUN):
            self._path(forgotten).unlink(missing_ok=True)

    def restore(self, run: str, data: Data, budgets: Sequence[Budget]) -> Growth | None:
        """The run as its newest intact checkpoint has it, and the store's record of it rewound to there; None to start over."""
        attempt = self._attempt
        for checkpoint in jobs.checkpoints(attempt.db, attempt.job_id):
            growth = self._resumed(checkpoint, data, budgets) if checkpoint.run == run else None
            if growth is not None:
                logger.info("run %s goes on from step %d (checkpoint %s)", run, growth.step, checkpoint.sha256[:12])
                jobs.rewind(attempt.db, attempt.lease, run, growth.step)
                return growth
        jobs.rewind(attempt.db, attempt.lease, run, -1)
        return None

    def _resumed(self, checkpoint: Checkpoint, data: Data, budgets: Sequence[Budget]) -> Growth | None:
        path = self._path(checkpoint.sha256)
        try:
            if _hash(path) != checkpoint.sha256:
                raise CheckpointError(f"{path} does not have the hash it was registered with")
            return Growth.resume(path, data, budgets[0].cost_model, budgets[1:])
        except (CheckpointError, FileNotFoundError) as error:
            logger.warning("checkpoint of run %s at step %d is passed over: %s", checkpoint.run, checkpoint.step, error)
            return None

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.safetensors"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
