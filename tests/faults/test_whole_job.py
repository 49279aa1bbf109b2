"""A job of the demonstration's size, controls and all, loses each of its processes once and ends with the bits of an undisturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from store import jobs
from wattle.client import load_spec

if TYPE_CHECKING:
    from conftest import Running

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.xdist_group("faults"), pytest.mark.timeout(1800)]

SPEC = load_spec(Path(__file__).parents[2] / "examples" / "digits-macs.yaml")
# the run that is hit, and at which share of the whole job
HITS = (("training child", 0.1), ("pool child", 0.35), ("worker", 0.6), ("server", 0.8))
WAIT_SECONDS = 900.0


def test_each_process_killed_once(patient_wattle: Running) -> None:
    wattle = patient_wattle
    undisturbed = submit(wattle)
    end(wattle, undisturbed)
    job_id = submit(wattle)
    for name, share in HITS:
        wattle.wait_for(lambda share=share: progress(wattle, job_id) >= share and wattle.training_child(job_id), WAIT_SECONDS)
        wattle.kill(name, job_id)
    job = end(wattle, job_id)
    assert (job.state, job.attempt) == ("succeeded", 4)  # a server's death costs no attempt
    assert wattle.network_sha256(job_id) == wattle.network_sha256(undisturbed)
    assert curves(wattle, job_id) == curves(wattle, undisturbed)
    ours, theirs = ([(r.run, r.number, r.payload) for r in jobs.rounds(wattle.db, each)] for each in (job_id, undisturbed))
    assert ours == theirs


def submit(wattle: Running) -> str:
    answer = wattle.client.post("/v1/jobs", json={**SPEC, "budget": {**SPEC["budget"], "device": "elsewhere"}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def end(wattle: Running, job_id: str) -> jobs.Job:
    wattle.wait_for(lambda: wattle.job(job_id).state in ("succeeded", "failed", "cancelled"), WAIT_SECONDS)
    assert wattle.job(job_id).state == "succeeded", wattle.job(job_id).message
    return wattle.job(job_id)


def progress(wattle: Running, job_id: str) -> float:
    return float(wattle.job(job_id).progress.get("overall_fraction", 0.0))


def curves(wattle: Running, job_id: str) -> dict[str, dict[str, list[list[float]]]]:
    """All curves but the wall-clock one."""
    found = jobs.metrics(wattle.db, job_id, 1_000_000)
    return {run: {name: curve for name, curve in by_name.items() if name != "seconds"} for run, by_name in found.items()}
