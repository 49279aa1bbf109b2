"""Devices, and cost tables kept entry by entry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from costs.shapes import LayerShape
from costs.table import Anchor, Calibration, CostEntry, CostTable, NoCost, Setting, TableCost
from store import devices, jobs
from store.database import Database
from store.views import UnknownDevice

CONV = LayerShape("conv2d", 8, 16, kernel=3, height=14, width=14, norm=True, activation="silu")
LINEAR = LayerShape("linear", 16, 10)
SETTING = Setting(batch=1, threads=2)
FINGERPRINT = {"cpu": "some CPU", "cores": 2, "flags": ["a", "b"]}


def entry(shape: LayerShape, value: float, setting: Setting = SETTING) -> CostEntry:
    return CostEntry(
        shape, setting, "latency_ms", value, "ms", "measured", value * 0.9, value * 1.1, "wall_clock", 100, 3, "2026-01-02T03:04:05Z"
    )


def calibration(scale: float, setting: Setting = SETTING) -> Calibration:
    return Calibration("latency_ms", setting, scale, 3.5, (Anchor("seed", (8, 16), 1.0, 1.1, 1.05, 1.15),))


def test_a_table_comes_back_equal(db: Database) -> None:
    registered = devices.register(db, "pi-4", FINGERPRINT)
    assert (registered.name, registered.fingerprint, registered.table_version, registered.measured_fingerprint) == (
        "pi-4",
        FINGERPRINT,
        0,
        None,
    )
    table = CostTable("pi-4", [entry(CONV, 0.25), entry(LINEAR, 0.125)], [calibration(1.0625)])
    assert devices.save_table(db, None, table) == 1
    loaded = devices.load_table(db, "pi-4")
    assert loaded.to_json() == table.to_json()
    assert TableCost(loaded, "latency_ms", SETTING).network([CONV, LINEAR]).value == 0.375 * 1.0625
    seen = devices.device(db, "pi-4")
    assert (seen.entries, seen.calibrations, seen.table_version) == (2, 1, 1)
    assert seen.measured_at is not None


def test_a_second_profile_adds_and_replaces_by_key(db: Database) -> None:
    devices.register(db, "pi-4", FINGERPRINT)
    other = replace(SETTING, batch=32)
    devices.save_table(db, None, CostTable("pi-4", [entry(CONV, 1.0), entry(LINEAR, 2.0)], [calibration(1.0)]))
    assert devices.save_table(db, None, CostTable("pi-4", [entry(CONV, 3.0), entry(CONV, 4.0, other)], [calibration(5.0)])) == 2
    table = devices.load_table(db, "pi-4")
    values = {(e.shape, e.setting): e.value for e in table}
    assert values == {(CONV, SETTING): 3.0, (LINEAR, SETTING): 2.0, (CONV, other): 4.0}
    assert table.calibration("latency_ms", SETTING).scale == 5.0
    assert devices.table_version(db, "pi-4") == 2


def test_devices_keep_apart(db: Database) -> None:
    for name in ("pi-4", "this-host"):
        devices.register(db, name, {"name": name})
    devices.save_table(db, None, CostTable("pi-4", [entry(CONV, 1.0)]))
    assert [d.name for d in devices.all_devices(db)] == ["pi-4", "this-host"]
    assert len(devices.load_table(db, "this-host")) == 0
    assert devices.table_version(db, "this-host") == 0
    with pytest.raises(NoCost):
        devices.load_table(db, "this-host").entry(CONV, SETTING, "latency_ms")


def test_a_device_is_alive_while_its_worker_says_so(db: Database) -> None:
    assert not devices.register(db, "pi-4", FINGERPRINT).alive, "it was registered, and has not listened yet"
    devices.register(db, "another", FINGERPRINT)
    devices.keep_alive(db, "pi-4", 30)
    assert {device.name: device.alive for device in devices.all_devices(db)} == {"another": False, "pi-4": True}
    assert devices.register(db, "pi-4", FINGERPRINT).waits_for is None
    devices.keep_alive(db, "pi-4", 0)
    gone = devices.device(db, "pi-4")
    assert not gone.alive
    assert gone.waits_for == "no worker of pi-4 is there; a profile waits until one is: wattle worker --device pi-4"
    devices.keep_alive(db, "pi-4", -1)
    assert not devices.device(db, "pi-4").alive


def test_threads_are_the_devices_own(db: Database) -> None:
    devices.register(db, "pi-4", {**FINGERPRINT, "threads": 4})
    devices.register(db, "silent", FINGERPRINT)
    for name, threads in (("pi-4", 4), ("silent", 1)):
        assert (devices.threads(db, name), devices.device(db, name).threads) == (threads, threads)
    assert devices.threads(db, "unknown") == 1


def test_other_threads_make_it_another_device(db: Database) -> None:
    devices.register(db, "pi-4", {**FINGERPRINT, "threads": 1})
    devices.save_table(db, None, CostTable("pi-4", [entry(CONV, 1.0)]))
    changed = devices.register(db, "pi-4", {**FINGERPRINT, "threads": 2})
    assert "threads was 1, is 2" in str(changed.expired)


def test_registering_again_renews_the_fingerprint_and_keeps_the_table(db: Database) -> None:
    devices.register(db, "pi-4", FINGERPRINT)
    devices.save_table(db, None, CostTable("pi-4", [entry(CONV, 1.0)]))
    assert devices.register(db, "pi-4", FINGERPRINT).table_version == 1
    again = devices.register(db, "pi-4", {"cpu": "another"})
    assert (again.fingerprint, again.entries) == ({"cpu": "another"}, 1)
    assert again.table_version == 2, "what a client kept of the table does not say yet that it may no longer hold"
    assert again.measured_fingerprint == FINGERPRINT, "what its numbers were measured on is not forgotten"
    assert again.expired == (
        "pi-4 has changed since it was measured (cores was 2, is None, cpu was 'some CPU', is 'another', flags was ['a', 'b'], is None): "
        "its prices may no longer hold; run wattle profile again"
    )


def test_numbers_of_another_state_of_the_device_are_never_mixed_in_and_come_back_with_it(db: Database) -> None:
    devices.register(db, "pi-4", {"torch": "1"})
    devices.save_table(db, None, CostTable("pi-4", [entry(CONV, 1.0), entry(LINEAR, 2.0)], [calibration(1.5)]))
    devices.register(db, "pi-4", {"torch": "2"})
    devices.save_table(db, None, CostTable("pi-4", [entry(CONV, 3.0)]))
    renewed = devices.load_table(db, "pi-4")
    assert [e.value for e in renewed] == [3.0]
    assert renewed.calibrations == ()
    assert (devices.device(db, "pi-4").entries, devices.device(db, "pi-4").calibrations) == (1, 0)
    back = devices.register(db, "pi-4", {"torch": "1"})
    assert (back.expired, back.table_version) == (None, 4)
    assert sorted(e.value for e in devices.load_table(db, "pi-4")) == [1.0, 2.0]
    assert devices.load_table(db, "pi-4").calibration("latency_ms", SETTING).scale == 1.5


def test_an_unknown_device_is_named(db: Database) -> None:
    with pytest.raises(UnknownDevice, match="device 'nosuch' is unknown"):
        devices.table_version(db, "nosuch")
    for ask in (devices.device, devices.load_table):
        with pytest.raises(UnknownDevice, match="'nosuch'"):
            ask(db, "nosuch")
    with pytest.raises(UnknownDevice, match="'nosuch' is not registered"):
        devices.save_table(db, None, CostTable("nosuch", [entry(CONV, 1.0)]))


def test_a_worker_saves_under_its_lease(db: Database) -> None:
    devices.register(db, "pi-4", FINGERPRINT)
    lease = jobs.claim(db, jobs.submit(db, "profile", "p", {}, "profile.pi-4", 3).id, "w", 30)
    assert lease
    assert devices.save_table(db, lease, CostTable("pi-4", [entry(CONV, 1.0)])) == 1
    jobs.finish(db, lease, "succeeded")
    with pytest.raises(jobs.LeaseLost):
        devices.save_table(db, lease, CostTable("pi-4", [entry(CONV, 2.0)]))
    assert devices.table_version(db, "pi-4") == 1
