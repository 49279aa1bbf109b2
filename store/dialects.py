"""INSERT ... ON CONFLICT, which both databases speak alike but SQLAlchemy offers per dialect.

Into the table, not the mapped class: an ORM insert takes three times as long to build, and this is part of every write.
"""

from __future__ import annotations

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from store.tables import Base, table_of


def insert_into(session: Session, row: type[Base]) -> sqlite.Insert | postgresql.Insert:
    """An INSERT of the session's dialect, with ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table_of(row))
    return sqlite.insert(table_of(row))
