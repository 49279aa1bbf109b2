import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from costs.model import CostName
from profiler.meters import Reading
from profiler.readings import Readings
from profiler.timing import MIN_READINGS, Fed, Subject, interleave, median_interval, warm_up


@dataclass
class World:
    """A clock that only work moves, and a meter on it that finds the windows disturbed which ``disturbed`` names."""

    disturbed: Callable[[int], str | None] = lambda _window: None
    now: float = 0.0
    calls: list[str] = field(default_factory=list)
    quantity: CostName = "latency_ms"
    window_seconds: float = 1e-3
    windows: int = 0
    began: float = 0.0

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += seconds()

        return call

    def start(self) -> None:
        self.began = self.now

    def stop(self) -> Reading:
        self.windows += 1
        return Reading((self.now - self.began) * 1e3, self.disturbed(self.windows))


def constant(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def noisy(seconds: float, seed: int) -> Callable[[], float]:
    generator = random.Random(seed)
    return lambda: seconds * generator.lognormvariate(0, 0.1)


def test_steady_work_is_measured_exactly_and_the_run_ends_early() -> None:
    world = World()
    work = {name: world.work(name, constant(s)) for name, s in (("short", 1e-5), ("long", 3e-3))}
    session = interleave(work, world, seconds=10, clock=world.clock)
    assert session.missing == {}
    assert {name: m.median for name, m in session.results.items()} == {"short": pytest.approx(0.01), "long": pytest.approx(3.0)}
    assert session.rounds == MIN_READINGS
    assert world.now < 1


def test_noise_is_averaged_until_the_interval_is_narrow() -> None:
    world = World()
    session = interleave({"a": world.work("a", noisy(2e-3, 1))}, world, seconds=100, clock=world.clock)
    measured = session.results["a"]
    assert measured.half_width <= 0.02
    assert measured.low <= measured.median <= measured.high
    assert measured.median == pytest.approx(2, rel=0.03)


def test_the_time_budget_ends_a_run_that_does_not_converge() -> None:
    world = World()
    session = interleave({"a": world.work("a", noisy(0.01, 2))}, world, seconds=0.5, clock=world.clock)
    assert 0.5 <= world.now < 0.6
    assert session.results["a"].repetitions >= MIN_READINGS


def test_a_burst_fills_the_meters_window_after_one_call_that_warms_the_caches() -> None:
    world = World(window_seconds=0.05)
    interleave({"a": world.work("a", constant(0.004))}, world, seconds=10, clock=world.clock)
    assert len(world.calls) == 3 + MIN_READINGS * (1 + 13)


def test_every_round_visits_everyone_in_a_random_order_that_a_seed_repeats() -> None:
    def visits(seed: int) -> list[str]:
        world = World()
        work = {name: world.work(name, constant(1e-3)) for name in "abcdef"}
        interleave(work, world, seconds=10, seed=seed, clock=world.clock, sentinel=world.work("sentinel", constant(1e-3)))
        return world.calls[3 * 7 :: 2]

    once = visits(1)
    rounds = [once[i : i + 7] for i in range(0, len(once), 7)]
    assert all(sorted(r) == ["a", "b", "c", "d", "e", "f", "sentinel"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert visits(1) == once != visits(2)


def test_disturbed_readings_are_taken_again_and_counted_but_not_used() -> None:
    world = World()
    world.disturbed = lambda n: "throttled" if n % 2 else None
    work = {"a": world.work("a", lambda: 5e-3 if world.windows % 2 == 0 else 1e-3)}
    measured = interleave(work, world, seconds=10, clock=world.clock).results["a"]
    assert measured.median == pytest.approx(1.0)
    assert (measured.repetitions, measured.rejected) == (5, 5)


def test_with_fewer_than_five_valid_readings_there_is_no_result_but_a_reason() -> None:
    world = World(disturbed=lambda n: None if n <= 4 else "waited for a core")
    session = interleave({"a": world.work("a", constant(0.01))}, world, seconds=1, clock=world.clock)
    assert session.results == {}
    message = str(session.missing["a"])
    assert "4 valid readings, 5 needed" in message
    assert "waited for a core" in message
    assert "more time" in message
    assert 1.9 < world.now < 2.1  # twice the budget was tried


def test_only_those_that_lack_readings_are_visited_after_the_budget() -> None:
    world = World()
    work = {"quick": world.work("quick", noisy(1e-3, 3)), "slow": world.work("slow", constant(0.3))}
    session = interleave(work, world, seconds=2.5, clock=world.clock)
    assert session.missing == {}
    assert session.results["slow"].repetitions == MIN_READINGS
    assert session.results["quick"].repetitions < MIN_READINGS + 2


def test_stopping_keeps_what_was_measured() -> None:
    world = World()
    work = {"a": world.work("a", noisy(1e-3, 4)), "b": world.work("b", noisy(1e-3, 5))}
    session = interleave(work, world, seconds=10, clock=world.clock, should_stop=lambda: world.windows >= 15)
    assert world.windows == 15
    assert (len(session.results), session.rounds) == (2, 7)  # the eighth visited one of the two
    assert interleave(work, world, seconds=10, clock=world.clock, should_stop=lambda: True).missing.keys() == {"a", "b"}


def test_what_sittings_differ_by_is_within_the_interval() -> None:
    """Each sitting alone is steady, so that its own readings differ by nothing: where its tensors lie moved all of them."""
    world, kept = World(), Readings()
    places = (2.0e-3, 2.1e-3, 1.9e-3, 2.05e-3, 2.02e-3, 1.97e-3)
    for number, seconds in enumerate(places, 1):
        found = interleave({"a": world.work("a", constant(seconds))}, world, 10, clock=world.clock, kept=kept).results["a"]
        assert (found.low, found.high) == pytest.approx((1e3 * min(places[:number]), 1e3 * max(places[:number])))
    assert found.median == pytest.approx(2.01, rel=0.01)
    assert found.repetitions == len(places) * MIN_READINGS
    for seconds in places:  # with twelve, their most extreme two need not be covered
        found = interleave({"a": world.work("a", constant(seconds))}, world, 10, clock=world.clock, kept=kept).results["a"]
    assert found.low > 1.9 + 0.01
    assert found.high < 2.1 - 0.01


@given(st.lists(st.lists(st.floats(1e-3, 1e3), max_size=9), min_size=1, max_size=8))
def test_the_interval_of_sittings_holds_their_median(sittings: list[list[float]]) -> None:
    *earlier, readings = sittings
    found = Subject(lambda: None, 1, readings, earlier).measurement()
    assert (found is None) == (sum(map(len, sittings)) < MIN_READINGS)
    assert found is None or found.low <= found.median <= found.high


def test_what_is_timed_finds_its_inputs_just_written() -> None:
    """Once to warm the caches, on the inputs as they are; then on copies that were written before the clock was started."""
    world, x, seen, written_at = World(), torch.arange(3.0), list[tuple[bool, list[float], float]](), list[float]()

    def function(given: torch.Tensor) -> None:
        seen.append((given is x, given.tolist(), world.began))
        world.now += 1e-3

    work = Fed(function, (x,))
    subject = Subject(work, 1)
    subject.prepare(world, world.clock)
    for _ in range(2):
        world.now += 1.0
        assert subject.visit(world)
        written_at.append(world.began)
    assert [(own, began in written_at) for own, _, began in seen] == [(True, False), (False, True), (True, True), (False, True)]
    assert all(values == [0, 1, 2] for _, values, _ in seen)
    assert subject.readings == pytest.approx([1, 1])


def test_the_sentinel_shows_a_machine_that_changes_speed() -> None:
    world = World()

    def slowing() -> float:
        return 1e-3 if world.windows < 60 else 1.2e-3

    session = interleave({"a": world.work("a", noisy(1e-3, 6))}, world, 0.3, sentinel=world.work("s", slowing), clock=world.clock)
    assert session.drift is not None
    assert 0.05 < session.drift <= 0.21


def test_progress_runs_from_zero_to_the_budget_and_says_what_happens() -> None:
    world, seen = World(), []
    work = {str(i): world.work(str(i), noisy(0.01, i)) for i in range(20)}
    interleave(work, world, seconds=8, clock=world.clock, progress=lambda *report: seen.append(report))
    done = [report[0] for report in seen]
    assert done == sorted(done)
    assert done[-1] == 8
    assert {report[1] for report in seen} == {8}
    assert any("warming up" in report[2] for report in seen)
    assert "20 of 20 measured" in seen[-1][2]


def test_warm_up_calls_until_durations_agree() -> None:
    world, durations = World(), iter([9.0, 5.0, 2.0, 1.0, 1.02, 1.01, 1.0])
    assert warm_up(world.work("a", lambda: next(durations) * 1e-3), world.clock) == pytest.approx(1e-3)
    assert len(world.calls) == 6
    world = World()
    warm_up(world.work("slow", constant(5.0)), world.clock)
    assert len(world.calls) == 3


@pytest.mark.parametrize("n", [1_029, 1_030, 3_000, 10_000])
def test_the_interval_of_the_median_is_found_for_as_many_samples_as_there_are(n: int) -> None:
    low, high = median_interval(range(1, n + 1))
    assert low + high == n + 1
    assert low == pytest.approx(n / 2 - NormalDist().inv_cdf(0.975) * math.sqrt(n) / 2, abs=1)  # the binomial's normal limit


@given(st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=200))
def test_the_interval_is_made_of_order_statistics_with_the_stated_coverage(samples: list[float]) -> None:
    low, high = median_interval(samples)
    ordered, n = sorted(samples), len(samples)
    assert low <= high
    # the rank that scipy-free arithmetic gives: the largest r whose interval still covers 95 %
    ranks = [r for r in range(1, (n + 1) // 2 + 1) if 1 - 2 * sum(math.comb(n, k) for k in range(r)) / 2**n >= 0.95]
    rank = max(ranks, default=1)
    assert (low, high) == (ordered[rank - 1], ordered[n - rank])


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    generator = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval([generator.expovariate(1) for _ in range(20)])
        hits += low <= math.log(2) <= high
    assert hits / 2000 > 0.94
