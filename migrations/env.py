"""Run by Alembic: by ``Database.migrate`` on its connection, or by the ``alembic`` command on the database of the settings."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import JSON, Connection

from store.columns import UtcTime
from store.database import Database
from store.settings import Settings
from store.tables import Base


def render(kind: str, item: Any, _autogenerate: Any) -> str | Literal[False]:
    """Spell our column types with SQLAlchemy's own words: a revision stays as it is when the program's types change."""
    if kind == "type" and isinstance(item, UtcTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


def run(connection: Connection) -> None:
    """Run the migrations asked for in one transaction, all or none on both databases."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_item=render,
        render_as_batch=True,  # SQLite changes a table by rebuilding it
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    database = Database(Settings().database)
    with database.migrating() as own:
        run(own)
