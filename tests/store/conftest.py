"""Every store test runs on SQLite and on PostgreSQL.

A PostgreSQL server is taken from WATTLE_TEST_POSTGRES, or started once per session from the installed binaries, on a unix socket
in a folder of its own.  Without either its tests are skipped, except under CI=true, where they fail.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from store.database import Database
from store.tables import Base


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server whose user may create databases."""
    given = os.environ.get("WATTLE_TEST_POSTGRES")
    if given:
        yield given
        return
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        reason = "no PostgreSQL: /usr/lib/postgresql has no server; install Debian's postgresql or set WATTLE_TEST_POSTGRES to a URL"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with running_server(binaries[-1].parent) as url:
        yield url


class running_server:  # noqa: N801  (reads as a verb)
    """A server on a unix socket in a temporary folder.  PostgreSQL refuses to run as root; then the user postgres runs it."""

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self.folder = Path(tempfile.mkdtemp(prefix="wattle-pg-", dir="/tmp"))  # a socket's path has room for 107 characters

    def __enter__(self) -> str:
        if self.as_user:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self._run("initdb", "-A", "trust", "-U", "wattle", "-D", str(self.folder / "data"), "--no-sync", "--encoding=UTF8")
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off -c max_connections=60"
        self._run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-o", options, "-l", str(self.folder / "log"), "start")
        return f"postgresql+psycopg://wattle@/postgres?host={self.folder}"

    def __exit__(self, *_: object) -> None:
        self._run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        # the server inherits these files: a pipe would keep this call waiting for its end
        with tempfile.TemporaryFile() as output:
            command = [*self.as_user, str(self.binaries / program), *arguments]
            done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            output.seek(0)
            assert done.returncode == 0, f"{program} failed: {output.read().decode()}"


ON_BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@contextmanager
def new_database(server: str) -> Iterator[str]:
    """URL of a PostgreSQL database without tables, dropped afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    plain = make_url(server).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def create_tables(url: str) -> None:
    db = Database(url)
    Base.metadata.create_all(db.engine)
    db.close()


@pytest.fixture(scope="session")
def postgres_tables(postgres_server: str) -> Iterator[str]:
    """URL of one PostgreSQL database with all tables, for all tests that need no more than empty ones."""
    with new_database(postgres_server) as url:
        create_tables(url)
        yield url


@pytest.fixture(params=ON_BOTH)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'wattle.sqlite'}"
        return
    with new_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture(params=ON_BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database with all tables, empty (``test_migrations`` shows that a migrated one has the same)."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'wattle.sqlite'}"
        create_tables(url)
        return url
    url = request.getfixturevalue("postgres_tables")
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"TRUNCATE {', '.join(Base.metadata.tables)} RESTART IDENTITY CASCADE")
    return url


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    """A database with all tables and no rows."""
    db = Database(url)
    yield db
    db.close()


@pytest.fixture
def lose_leases(db: Database) -> Callable[[], None]:
    """Let all leases run out, as if their workers had been silent long enough."""

    def lose() -> None:
        past = "'2000-01-01 00:00:00.000000'"
        with db.transaction() as session:
            session.execute(text(f"UPDATE jobs SET lease_expires_at = {past} WHERE state = 'running'"))

    return lose
