"""Settings from the environment: refused with value, limit and remedy, documented in one table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from store.settings import Settings, markdown_table


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_accepted(host: str) -> None:
    assert Settings(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "127.0.0.1.example.org"])
def test_any_other_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="loopback") as caught:
        Settings(host=host)
    for part in (repr(host), "no authentication", "SSH tunnel"):
        assert part in str(caught.value)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WATTLE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WATTLE_LEASE_SECONDS", "60")
    monkeypatch.setenv("WATTLE_DATABASE_URL", "")
    settings = Settings()
    assert settings.lease_seconds == 60
    assert settings.database == f"sqlite:///{tmp_path}/wattle.sqlite"
    assert settings.artifact_dir == tmp_path / "artifacts"
    assert settings.job_dir("abc") == tmp_path / "jobs" / "abc"
    assert Settings(database_url="postgresql+psycopg://db/wattle").database == "postgresql+psycopg://db/wattle"


def test_a_slow_heartbeat_is_refused() -> None:
    with pytest.raises(ValueError, match=r"heartbeat_seconds is 5; it must be at most a third of lease_seconds \(3\)"):
        Settings(lease_seconds=9)
    assert Settings(lease_seconds=9, heartbeat_seconds=3).heartbeat_seconds == 3


@pytest.mark.parametrize(
    ("name", "value"), [("port", 70000), ("max_attempts", 0), ("relay_seconds", 0), ("device", "a/b"), ("log_level", "LOUD")]
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


def test_no_password_in_the_repr() -> None:
    settings = Settings(broker_url="redis://:secret@127.0.0.1/0", database_url="postgresql+psycopg://u:secret@db/wattle")
    assert "secret" not in repr(settings)
    assert "secret" not in str(settings)


def test_every_setting_is_in_the_table() -> None:
    printed = subprocess.run([sys.executable, "-m", "store.settings"], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == markdown_table()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"| `WATTLE_{name.upper()}` |" in printed


def test_settings_pass_through_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a parent hands them to its children: absent ones stay absent, whatever the parent's own environment says."""
    monkeypatch.setenv("WATTLE_DECLARED_WATTS", "65")
    for given in (Settings(data_dir=tmp_path, declared_watts=None), Settings(data_dir=tmp_path, co2_grams_per_kwh=300, co2_source="label")):
        with monkeypatch.context() as child:
            for name, value in given.model_dump().items():
                child.setenv(f"WATTLE_{name.upper()}", str(value))
            assert Settings() == given
