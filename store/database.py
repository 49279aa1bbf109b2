"""The connection to SQLite or PostgreSQL: short transactions, migrations.

SQLite writers start with BEGIN IMMEDIATE: a transaction that reads first and writes later could otherwise fail with "database is
locked" at a point where waiting can't help.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Select, create_engine, event, make_url, text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from store.asking import Asker

BUSY_TIMEOUT_SECONDS = 30
_AWAY = (OperationalError, InterfaceError, PoolTimeout)
MIGRATION_LOCK = 0x77A771E  # any number, the same in every replica


class DatabaseUnavailable(RuntimeError):  # noqa: N818 - named for what it says
    """The database can't be reached or stays locked.  The transaction was not acknowledged; it may be tried again."""


class SchemaMismatch(RuntimeError):  # noqa: N818
    """The tables are not those of this version of the program."""


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)  # PostgreSQL refuses NaN; SQLite would keep text that no browser can parse


class Database:
    """One database.  Make it in the process that uses it: connections don't survive a fork."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise ValueError(f"database URL is {url!r}; the store needs a file: use sqlite:///FOLDER/wattle.sqlite")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            arguments: dict[str, Any] = {"timeout": BUSY_TIMEOUT_SECONDS}
            reading = arguments
        elif backend == "postgresql":
            limits = "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000 -c timezone=UTC"
            arguments = {"options": limits, "connect_timeout": 10, "application_name": "wattle"}
            reading = {**arguments, "options": f"{limits} -c default_transaction_read_only=on"}
        else:
            raise ValueError(f"database URL names {backend!r}; the store knows sqlite and postgresql+psycopg")
        self.backend = backend
        self.is_local = backend == "sqlite"  # a read of a few rows waits for no network and, under WAL, for no writer
        self._write_lock = threading.Lock() if backend == "sqlite" else None
        pool = {"pool_pre_ping": backend == "postgresql"}
        self.engine = create_engine(parsed, json_serializer=_to_json, connect_args=arguments, **pool)
        self._reader = self.engine.execution_options(read_only=True, **({"postgresql_readonly": True} if backend == "postgresql" else {}))
        asked = create_engine(parsed, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, connect_args=reading, **pool)
        self._asker = Asker(asked)
        if backend == "sqlite":
            for engine in (self.engine, asked):
                event.listen(engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
            event.listen(asked, "connect", _refuse_writes)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A write transaction: committed at the end of the block, rolled back by any exception."""
        with self._turn(), _translated(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read-only transaction: one consistent view on SQLite, which does not hold up writers."""
        with _translated(), Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    def rows(self, statement: Select[Any], values: Mapping[str, Any]) -> Sequence[Any]:
        """The driver's rows for a question that is asked again and again (``store.asking``), in a tenth of the time of a session."""
        with _translated((*_AWAY, *self._asker.failures)):
            return self._asker.rows(statement, values)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One writer of this process at a time on SQLite: its own waiters sleep and try again, some of them for seconds."""
        if self._write_lock is None:
            yield
        elif self._write_lock.acquire(timeout=BUSY_TIMEOUT_SECONDS):
            try:
                yield
            finally:
                self._write_lock.release()
        else:
            raise DatabaseUnavailable(f"the database did not answer: other writers kept it for {BUSY_TIMEOUT_SECONDS} s")

    def migrate(self) -> None:
        """Bring the tables to the newest revision.  Safe when several processes start at once."""
        with self.migrating() as connection:
            command.upgrade(alembic_config(connection), "head")

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """A connection in a transaction for changing tables; only one process at a time holds one."""
        with _translated(), self.engine.connect() as connection:
            if self.backend == "sqlite":
                # A table that is rebuilt by a migration must not take its children along; the pragma works outside a transaction only.
                connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
            with connection.begin():
                if self.backend == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                yield connection
            connection.invalidate()

    def check_revision(self) -> None:
        """SchemaMismatch unless the tables are at the newest revision."""
        head = ScriptDirectory.from_config(alembic_config()).get_current_head()
        with _translated(), self._reader.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
        if revision != head:
            raise SchemaMismatch(
                f"the database is at revision {revision}; this version needs {head}; run `python -m migrations` with this version, "
                "or start the version that made the database"
            )

    def close(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()
        self._asker.close()


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for the installed ``migrations`` package, working on ``connection`` where one is given."""
    spec = importlib.util.find_spec("migrations")  # found, not imported: the store knows nothing of what the scripts import
    if spec is None or spec.origin is None:
        raise SchemaMismatch("the package `migrations` is not installed; reinstall wattle-nas")
    config = Config()
    config.set_main_option("script_location", str(Path(spec.origin).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _translated(away: tuple[type[Exception], ...] = _AWAY) -> Iterator[None]:
    try:
        yield
    except away as error:
        cause = getattr(error, "orig", None) or error
        raise DatabaseUnavailable(f"the database did not answer: {cause}") from error


def _refuse_writes(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA query_only = ON")


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    mode = "DEFERRED" if connection.get_execution_options().get("read_only") else "IMMEDIATE"
    connection.exec_driver_sql(f"BEGIN {mode}")
