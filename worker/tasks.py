"""The one Celery task.  Its message is a job id and nothing else: whether there is anything to do, the database says."""

from __future__ import annotations

from ctypes import c_bool
from multiprocessing.sharedctypes import RawValue

from celery import Celery
from celery.signals import worker_shutting_down

from store.database import Database
from store.queue import TASK
from store.settings import Settings
from worker.supervisor import supervise


def register_task(app: Celery, settings: Settings) -> None:
    """Teach ``app`` to run jobs as the device of ``settings``.  To be called before the pool forks: the pool inherits the stop flag."""
    stopping = RawValue(c_bool, False)  # shared memory without a lock: a killed pool process can't leave it locked

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]  # celery has no types
    def _make_way(**_: object) -> None:
        stopping.value = True

    @app.task(name=TASK)  # type: ignore[untyped-decorator]  # celery has no types
    def run(job_id: str) -> None:
        supervise(Database(settings.database), settings, job_id, settings.device, stopping=lambda: bool(stopping.value))
