"""Differences between two networks: exact on a machine whose pace wanders, and none where too few pairs are undisturbed."""

from collections.abc import Callable

import pytest

from profiler.meters import Reading
from profiler.paired import ATTEMPTS, Difference, paired_differences
from profiler.timing import NoResult


class Wandering:
    """A clock that only work moves, on a machine whose pace wanders, and a meter on it."""

    quantity = "latency_ms"
    window_seconds = 1e-3

    def __init__(self, disturbed: Callable[[int], bool] = lambda _window: False) -> None:
        self.now, self.began, self.windows, self.disturbed = 0.0, 0.0, 0, disturbed

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds * (1 + 0.2 * self.now)  # slower and slower

        return call

    def start(self) -> None:
        self.began = self.now

    def stop(self) -> Reading:
        self.windows += 1
        return Reading(1e3 * (self.now - self.began), "waited for a core" if self.disturbed(self.windows) else None)


def differences(world: Wandering, **changed: float) -> dict[str, Difference | NoResult]:
    work = {name: world.work(seconds) for name, seconds in changed.items()}
    return paired_differences(world.work(4e-3), work, world, 2.0, clock=lambda: world.now)  # type: ignore[arg-type]


def test_a_difference_is_found_although_the_machine_becomes_slower() -> None:
    found = differences(Wandering(), dearer=5e-3, same=4e-3, cheaper=3.5e-3)
    for name, truth in (("dearer", 1.0), ("same", 0.0), ("cheaper", -0.5)):
        difference = found[name]
        assert isinstance(difference, Difference)
        assert difference.low <= difference.median <= difference.high
        assert difference.median == pytest.approx(truth * 1.2, abs=0.1)  # of a pace that went from 1 to 1.4
        assert difference.rounds > 20


def test_a_round_in_which_one_of_the_two_was_disturbed_is_no_pair() -> None:
    calm, shaken = Wandering(), Wandering(lambda window: window % (3 * ATTEMPTS) < ATTEMPTS)  # at times all attempts at one of the two
    expected, found = differences(calm, dearer=5e-3)["dearer"], differences(shaken, dearer=5e-3)["dearer"]
    assert isinstance(expected, Difference)
    assert isinstance(found, Difference)
    assert found.rounds < expected.rounds
    assert found.median == pytest.approx(expected.median, rel=0.1)


def test_on_a_busy_machine_there_is_no_difference_but_a_reason() -> None:
    found = differences(Wandering(lambda _window: True), dearer=5e-3)["dearer"]
    assert isinstance(found, NoResult)
    assert "0 undisturbed pairs" in str(found)
    assert "quieter" in str(found)
