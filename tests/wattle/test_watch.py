"""Progress in words, on a terminal and in a log."""

import io
from typing import Any

from rich.console import Console

from wattle.client import Event
from wattle.watch import LineView, apply, picture, run_words, words

JOB: dict[str, Any] = {"id": "j1", "name": "digits", "kind": "growth", "state": "running", "attempt": 1}
PROGRESS = {
    "phase": "training", "run": "grown", "round": 2, "rounds": 3, "step": 340, "total_steps": 1200, "overall_fraction": 0.28,
    "loss": 0.2134, "accuracy": 0.941, "cost": 0.82, "limit": 1.2, "unit": "ms", "widths": [8, 8, 10], "eta_seconds": 100.4,
}  # fmt: skip


def text_of(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above


def test_everything_known_is_shown() -> None:
    shown = text_of(picture({**JOB, "progress": PROGRESS}))
    for part in ("digits", "running", "grown", "round 2/3", "step 340/1200", "loss 0.2134", "accuracy 0.941", "cost 0.82 of 1.2 ms", "28%"):
        assert part in shown
    assert "about 1:40 left" in shown
    assert "8 8 10" in shown


def test_large_costs_have_separators() -> None:
    job = {**JOB, "progress": {"cost": 154_512, "limit": 300_000, "unit": "MACs"}}
    assert "cost 154,512 of 300,000 MACs" in words(job)


def test_profile_says_what_it_measures() -> None:
    progress = {"phase": "profiling", "step": 12, "total_steps": 60, "message": "round 3", "overall_fraction": 0.2, "eta_seconds": 48}
    assert words({**JOB, "progress": progress})[2:] == ["profiling", "round 3"]
    assert "about 0:48 left" in text_of(picture({**JOB, "progress": progress}))


def test_a_profile_without_a_worker_says_what_it_waits_for() -> None:
    queued = {**JOB, "kind": "profile", "state": "queued", "attempt": 0, "waits_for": "no worker of pi-4 is there"}
    assert words(queued) == ["digits", "queued", "no worker of pi-4 is there"]
    apply(queued, Event("7", "state", {"state": "running"}))
    assert words(queued) == ["digits", "running"]


def test_controls_are_named() -> None:
    assert "control cost only" in words({**JOB, "progress": {"run": "cost_only"}})


def test_nothing_known_is_no_error() -> None:
    assert words({**JOB, "state": "queued"}) == ["digits", "queued", "attempt 1 ended early, waiting for a worker"]
    assert "queued" in text_of(picture({**JOB, "state": "queued", "attempt": 0, "progress": {}}))


def test_failure_says_cause_and_reason() -> None:
    failed = {**JOB, "state": "failed", "cause": "disk_full", "message": "no space left; free 2 GiB"}
    assert "disk_full: no space left; free 2 GiB" in words(failed)


def test_events_bring_the_job_up_to_date() -> None:
    job = {**JOB, "progress": {"step": 1, "loss": 2.0}}
    apply(job, Event("1", "progress", {"step": 2}))
    apply(job, Event("2", "state", {"state": "succeeded"}))
    apply(job, Event("3", "round", {"number": 1}))
    assert job["state"] == "succeeded"
    assert job["progress"] == {"step": 2}


def test_lines_are_few() -> None:
    """One line per change of state, run, phase or round; not one per step."""
    console = Console(file=io.StringIO(), width=160)
    with LineView(console) as view:
        for step in range(100):
            view.show({**JOB, "progress": {**PROGRESS, "step": step, "round": 1 + step // 50}})
        view.show({**JOB, "state": "succeeded"})
    assert console.file.getvalue().count("\n") == 3  # type: ignore[attr-defined]  # it is the StringIO above


def test_a_run_is_named_by_its_arm_and_its_seed() -> None:
    assert [run_words(run) for run in ("grown", "retrained.2", "cost_only", "uniform.1")] == [
        "grown", "retrained, repeat 2", "control cost only", "control uniform, repeat 1",
    ]  # fmt: skip
