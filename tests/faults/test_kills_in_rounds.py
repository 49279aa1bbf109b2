"""kill -9 of workers inside a growth round, for every operator: another worker ends the job with the bits of an undisturbed one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from growth.operators import OPERATORS
from store import jobs

if TYPE_CHECKING:
    from conftest import Running

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.xdist_group("faults"), pytest.mark.timeout(600)]

STAGE = 6 * (1259 // 32)  # steps of the seed, and again of the round: epochs_per_round times those of an epoch of digits
SPEC: dict[str, Any] = {
    "growth": {"rounds": 1, "scoring_samples": 128, "fresh_samples": 128},
    "budget": {"cost": "macs", "limit": 40_000, "device": "elsewhere"},
    "training": {"epochs_per_round": 6, "final_epochs": 1, "batch_size": 32, "learning_rate": 0.05},
}
OF_THE_CLOCK = {"job", "written_at", "seconds", "used"}


@pytest.mark.parametrize("operator", OPERATORS)
def test_killed_while_the_round_scores_and_while_it_trains(busy_wattle: Running, operator: str) -> None:
    wattle = busy_wattle
    network = {"family": "plain", "widths": [4, 6], "norm": operator != "gradmax"}  # which needs groups without
    changes = {**SPEC, "network": network, "growth": {**SPEC["growth"], "operators": [operator]}}
    job_id, undisturbed = wattle.submit(**changes), wattle.submit(**changes)
    wattle.wait_for(lambda: step(wattle, job_id) >= STAGE)  # told as the round opens
    assert_in_the_round(wattle, job_id)
    wattle.kill("worker", job_id)
    wattle.wait_for(lambda: wattle.job(job_id).attempt == 2 and newest_checkpoint(wattle, job_id) > STAGE)
    assert_in_the_round(wattle, job_id)
    wattle.kill("worker", job_id)
    wattle.end(undisturbed)
    job = wattle.end(job_id)
    assert (job.state, job.attempt) == ("succeeded", 3), job.message
    assert len({attempt.worker for attempt in jobs.attempts(wattle.db, job_id)}) == 3
    (grown,) = jobs.rounds(wattle.db, job_id)
    assert operator in grown.payload["added_by"]
    assert wattle.network_sha256(job_id) == wattle.network_sha256(undisturbed)
    assert report(wattle, job_id) == report(wattle, undisturbed)
    assert report(wattle, job_id)["config"]["steps_per_round"] == STAGE


def step(wattle: Running, job_id: str) -> int:
    return int(wattle.job(job_id).progress.get("step", 0))


def newest_checkpoint(wattle: Running, job_id: str) -> int:
    """Its step; 0 without any."""
    return max((kept.step for kept in jobs.checkpoints(wattle.db, job_id)), default=0)


def assert_in_the_round(wattle: Running, job_id: str) -> None:
    """It has opened and is not checked yet."""
    assert not jobs.rounds(wattle.db, job_id)
    assert STAGE <= step(wattle, job_id) <= 2 * STAGE


def report(wattle: Running, job_id: str) -> Any:
    return without_the_clock(wattle.client.get(f"/v1/jobs/{job_id}/report").raise_for_status().json())


def without_the_clock(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: without_the_clock(value) for name, value in document.items() if name not in OF_THE_CLOCK}
    return [without_the_clock(each) for each in document] if isinstance(document, list) else document
