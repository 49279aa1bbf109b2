"""What only disk and store can refuse: each problem with field, value, limit and a remedy that works."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from costs.families import default_widths, largest_widths
from costs.model import CostName
from costs.shapes import LayerShape
from costs.table import Anchor, Calibration, CostEntry, CostTable, Setting
from store import devices
from store.admission import InvalidSpec, Problem, admit, admit_profile, profile_command, seed_network
from store.database import Database
from store.images import DataShape
from store.settings import Settings
from store.spec import JobSpec, ProfileSpec
from store.tables import Base

WIDTHS = (4, 6, 8)
SPEC: dict[str, Any] = {
    "name": "t",
    "data": {"name": "digits"},
    "network": {"family": "plain", "widths": list(WIDTHS)},
    "budget": {"cost": "macs", "limit": 40_000},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_root=tmp_path, data_dir=tmp_path / "state")


@pytest.fixture
def sqlite(settings: Settings) -> Iterator[Database]:
    db = Database(settings.database)
    Base.metadata.create_all(db.engine)
    yield db
    db.close()


def entry(shape: LayerShape, setting: Setting, milliseconds: float, quantity: CostName = "latency_ms") -> CostEntry:
    spread = (milliseconds * 0.9, milliseconds * 1.1)
    return CostEntry(shape, setting, quantity, milliseconds, "ms", "measured", *spread, "wall_clock", 9, 0, "2026-01-02T03:04:05+00:00")


def measured(spec: JobSpec, growth: float, setting: Setting | None = None) -> CostTable:
    """A table of the spec's network at its seed widths and at ``growth`` times those: every layer costs 0.1 ms, grown 0.2 ms."""
    setting = setting or Setting(spec.budget.batch_size, spec.budget.threads or 1)
    wiring = seed_network(spec.network, DataShape(8, 1, 10)).wiring()
    large = wiring.shapes(largest_widths(wiring.widths, growth))
    entries = [*(entry(shape, setting, 0.1) for shape in wiring.shapes()), *(entry(shape, setting, 0.2) for shape in large)]
    anchors = (Anchor("seed", wiring.widths, 0.7, 0.7, 0.69, 0.71),)
    return CostTable("this-host", entries, [Calibration("latency_ms", setting, 1.0, 2.0, anchors)])


def latency(limit: float, **budget: Any) -> JobSpec:
    return spec_of(budget={"cost": "latency_ms", "limit": limit, **budget})


def spec_of(**changes: Any) -> JobSpec:
    return JobSpec.model_validate({**SPEC, **changes})


def problems_of(spec: JobSpec, db: Database, settings: Settings) -> list[Problem]:
    with pytest.raises(InvalidSpec) as refused:
        admit(spec, db, settings)
    return list(refused.value.problems)


def test_exact_costs_need_no_device(sqlite: Database, settings: Settings) -> None:
    admitted = admit(spec_of(), sqlite, settings)
    assert admitted.network.widths == WIDTHS
    assert (admitted.network.image_size, admitted.network.in_channels, admitted.network.classes) == (8, 1, 10)
    assert admitted.seed_cost.value == sum(shape.macs for shape in admitted.wiring.shapes())
    assert admitted.seed_cost.kind == "exact"
    assert admitted.warnings == ()


def test_width_multiplier_gives_the_published_widths(sqlite: Database, settings: Settings) -> None:
    spec = spec_of(network={"family": "mobilenet_v1", "width_multiplier": 0.25}, budget={"cost": "params", "limit": 1e6})
    assert admit(spec, sqlite, settings).network.widths == default_widths("mobilenet_v1", 0.25)


@pytest.mark.parametrize(
    ("network", "field", "value", "limit"),
    [
        ({"family": "mobilenet_v1", "widths": [8, 8]}, "network.widths", 2, "14 widths"),
        ({"family": "mobilenet_v2", "widths": [8] * 5}, "network.widths", 5, "25 widths"),
        ({"family": "plain", "widths": [8] * 17}, "network.widths", 17, "1 to 16 widths"),
        ({"family": "mobilenet_v2", "width_multiplier": 4}, "network.width_multiplier", 4.0, "widths up to 4096"),
    ],
)
def test_widths_that_do_not_fit(network: Any, field: str, value: object, limit: str, sqlite: Database, settings: Settings) -> None:
    (problem,) = problems_of(spec_of(network=network), sqlite, settings)
    assert (problem.field, problem.value, problem.limit) == (field, value, limit)


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_budget_below_the_seed_states_a_limit_that_is_accepted(cost: str, sqlite: Database, settings: Settings) -> None:
    (problem,) = problems_of(spec_of(budget={"cost": cost, "limit": 5}), sqlite, settings)
    assert (problem.field, problem.value) == ("budget.limit", 5.0)
    least = float(str(problem.limit).split()[2])
    assert str(problem.limit).split()[2] in problem.remedy
    assert admit(spec_of(budget={"cost": cost, "limit": least}), sqlite, settings).seed_cost.value <= least


def test_every_budget_is_held_against_the_seed_and_its_device(sqlite: Database, settings: Settings) -> None:
    further = [{"cost": "params", "limit": 5}, {"cost": "latency_ms", "limit": 1, "device": "pi-4"}]
    assert [problem.field for problem in problems_of(spec_of(further_budgets=further), sqlite, settings)] == ["further_budgets.1.device"]
    both = problems_of(spec_of(budget={"cost": "macs", "limit": 5}, further_budgets=further[:1]), sqlite, settings)
    assert [problem.field for problem in both] == ["budget.limit", "further_budgets.0.limit"]
    assert both[1].remedy.startswith("set further_budgets.0.limit above")
    admitted = admit(spec_of(further_budgets=[{"cost": "params", "limit": 5000}]), sqlite, settings)
    assert [(each.cost_model.name, each.limit) for each in admitted.budgets] == [("macs", 40_000), ("params", 5000)]
    assert admitted.seed_cost.unit == "MACs"


def test_one_budget_that_binds_is_enough(sqlite: Database, settings: Settings) -> None:
    loose = {"cost": "params", "limit": 1e9}
    assert admit(spec_of(further_budgets=[loose]), sqlite, settings).warnings == ()
    (warning,) = admit(spec_of(budget={"cost": "macs", "limit": 1e12}, further_budgets=[loose]), sqlite, settings).warnings
    assert "1e+12 MACs is more than 4 times" in warning
    assert "and 1000000000 parameters is more than 4 times" in warning


def test_unknown_device(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "pi-4", {})
    (problem,) = problems_of(latency(1), sqlite, settings)
    assert (problem.field, problem.value, problem.limit) == ("budget.device", "this-host", ["pi-4"])
    assert "wattle worker --device this-host" in problem.remedy


def test_device_without_table_names_the_command_that_mends_it(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {})
    spec = latency(1, batch_size=2, threads=3)
    (problem,) = problems_of(spec, sqlite, settings)
    assert problem.field == "budget.device"
    assert problem.remedy == (
        "wattle profile --device this-host --family plain --widths 4,6,8 --activation silu --image-size 8 --in-channels 1 --classes 10 "
        "--max-growth 4 --batch-size 2 --threads 3 --wait"
    )
    assert problem.remedy in problem.message
    assert "run `wattle profile`" not in problem.message


def test_table_of_another_setting_or_smaller_network(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {})
    devices.save_table(sqlite, None, measured(latency(1), 2))
    assert admit(latency(1), sqlite, settings).seed_cost.kind == "calibrated_sum"
    assert problems_of(latency(1, threads=2), sqlite, settings)[0].field == "budget.device"
    wider = spec_of(network={"family": "plain", "widths": [4, 6, 99]}, budget={"cost": "latency_ms", "limit": 1})
    assert problems_of(wider, sqlite, settings)[0].field == "budget.device"


def test_latency_budget_below_the_seed(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {})
    devices.save_table(sqlite, None, measured(latency(1), 4))
    (problem,) = problems_of(latency(0.1), sqlite, settings)
    assert problem.field == "budget.limit"
    assert "(calibrated_sum)" in problem.message
    least = float(str(problem.limit).split()[2])
    assert admit(latency(least), sqlite, settings).seed_cost.value <= least


def test_energy_without_meter(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {})
    devices.save_table(sqlite, None, measured(latency(1), 4))
    (problem,) = problems_of(spec_of(budget={"cost": "energy_mj", "limit": 1}), sqlite, settings)
    assert (problem.field, problem.value) == ("budget.cost", "energy_mj")
    assert "no meter" in problem.message
    assert "wattle profile --meter" in problem.remedy
    assert "power_model" in problem.remedy


def energy(**budget: Any) -> JobSpec:
    return spec_of(budget={"cost": "energy_mj", "limit": 20, **budget})


def test_declared_watts_allow_an_estimate(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {})
    devices.save_table(sqlite, None, measured(latency(1), 4))
    timed, estimate = admit(latency(1), sqlite, settings).seed_cost, admit(energy(declared_watts=12.0), sqlite, settings)
    assert estimate.seed_cost.value == pytest.approx(12.0 * timed.value)
    assert (estimate.seed_cost.kind, estimate.seed_cost.meter) == ("estimated:power_model", "power_model")
    assert "12 W times measured time" in estimate.warnings[0]


def test_measured_energy_is_never_replaced_by_declared_watts(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {})
    table = measured(latency(1), 4)
    entries = [replace(entry, quantity="energy_mj", unit="mJ", meter="rapl_package", scope="package") for entry in table]
    scale = replace(table.calibrations[0], quantity="energy_mj", meter="rapl_package", scope="package")
    devices.save_table(sqlite, None, CostTable("this-host", [*table, *entries], [*table.calibrations, scale]))
    admitted = admit(energy(declared_watts=12.0), sqlite, settings)
    assert (admitted.seed_cost.kind, admitted.seed_cost.meter, admitted.seed_cost.scope) == ("calibrated_sum", "rapl_package", "package")
    assert admitted.warnings[0] == "rapl_package has measured the energy of this-host: budget.declared_watts is not used"
    (problem,) = problems_of(energy(threads=2), sqlite, settings)
    assert problem.remedy.endswith("--threads 2 --meter rapl_package --wait")


def test_warning_when_the_budget_can_not_bind(sqlite: Database, settings: Settings) -> None:
    (warning,) = admit(spec_of(budget={"cost": "macs", "limit": 1e12}), sqlite, settings).warnings
    assert "growth.max_growth ends the growth" in warning


def test_warning_when_the_table_ends_before_max_growth(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {})
    devices.save_table(sqlite, None, measured(latency(1), 2))
    (warning,) = admit(latency(1), sqlite, settings).warnings
    assert "does not reach 4 times" in warning


def test_warning_when_the_device_has_changed_since(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {"torch": "1", "cores": 2})
    devices.save_table(sqlite, None, measured(latency(1), 4))
    assert admit(latency(0.9), sqlite, settings).warnings == ()
    devices.register(sqlite, "this-host", {"torch": "2", "cores": 2})
    (warning,) = admit(latency(0.9), sqlite, settings).warnings
    assert "(torch was '1', is '2')" in warning


def test_warning_when_another_network_was_profiled_since(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {})
    devices.save_table(sqlite, None, measured(latency(1), 4))
    other = spec_of(network={"family": "plain", "widths": [4, 6]}, budget={"cost": "latency_ms", "limit": 1})
    devices.save_table(sqlite, None, measured(other, 4))
    (warning,) = admit(latency(0.9), sqlite, settings).warnings
    assert "measured other networks" in warning
    assert "run: wattle profile --device this-host --family plain" in warning


def test_all_problems_are_found_at_once(sqlite: Database, settings: Settings) -> None:
    spec = spec_of(
        data={"name": "imagefolder", "root": "nowhere"},
        network={"family": "mobilenet_v1", "widths": [2]},
        budget={"cost": "latency_ms", "limit": 1, "device": "moon"},
    )
    assert [problem.field for problem in problems_of(spec, sqlite, settings)] == ["data.root", "network.widths", "budget.device"]


def test_profile_needs_a_device_and_a_network_that_fits(sqlite: Database) -> None:
    shape = {"image_size": 8, "in_channels": 1, "classes": 10}
    spec = ProfileSpec.model_validate({"network": {"family": "mobilenet_v1", "widths": [2]}, **shape})
    with pytest.raises(InvalidSpec) as refused:
        admit_profile(spec, sqlite)
    assert [problem.field for problem in refused.value.problems] == ["network.widths", "device"]
    assert refused.value.problems[1].remedy.endswith("wattle worker --device this-host")
    devices.register(sqlite, "this-host", {"cores": 2})
    spec = ProfileSpec.model_validate({"network": SPEC["network"], **shape, "threads": 2})
    assert admit_profile(spec, sqlite).wiring.widths == WIDTHS
    with pytest.raises(InvalidSpec) as refused:
        admit_profile(spec.model_copy(update={"threads": 3}), sqlite)
    assert str(refused.value.problems[0].message) == "threads is 3; this-host has 2 cores: give 1 to 2, or leave it out"


def test_threads_are_those_of_the_device_unless_the_spec_says_otherwise(sqlite: Database, settings: Settings) -> None:
    devices.register(sqlite, "this-host", {"threads": 2})
    for threads in (1, 2):
        devices.save_table(sqlite, None, measured(latency(1), 4, Setting(threads=threads)))
    for given, used in ((None, 2), (1, 1), (2, 2)):
        admitted = admit(latency(1, threads=given), sqlite, settings)
        assert (admitted.setting.threads, admitted.spec.budget.threads) == (used, used)
    with_further = spec_of(further_budgets=[{"cost": "latency_ms", "limit": 1}])
    assert [budget.threads for budget in admit(with_further, sqlite, settings).spec.budgets] == [2, 2]
    (problem,) = problems_of(latency(1, batch_size=2), sqlite, settings)
    assert problem.remedy.endswith("--batch-size 2 --threads 2 --wait")
    profile = ProfileSpec(network=latency(1).network, image_size=8, in_channels=1, classes=10)
    assert admit_profile(profile, sqlite).setting == Setting(threads=2)
    assert admit_profile(profile.model_copy(update={"threads": 1}), sqlite).setting == Setting(threads=1)


def test_a_profile_says_whether_somebody_will_measure(sqlite: Database) -> None:
    profile = ProfileSpec(network=latency(1).network, image_size=8, in_channels=1, classes=10)
    devices.register(sqlite, "this-host", {})
    (warning,) = admit_profile(profile, sqlite).warnings
    assert warning == "no worker of this-host is there; a profile waits until one is: wattle worker --device this-host"
    devices.keep_alive(sqlite, "this-host", 30)
    assert admit_profile(profile, sqlite).warnings == ()


def test_profile_command_is_read_by_the_command_line() -> None:
    from typer.testing import CliRunner

    from wattle.cli import app

    spec = latency(1)
    command = profile_command(spec.budget, seed_network(spec.network, DataShape(8, 1, 10)), 4)
    result = CliRunner().invoke(app, command.split()[1:], env={"WATTLE_URL": "http://127.0.0.1:9"})
    assert "No such option" not in result.output
    assert result.exit_code != 2, result.output
