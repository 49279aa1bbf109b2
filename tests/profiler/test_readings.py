"""A session that was interrupted goes on from what it had read, unless the machine has changed meanwhile."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from profiler.meters import Reading
from profiler.readings import Readings, ReadingsFile
from profiler.timing import CHANGED, MIN_READINGS, SENTINEL, interleave

PLAN = {"spec": {"widths": [4, 8]}, "fingerprint": "this machine"}


class World:
    """A clock that only work moves, and a meter on it."""

    quantity = "latency_ms"
    window_seconds = 1e-3

    def __init__(self) -> None:
        self.now, self.began, self.pace = 0.0, 0.0, 1.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += seconds * self.pace

        return call

    def start(self) -> None:
        self.began = self.now

    def stop(self) -> Reading:
        return Reading((self.now - self.began) * 1e3)


def session(world: World, kept: Readings, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
    work = {name: world.work(name, seconds) for name, seconds in (("a", 2e-3), ("b", 3e-3))}
    watch = world.work(SENTINEL, 1e-3)
    found = interleave(work, world, 60, sentinel=watch, clock=world.clock, kept=kept, should_stop=should_stop)  # type: ignore[arg-type]
    return {name: measured.median for name, measured in found.results.items()}


def interrupted(world: World, path: Path, calls: int) -> None:
    """A session that was told to stop after so many calls, and whose process is gone."""
    session(world, kept_in(path), should_stop=lambda: len(world.calls) > calls)


def kept_in(path: Path, plan: dict[str, object] | None = None) -> ReadingsFile:
    ticks = iter(range(0, 10_000, 100))
    return ReadingsFile(path=path, plan=PLAN if plan is None else plan, clock=lambda: float(next(ticks)))


def test_an_interrupted_session_is_gone_on_from_without_warming_up_again(tmp_path: Path) -> None:
    whole = World()
    expected = session(whole, Readings())
    world, path = World(), tmp_path / "job" / "readings.json"
    interrupted(world, path, calls=len(whole.calls) * 2 // 3)
    before = {name: sum(map(len, sittings)) for name, sittings in kept_in(path).values.items()}
    assert all(0 < read < MIN_READINGS for name, read in before.items() if name != SENTINEL)
    done, kept = len(world.calls), kept_in(path)
    assert session(world, kept) == expected
    assert all([len(sitting) for sitting in kept.values[name]] == [before[name], MIN_READINGS] for name in expected)
    assert len(world.calls) - done < len(whole.calls) + 2 * MIN_READINGS  # no warming up; the sentinel is asked first


def test_the_time_that_was_spent_counts(tmp_path: Path) -> None:
    path, world = tmp_path / "readings.json", World()
    kept = ReadingsFile(path=path, plan=PLAN)
    kept.seconds, kept.interrupted = 1e6, True
    assert session(world, kept) == {}
    assert len(world.calls) < 20  # the warm-up, and no visit


def test_readings_of_a_machine_that_has_changed_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    world, path = World(), tmp_path / "readings.json"
    kept = kept_in(path)
    session(world, kept)
    kept.interrupted, world.pace = True, 1 + 2 * CHANGED
    again = session(world, kept)
    assert again == {"a": pytest.approx(2 * world.pace), "b": pytest.approx(3 * world.pace)}


def test_a_machine_that_is_as_it_was_is_trusted(tmp_path: Path) -> None:
    world, kept = World(), kept_in(tmp_path / "readings.json")
    session(world, kept)
    kept.interrupted, world.pace = True, 1 + CHANGED / 2
    assert session(world, kept) == {"a": pytest.approx(2, rel=CHANGED / 2), "b": pytest.approx(3, rel=CHANGED / 2)}
    assert all(len(sittings) == 2 for sittings in kept.values.values())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"plan": 1}',
        json.dumps({"plan": PLAN, "seconds": "x"}),
        json.dumps({"plan": PLAN, "seconds": 500, "calls": {}, "values": {"a": [[None]]}}),
        json.dumps({"plan": PLAN, "seconds": 500, "calls": {}, "values": {"a": [2.0]}}),
        '{"plan": {}, "x": []}',
    ],
)
def test_a_damaged_file_is_no_reason_to_fail(tmp_path: Path, content: str) -> None:
    path = tmp_path / "readings.json"
    path.write_text(content)
    kept = kept_in(path)
    assert (kept.seconds, kept.values, kept.interrupted) == (0.0, {}, False)


def test_readings_of_another_plan_or_machine_are_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "readings.json"
    interrupted(World(), path, calls=20)
    assert kept_in(path).interrupted
    assert not kept_in(path, {**PLAN, "fingerprint": "another"}).values


def test_they_are_written_now_and_then_and_discarded_in_the_end(tmp_path: Path) -> None:
    path, now = tmp_path / "readings.json", 0.0
    kept = ReadingsFile(path=path, plan=PLAN, clock=lambda: now)
    kept.keep()
    kept.seconds = 7.0
    now = 1.0
    kept.keep()
    assert kept_in(path).seconds == 0.0
    now = 10.0
    kept.keep()
    assert kept_in(path).seconds == 7.0
    kept.discard()
    kept.discard()
    assert not list(tmp_path.iterdir())
