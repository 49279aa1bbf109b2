"""Progress, curves, rounds, checkpoints, artifacts, and the feed of events."""

from __future__ import annotations

import math
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import jobs
from store.database import Database
from store.history import _extremes


@pytest.fixture
def lease(db: Database) -> jobs.Lease:
    lease = jobs.claim(db, jobs.submit(db, "growth", "a", {}, "growth", 3).id, "w", 30)
    assert lease
    return lease


def points(name: str, steps: range, run: str = "grown") -> list[jobs.Metric]:
    return [jobs.Metric(run, name, step, 1 / (step + 1)) for step in steps]


def test_curves_come_back_in_order_by_run_and_name(db: Database, lease: jobs.Lease) -> None:
    everything = points("loss", range(50)) + points("accuracy", range(0, 50, 10)) + points("loss", range(5), run="uniform")
    random.Random(0).shuffle(everything)
    jobs.record(db, lease, None, everything[:30])
    jobs.record(db, lease, {"step": 50}, everything[30:])
    curves = jobs.metrics(db, lease.job.id)
    assert {run: set(names) for run, names in curves.items()} == {"grown": {"loss", "accuracy"}, "uniform": {"loss"}}
    assert curves["grown"]["loss"] == [[step, 1 / (step + 1)] for step in range(50)]
    assert jobs.get(db, lease.job.id).progress == {"step": 50}


def test_a_point_of_the_same_step_replaces(db: Database, lease: jobs.Lease) -> None:
    jobs.record(db, lease, None, [jobs.Metric("grown", "loss", 1, 5.0), jobs.Metric("grown", "loss", 1, 4.0)])
    jobs.record(db, lease, None, [jobs.Metric("grown", "loss", 1, 3.0)])
    assert jobs.metrics(db, lease.job.id) == {"grown": {"loss": [[1, 3.0]]}}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_whole(db: Database, lease: jobs.Lease, value: float) -> None:
    with pytest.raises(ValueError, match=r"loss of run grown is (nan|inf) at step 7"):
        jobs.record(db, lease, {"step": 7}, [jobs.Metric("grown", "loss", 6, 1.0), jobs.Metric("grown", "loss", 7, value)])
    with pytest.raises(Exception, match="not JSON compliant"):
        jobs.record(db, lease, {"loss": value})
    assert jobs.metrics(db, lease.job.id) == {}
    assert jobs.get(db, lease.job.id).progress == {}


def test_long_curves_are_thinned_but_keep_their_spikes(db: Database, lease: jobs.Lease) -> None:
    values = [math.sin(step / 50) for step in range(5000)]
    values[1234], values[4321] = 99.0, -99.0
    jobs.record(db, lease, None, [jobs.Metric("grown", "loss", step, value) for step, value in enumerate(values)])
    curve = jobs.metrics(db, lease.job.id, max_points=100)["grown"]["loss"]
    assert len(curve) <= 100
    assert [1234, 99.0] in curve
    assert [4321, -99.0] in curve
    assert curve == sorted(curve)


@given(steps=st.sets(st.integers(0, 10_000), min_size=1, max_size=200), max_points=st.integers(2, 50), seed=st.integers(0, 9))
def test_thinning_keeps_points_order_and_extremes(steps: set[int], max_points: int, seed: int) -> None:
    rng = random.Random(seed)
    curve = [[float(step), rng.choice((0.0, 1.0, rng.random()))] for step in sorted(steps)]
    first, last = int(curve[0][0]), int(curve[-1][0])
    thinned = list(_extremes(iter(curve), first, (last - first + 1) / (max_points // 2)))
    assert len(thinned) <= max_points
    assert all(point in curve for point in thinned)
    assert thinned == sorted(thinned)
    for pick in (min, max):
        assert pick(point[1] for point in thinned) == pick(point[1] for point in curve)


def test_resume_leaves_no_duplicates(db: Database, lease: jobs.Lease) -> None:
    """A worker dies at step 30 with a checkpoint at 20; the next one goes on from there."""
    jobs.record(db, lease, None, points("loss", range(1, 31)) + points("loss", range(1, 5), run="seed"))
    jobs.add_round(db, lease, "grown", 1, {"widths": [8]}, step=10)
    jobs.add_round(db, lease, "grown", 2, {"widths": [12]}, step=25)
    for step in (10, 20, 30):
        jobs.register_checkpoint(db, lease, "grown", step, f"{step:064x}", 100)
    jobs.requeue(db, lease, "lost_worker", "died")
    second = jobs.claim(db, lease.job.id, "w2", 30)
    assert second
    jobs.rewind(db, second, "grown", 20)
    assert [c.step for c in jobs.checkpoints(db, second.job.id)] == [20, 10]
    assert [r.number for r in jobs.rounds(db, second.job.id)] == [1]
    jobs.record(db, second, None, points("loss", range(21, 41)))
    jobs.add_round(db, second, "grown", 2, {"widths": [14]}, step=25)
    curves = jobs.metrics(db, second.job.id)
    assert [step for step, _ in curves["grown"]["loss"]] == list(range(1, 41))
    assert len(curves["seed"]["loss"]) == 4, "another run is left alone"
    assert [(r.run, r.number, r.step, r.payload) for r in jobs.rounds(db, second.job.id)] == [
        ("grown", 1, 10, {"widths": [8]}),
        ("grown", 2, 25, {"widths": [14]}),
    ]


def test_checkpoints_newest_first_and_old_ones_forgotten(db: Database, lease: jobs.Lease) -> None:
    hashes = ["a" * 64, "b" * 64, "a" * 64, "c" * 64]
    for step, sha256 in enumerate(hashes):
        jobs.register_checkpoint(db, lease, "grown", step, sha256, 10 + step)
    assert [(c.step, c.sha256, c.size_bytes, c.attempt) for c in jobs.checkpoints(db, lease.job.id)] == [
        (step, hashes[step], 10 + step, 1) for step in (3, 2, 1, 0)
    ]
    jobs.register_checkpoint(db, lease, "uniform", 0, "d" * 64, 10)
    assert jobs.forget_checkpoints(db, lease, "grown", keep=2) == ["b" * 64], "hash a is still needed"
    assert [(c.run, c.step) for c in jobs.checkpoints(db, lease.job.id)] == [("uniform", 0), ("grown", 3), ("grown", 2)]


def test_artifacts_by_name(db: Database, lease: jobs.Lease) -> None:
    jobs.add_artifact(db, lease, "report.json", "a" * 64, 5, "application/json")
    jobs.add_artifact(db, lease, "network.safetensors", "b" * 64, 2**40, "application/octet-stream")
    jobs.add_artifact(db, lease, "report.json", "c" * 64, 6, "application/json")
    assert [(a.name, a.sha256, a.size_bytes) for a in jobs.artifacts(db, lease.job.id)] == [
        ("network.safetensors", "b" * 64, 2**40),
        ("report.json", "c" * 64, 6),
    ]


def test_events_can_be_followed_from_any_point(db: Database, lease: jobs.Lease) -> None:
    other = jobs.submit(db, "growth", "other", {}, "growth", 3)
    jobs.add_round(db, lease, "grown", 1, {"widths": [8]}, step=10)
    jobs.add_artifact(db, lease, "report.json", "a" * 64, 5, "application/json")
    jobs.finish(db, lease, "succeeded")
    events = jobs.events_after(db, 0)
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    mine = jobs.events_after(db, 0, lease.job.id)
    assert [event.type for event in mine] == ["state", "state", "round", "artifact", "state"]
    assert mine[2].payload == {"run": "grown", "number": 1, "step": 10, "widths": [8]}
    assert mine[-1].payload["state"] == "succeeded"
    assert jobs.events_after(db, mine[2].seq, lease.job.id) == mine[3:]
    assert [event.job_id for event in events if event not in mine] == [other.id]
    assert jobs.events_after(db, 0, limit=2) == events[:2]
    assert jobs.last_seq(db) == events[-1].seq
    assert jobs.events_after(db, jobs.last_seq(db)) == []


def test_a_watcher_misses_nothing_that_many_writers_append(db: Database) -> None:
    """A number that is drawn before another but committed after it must not be overtaken."""
    leases = [jobs.claim(db, jobs.submit(db, "growth", "a", {}, "growth", 3).id, "w", 30) for _ in range(4)]

    def write(lease: jobs.Lease) -> None:
        for number in range(15):
            jobs.add_round(db, lease, "grown", number, {}, step=number)

    seen = jobs.events_after(db, 0)
    writers = [threading.Thread(target=write, args=(lease,)) for lease in leases]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen += jobs.events_after(db, seen[-1].seq)
    seen += jobs.events_after(db, seen[-1].seq)
    assert seen == jobs.events_after(db, 0)
    assert len([event for event in seen if event.type == "round"]) == 60


def test_of_progress_only_the_newest_is_kept_and_no_number_comes_twice(db: Database, lease: jobs.Lease) -> None:
    seen = []
    for step in range(5):
        jobs.record(db, lease, {"step": step})
        latest = jobs.events_after(db, seen[-1] if seen else 0)[-1]
        assert latest.payload == {"step": step}
        seen.append(latest.seq)
    assert seen == sorted(set(seen))
    assert len([event for event in jobs.events_after(db, 0) if event.type == "progress"]) == 1
