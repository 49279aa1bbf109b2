"""Column types and the one SQL function that differ between SQLite and PostgreSQL.

Time is the database's own: hosts may disagree about the hour, leases must not.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, SQLColumnExpression, literal
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

JsonData = JSON().with_variant(JSONB(), "postgresql")


class UtcTime(TypeDecorator[datetime]):
    """A moment; always aware and in UTC on the Python side, also from SQLite, which stores no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class _DatabaseTime(FunctionElement[datetime]):
    name = "database_time"
    type = UtcTime()
    inherit_cache = True


def database_time(after_seconds: float | SQLColumnExpression[Any] = 0.0) -> ColumnElement[datetime]:
    """The database's clock now, or so many seconds later (negative: earlier).

    The wall clock rather than the start of the transaction, which a wait for a row lock would make stale.
    """
    return _DatabaseTime(literal(float(after_seconds)) if isinstance(after_seconds, int | float) else after_seconds)


@compiles(_DatabaseTime, "sqlite")
def _sqlite_time(element: _DatabaseTime, compiler: SQLCompiler, **kwargs: Any) -> str:
    # SQLite counts milliseconds; three zeros make it the text that SQLAlchemy reads and compares.
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({compiler.process(element.clauses, **kwargs)}) || ' seconds') || '000')"


@compiles(_DatabaseTime, "postgresql")
def _postgresql_time(element: _DatabaseTime, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kwargs)}))"
