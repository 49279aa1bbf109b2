"""Every setting of the service, from the environment (``WATTLE_*``).  ``python -m store.settings`` prints the table of the README."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from store.spec import CounterName

DeviceName = Annotated[str, StringConstraints(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Settings(BaseSettings):
    """All settings.  Constructing it reads the environment; a value out of range is a ValidationError (a ValueError)."""

    # a parent hands its settings on as text, those that are absent as "None"
    model_config = SettingsConfigDict(env_prefix="WATTLE_", env_parse_none_str="None", frozen=True, extra="forbid")

    data_dir: Path = Field(default=Path(".wattle"), description="folder of the database, artifacts, logs and checkpoints")
    data_root: Path = Field(default=Path("."), description="folder that holds all data sets; a spec can't name a folder outside it")
    database_url: str = Field(
        default="",
        repr=False,
        description="SQLAlchemy URL, sqlite:///FILE or postgresql+psycopg://...; empty: `wattle.sqlite` in the data folder",
    )
    broker_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        repr=False,
        description="broker, redis://, rediss:// or redis+socket:///PATH?virtual_host=0",
    )
    broker_prefix: str = Field(default="wattle:", description="prefix of all keys in the broker")
    host: str = Field(default="127.0.0.1", description="address the server listens on; loopback only")
    port: int = Field(default=8765, ge=0, le=65535, description="port the server listens on; 0: any free port")
    device: DeviceName = Field(default="this-host", description="device whose profile jobs this worker takes")
    device_threads: int = Field(
        default=1, ge=1, le=256, description="CPU threads of an inference on this worker's device, where a spec does not say otherwise"
    )
    torch_device: str = Field(
        default="cpu", pattern=r"^(cpu|cuda(:\d{1,2})?)$", description="what trains and is measured on this worker: `cpu`, `cuda`, `cuda:1`"
    )
    energy_window_seconds: float = Field(
        default=5,
        ge=0.1,
        le=60,
        description="shortest window of energy; 5 suits counters that step every 100 ms, shorter ones only a faster counter",
    )
    accounting_meter: CounterName | Literal[""] = Field(
        default="",
        description="energy counter that jobs on this worker are accounted for by; "
        "empty: rapl_package, on a GPU nvml_total_energy, if it works",
    )
    declared_watts: float | None = Field(
        default=None, gt=0, description="what this machine draws at work; estimates what jobs use where no meter works"
    )
    co2_grams_per_kwh: float | None = Field(default=None, ge=0, description="grams of CO2 per kWh of this machine's electricity")
    co2_source: str = Field(default="", description="where that factor is from, in words; goes with it")
    lease_seconds: float = Field(default=30, gt=0, le=3600, description="seconds after its last heartbeat that a worker loses a job")
    heartbeat_seconds: float = Field(default=5, gt=0, description="seconds between heartbeats; at most a third of the lease")
    max_attempts: int = Field(default=5, ge=1, le=100, description="attempts of a job before it fails as lost_worker")
    checkpoint_seconds: float = Field(default=10, gt=0, le=3600, description="seconds between checkpoints of a running job")
    relay_seconds: float = Field(default=0.25, gt=0, le=60, description="seconds between looks for jobs to announce to the broker")
    reap_seconds: float = Field(default=2, gt=0, le=600, description="seconds between looks for expired leases")
    ring_again_seconds: float = Field(
        default=30, gt=0, le=3600, description="seconds after which a queued job is announced again if the broker lost its message"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least severe level that is logged")

    @field_validator("host")
    @classmethod
    def _loopback(cls, host: str) -> str:
        if host == "localhost":
            return host
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError(
                f"host is {host!r}; it must be a loopback address, because the API has no authentication yet; "
                "use 127.0.0.1 and reach it from elsewhere through an SSH tunnel"
            )
        return host

    @model_validator(mode="after")
    def _heartbeat_fits_lease(self) -> Settings:
        if self.heartbeat_seconds > self.lease_seconds / 3:
            raise ValueError(
                f"heartbeat_seconds is {self.heartbeat_seconds:g}; it must be at most a third of lease_seconds "
                f"({self.lease_seconds / 3:g}); lower it or raise lease_seconds"
            )
        return self

    @model_validator(mode="after")
    def _factor_has_a_source(self) -> Settings:
        if (self.co2_grams_per_kwh is None) != (not self.co2_source):
            raise ValueError("co2_grams_per_kwh and co2_source go together; set both, or neither")
        return self

    @property
    def database(self) -> str:
        """The database URL, the default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'wattle.sqlite'}"

    @property
    def artifact_dir(self) -> Path:
        """Folder of the artifact store."""
        return self.data_dir / "artifacts"

    def job_dir(self, job_id: str) -> Path:
        """Folder for what one job keeps on disk beside its artifacts: logs per attempt, checkpoints."""
        return self.data_dir / "jobs" / job_id


def markdown_table() -> str:
    """All settings as a Markdown table: variable, default, meaning."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        lines.append(f"| `WATTLE_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())  # noqa: T201  (printing is what this module's command does)
