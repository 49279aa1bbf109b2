"""A profile job: measure this device for everything a network can grow into, and keep the cost table."""

from __future__ import annotations

import logging

from store import devices
from store.admission import admit_profile
from store.spec import ProfileSpec
from worker.attempt import Attempt, Reporter

logger = logging.getLogger(__name__)


def run_profile(attempt: Attempt, reporter: Reporter) -> None:
    """Measure and keep.  What was read before an interruption is gone on from, if the machine has not changed meanwhile."""
    from profiler.device import fingerprint
    from profiler.meters import MeterError
    from profiler.processor import open_processor
    from profiler.profile import profile_device
    from profiler.readings import ReadingsFile
    from profiler.timing import NoResult
    from worker.measured import energy_request

    spec = ProfileSpec.model_validate(attempt.lease.job.spec)
    if spec.device != attempt.device:
        raise RuntimeError(f"a profile of {spec.device} came to {attempt.device}; start that worker with the queues of its own device only")
    admitted = admit_profile(spec, attempt.db)
    reporter.tell({"phase": "profiling", "unit": "s"})

    def tell(done: int, total: int, message: str) -> None:
        fraction = done / max(1, total)
        reporter.tell({"step": done, "total_steps": total, "overall_fraction": fraction, "eta_seconds": total - done, "message": message})

    on = open_processor(attempt.settings.torch_device)
    # A table belongs to what the machine is now: torch or the governor may have changed since the worker started.
    devices.register(attempt.db, attempt.device, fingerprint(attempt.settings.device_threads, on))
    energy = energy_request(spec.meter, attempt.settings, spec.energy_seconds, on) if spec.meter else None
    arguments = (admitted.network, spec.device, admitted.setting, spec.max_growth, spec.seconds)
    kept = ReadingsFile(
        path=attempt.settings.job_dir(attempt.job_id) / "readings.json",
        plan={"spec": attempt.lease.job.spec, "fingerprint": fingerprint(admitted.setting.threads, on)},
    )
    try:
        profile = profile_device(*arguments, progress=tell, should_stop=attempt.asked_to_stop, energy=energy, kept=kept, on=on)
    except (NoResult, MeterError):
        attempt.stop_if_asked()  # too few readings are no error where it was told to stop
        kept.discard()  # a retry is to measure anew
        raise
    attempt.stop_if_asked()
    devices.save_table(attempt.db, attempt.lease, profile.table)
    kept.discard()
    if profile.no_energy:
        raise profile.no_energy  # the latencies are kept
    for warning in profile.warnings:
        logger.warning(warning)
    trust = {
        "entries": len(profile.table),
        "missing": len(profile.missing),
        "error_percent": profile.error_percent,
        "drift_percent": None if profile.drift is None else 100 * profile.drift,
        "message": "; ".join([f"whole networks predicted within {profile.error_percent:.1f} % (mean)", *profile.warnings[:3]]),
    }
    reporter.tell({"phase": "done", "overall_fraction": 1.0, "eta_seconds": 0, **trust}, at_once=True)
