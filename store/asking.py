"""Small questions that are asked again and again, put to the driver as it is.

SQLAlchemy makes the statements and keeps the connections.  To run a statement through it takes five times as long as the database
takes to find two rows, so here each is compiled once, and its rows are the driver's: cast JSON to text where a statement selects it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Engine, Select
from sqlalchemy.engine.interfaces import Compiled
from sqlalchemy.sql.compiler import SQLCompiler


class Asker:
    """Reads by single statements.  The engine's connections must be in autocommit: a statement alone is a transaction of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        driver = engine.dialect.loaded_dbapi
        self.failures: tuple[type[Exception], ...] = (driver.OperationalError, driver.InterfaceError)  # the database is out of reach

    def rows(self, statement: Select[Any], values: Mapping[str, Any]) -> list[Any]:
        """All rows.  The statement must be made once, not for every question: it is known again by its identity."""
        compiled = _compiled(statement, self._engine.dialect)
        state = compiled.construct_expanded_state(dict(values))
        connection = self._engine.raw_connection()
        with closing(connection), closing(connection.cursor()) as cursor:
            cursor.execute(state.statement, state.positional_parameters if compiled.positional else state.parameters)
            return list(cursor.fetchall())

    def close(self) -> None:
        self._engine.dispose()


@lru_cache
def _compiled(statement: Select[Any], dialect: Dialect) -> SQLCompiler:
    compiled: Compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    return compiled
