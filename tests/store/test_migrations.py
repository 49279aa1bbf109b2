"""Migrated tables are the tables of the program, up and down, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from costs.shapes import LayerShape
from costs.table import Anchor, Calibration, CostEntry, CostTable, Setting
from store import devices, jobs
from store.database import Database, SchemaMismatch, alembic_config
from store.tables import Base


def schema(db: Database) -> dict[str, Any]:
    """Everything the database knows of its tables, CHECK constraints included (Alembic's own comparison leaves those out)."""
    inspector = inspect(db.engine)

    def plain(items: Any) -> list[str]:
        return sorted(str(sorted((key, str(value)) for key, value in item.items())) for item in items)

    return {
        table: {
            "columns": plain(inspector.get_columns(table)),
            "key": str(inspector.get_pk_constraint(table)),
            "checks": plain(inspector.get_check_constraints(table)),
            "unique": plain(inspector.get_unique_constraints(table)),
            "foreign": plain(inspector.get_foreign_keys(table)),
            "indexes": plain(inspector.get_indexes(table)),
            "options": str(inspector.get_table_options(table)),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def move(db: Database, revision: str, down: bool = False) -> None:
    step = command.downgrade if down else command.upgrade
    with db.engine.begin() as connection:
        step(alembic_config(connection), revision)


def test_migrated_tables_are_the_programs_tables(empty_url: str) -> None:
    db = Database(empty_url)
    db.migrate()
    migrated = schema(db)
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    move(db, "base", down=True)
    Base.metadata.create_all(db.engine)
    created = schema(db)
    db.close()
    assert set(migrated) == set(Base.metadata.tables)
    for table in created:
        assert migrated[table] == created[table], table
    assert sum(len(table["checks"]) for table in migrated.values()) >= 10


def test_up_down_up_with_rows_inside(empty_url: str) -> None:
    db = Database(empty_url)
    db.migrate()
    job = jobs.submit(db, "growth", "a", {}, "growth", 3)
    db.migrate()
    db.check_revision()
    assert jobs.get(db, job.id) == job, "migrating to where one is changes nothing"
    move(db, "base", down=True)
    assert set(inspect(db.engine).get_table_names()) <= {"alembic_version"}
    move(db, "head")
    assert jobs.find(db) == []
    db.close()


def test_each_revision_goes_up_and_down_with_rows_inside(empty_url: str) -> None:
    db = Database(empty_url)
    db.migrate()
    job = jobs.submit(db, "growth", "a", {"x": 1}, "growth", 3)
    devices.register(db, "pi-4", {"cpu": "some CPU"})
    devices.save_table(db, None, table := cost_table("pi-4"))
    revisions = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
    for revision in revisions[1:]:  # newest first
        move(db, revision, down=True)
    for revision in reversed(revisions):
        move(db, revision)
    assert jobs.get(db, job.id) == job, "the first revision is never undone here, so its rows must live through the rest"
    assert devices.device(db, "pi-4").fingerprint == {"cpu": "some CPU"}
    again = devices.load_table(db, "pi-4")
    assert (list(again), again.calibrations) == (list(table), table.calibrations)
    devices.save_table(db, None, CostTable("pi-4", [replace(entry, value=7.0) for entry in table]))
    assert {entry.value for entry in devices.load_table(db, "pi-4")} == {7.0}
    db.close()


def cost_table(device: str) -> CostTable:
    depthwise = [LayerShape("conv2d", w, w, 3, 1, w, 8, 8, True) for w in (8, 16)]
    shapes = [LayerShape("conv2d", 8, 16, 3, 2, 1, 8, 8, True, "silu"), *depthwise, LayerShape("linear", 16, 10)]
    entries = [CostEntry(shape, Setting(), "latency_ms", 1.0, "ms", "measured", 0.9, None, "m", 9, 1, "2026-01-01") for shape in shapes]
    return CostTable(device, entries, [Calibration("latency_ms", Setting(), 1.5, 2.0, (Anchor("seed", (8, 16), 1.0, 1.1, 1.0, 1.2),))])


def test_one_head() -> None:
    assert len(ScriptDirectory.from_config(alembic_config()).get_heads()) == 1


def test_a_strange_revision_is_refused(empty_url: str) -> None:
    db = Database(empty_url)
    with pytest.raises(SchemaMismatch, match="at revision None; this version needs 0"):
        db.check_revision()
    db.migrate()
    db.check_revision()
    with db.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="at revision 9999"):
        db.check_revision()
    db.close()


def test_replicas_may_migrate_at_once(empty_url: str) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            db = Database(empty_url)
            db.migrate()
            db.check_revision()
            db.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_alembic_command_uses_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTLE_DATA_DIR", str(tmp_path))
    command.upgrade(alembic_config(), "head")
    Database(f"sqlite:///{tmp_path / 'wattle.sqlite'}").check_revision()


def test_migrations_can_be_run_by_name(tmp_path: Path) -> None:
    environment = {**os.environ, "WATTLE_DATA_DIR": str(tmp_path), "WATTLE_DATABASE_URL": ""}
    subprocess.run([sys.executable, "-m", "migrations"], env=environment, check=True)
    Database(f"sqlite:///{tmp_path / 'wattle.sqlite'}").check_revision()
