"""Entries in a database answer as entries in memory do, from few reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Select, event

from costs.shapes import LayerShape
from costs.table import Calibration, CostEntry, CostTable, Key, NoCost, Setting, TableCost
from store import devices, entries
from store.database import Database
from store.memory import Memory

ONE, FOUR = Setting(), Setting(batch=4, threads=2)
WIDTHS = (8, 16, 24, 40)


def conv(ins: int, outs: int, size: int = 14) -> LayerShape:
    return LayerShape("conv2d", ins, outs, 3, 1, 1, size, size, True, "silu")


def depthwise(width: int) -> LayerShape:
    return LayerShape("conv2d", width, width, 3, 1, width, 14, 14)


def entry(shape: LayerShape, setting: Setting = ONE) -> CostEntry:
    value = 1.0 + shape.in_channels * 100 + shape.out_channels + setting.batch / 8
    return CostEntry(shape, setting, "latency_ms", value, "ms", "measured", value * 0.9, None, "wall_clock", 9, 1, "2026-01-01")


def measured() -> list[CostEntry]:
    pairs = [(i, o) for i, o in product(WIDTHS, WIDTHS) if i + o != 40]  # 16->24 and 24->16 are missing
    convs = [entry(conv(i, o, size)) for size in (7, 14) for i, o in pairs]
    return [*convs, entry(conv(8, 8), FOUR), *(entry(depthwise(w)) for w in WIDTHS), *(entry(LayerShape("linear", w, 10)) for w in WIDTHS)]


def questions() -> list[Key]:
    shapes = [conv(i, o, size) for i, o, size in product((1, 8, 12, 16, 17, 24, 40, 41), (8, 20, 24, 40, 99), (7, 14, 28))]
    shapes += [depthwise(w) for w in (2, 8, 9, 40, 41)] + [LayerShape("linear", w, 10) for w in (1, 8, 11, 64)]
    return [(shape, setting, "latency_ms") for shape in shapes for setting in (ONE, FOUR)]


@contextmanager
def counted(db: Database) -> Iterator[list[str]]:
    """The SELECTs meanwhile."""
    seen: list[str] = []

    def hear(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "SELECT" in statement:
            seen.append(statement)

    def rows(statement: Select[Any], values: Mapping[str, Any]) -> Sequence[Any]:
        seen.append(str(statement))
        return ask(statement, values)

    ask, db.rows = db.rows, rows  # type: ignore[method-assign]
    event.listen(db.engine, "before_cursor_execute", hear)
    yield seen
    event.remove(db.engine, "before_cursor_execute", hear)
    db.rows = ask  # type: ignore[method-assign]


@pytest.fixture
def stored(db: Database) -> CostTable:
    devices.register(db, "pi-4", {})
    devices.save_table(db, None, CostTable("pi-4", measured()))
    return devices.open_table(db, "pi-4")[1]


def test_every_question_has_the_answer_of_the_same_table_in_memory(stored: CostTable) -> None:
    known = CostTable("pi-4", measured())

    def answers(table: CostTable) -> list[object]:
        return [(str(each), each.nearest) if isinstance(each, NoCost) else each for each in table.entries(questions())]

    assert answers(stored) == answers(known)
    assert answers(stored) == answers(known), "nor does what it remembers change anything"
    assert set(stored) == set(known)
    assert len(stored) == len(known) == len(measured())
    assert {form: list(widths) for form, widths in stored.forms.items()} == {form: list(widths) for form, widths in known.forms.items()}
    assert stored.edges(conv(1, 1), ONE, "latency_ms") == known.edges(conv(1, 1), ONE, "latency_ms")
    assert (stored.measures("latency_ms"), stored.measures("energy_mj")) == (True, False)


def test_however_many_are_asked_for_two_reads_answer(stored: CostTable, db: Database) -> None:
    with counted(db) as seen:
        stored.entries(questions())
    assert len(seen) == 2
    with counted(db) as seen:
        stored.entries(questions())
    assert len([each for each in seen if "cost_entries" in each]) == 0


def test_more_than_one_statement_takes(stored: CostTable, monkeypatch: pytest.MonkeyPatch, db: Database) -> None:
    monkeypatch.setattr(entries, "AT_ONCE", 3)
    devices.save_table(db, None, CostTable("pi-4", [replace(each, value=5.0) for each in measured()]))
    again = devices.open_table(db, "pi-4")[1]
    assert {each.value for each in again.entries([(e.shape, e.setting, e.quantity) for e in measured()])} == {5.0}  # type: ignore[union-attr]


def test_widths_measured_later_join_those_of_the_form(stored: CostTable, db: Database) -> None:
    with pytest.raises(NoCost):
        stored.entry(conv(8, 48), ONE, "latency_ms")
    devices.save_table(db, None, CostTable("pi-4", [entry(conv(8, 48)), entry(conv(8, 8))]))
    later = devices.open_table(db, "pi-4")[1]
    assert later.entry(conv(8, 44), ONE, "latency_ms").value == entry(conv(8, 48)).value
    assert len(later) == len(stored) == len(measured()) + 1


def test_a_network_takes_as_many_reads_as_a_layer(stored: CostTable, db: Database) -> None:
    devices.save_table(db, None, CostTable("pi-4", [], [Calibration("latency_ms", ONE, 2.0, 1.0, ())]))
    model = TableCost(devices.open_table(db, "pi-4")[1], "latency_ms", ONE)
    with counted(db) as seen:
        priced = model.network([conv(8, 8), conv(8, 20), conv(8, 8), conv(40, 40, 7)])
    assert len(seen) == 2
    assert priced.value == 2 * (2 * entry(conv(8, 8)).value + entry(conv(8, 24)).value + entry(conv(40, 40, 7)).value)


def test_only_so_much_is_remembered() -> None:
    memory: Memory[int, str] = Memory(2)
    assert memory.kept({1: "a", 2: "b"}) == {1: "a", 2: "b"}
    memory.kept({3: "c"})
    assert memory.those_of([1, 2, 3, 4]) == {2: "b", 3: "c"}
