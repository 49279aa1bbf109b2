"""The deployment files are checked by schema and against the repository, since no container engine runs in the tests."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_compose_file_meets_the_compose_specification() -> None:
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"], cwd=ROOT, check=True
    )


def test_compose_keeps_everything_on_loopback() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert set(services) == {"postgres", "redis", "migrate", "server", "worker"}
    for name, service in services.items():
        assert "ports" not in service, f"{name} publishes a port, but there is no authentication yet"
    assert "listen_addresses=127.0.0.1" in services["postgres"]["command"]
    assert services["redis"]["command"][1:3] == ["--bind", "127.0.0.1"]


def test_compose_names_targets_and_settings_that_exist() -> None:
    from store.settings import Settings

    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for service in compose["services"].values():
        if "build" in service:
            assert service["build"]["target"] in targets
    known = {f"WATTLE_{name}".upper() for name in Settings.model_fields}
    assert set(compose["x-environment"]) <= known


def test_dockerfile_copies_every_package_and_installs_known_extras() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert set(re.findall(r"^COPY (\w+) \./\1$", dockerfile, re.MULTILINE)) == packages
    extras = set(project["project"]["optional-dependencies"])
    for installed in re.findall(r'pip install "\.\[([\w,]+)\]"', dockerfile):
        assert set(installed.split(",")) <= extras


def test_makefile_installs_known_extras() -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.venv/installed-(\w+)", makefile)) <= set(extras)
