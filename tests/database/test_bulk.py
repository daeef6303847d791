"""Rows in bulk, few or many: what is written comes back, the last of a key counts, no value is told."""

import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import migrated_at
from sqlalchemy import select

from syncd.database import schema
from syncd.database.bulk import AT_ONCE, COPY_ABOVE_ROWS, insert, upsert
from syncd.database.engine import Database
from syncd.errors import StoreError

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
TICKETS = schema.metadata.tables["billetweb_tickets"]
NAMES = ("id", "event_id", "position", "name", "price", "is_full", "sale_starts_at", "extra")
KEPT = ("first_seen_at", "changed_at", "unlimited")
CANARY = "canary-8f3a"
COUNTS = [1, COPY_ABOVE_ROWS, COPY_ABOVE_ROWS + 1, AT_ONCE + 1]
"""One, as many as are still written row by row, as few as are copied, and more than are encoded at once."""
ODD_TEXTS = [None, "", " ", "\t", "a\nb", "\\", "\\N", "\\.", "\r\n", "é🎟️", "'\";--", '{"a",b}', "\x1f\u2028"]
Row = tuple[Any, ...]


@pytest.fixture
def database(tmp_path: Path, database_kind: str) -> Iterator[Database]:
    database = Database(migrated_at(tmp_path / "mirror.db"))
    database.open()
    yield database
    database.close()


def row(number: int, name: str | None = "tariff", **values: Any) -> Row:
    """Give a tariff with its key, and values for the columns in NAMES and KEPT."""
    given = {
        "id": str(number),
        "event_id": "9",
        "position": number,
        "name": name,
        "price": Decimal(number) / 4,
        "is_full": number % 2 == 0,
        "sale_starts_at": NOW if number % 3 else None,
        "extra": {"x": [number, name, None]},
        "first_seen_at": NOW,
        "changed_at": NOW,
        "unlimited": False,
    }
    return tuple((given | values).values())


def written(database: Database, rows: list[Row], keep: tuple[str, ...] = ()) -> None:
    with database.begin(write=True) as connection:
        upsert(connection, TICKETS, (*NAMES, *KEPT), rows, keep)


def stored(database: Database) -> list[Row]:
    columns = [TICKETS.c[name] for name in (*NAMES, *KEPT)]
    with database.begin() as connection:
        return [tuple(found) for found in connection.execute(select(*columns).order_by(TICKETS.c.position))]


@pytest.mark.parametrize("count", COUNTS)
def test_a_value_changes_on_its_way(database: Database, count: int) -> None:
    """Every kind of value comes back as it was, whatever a text holds."""
    rows = [row(number, ODD_TEXTS[number % len(ODD_TEXTS)]) for number in range(count)]
    written(database, rows)
    assert stored(database) == rows


@pytest.mark.parametrize("count", COUNTS)
def test_a_column_that_is_nearly_empty_is_left_out(database: Database, count: int) -> None:
    """New rows come back as they were; a column may have a value in the last row alone, or in none."""
    rows = [
        row(number, "last" if number == count - 1 else None, price=None, sale_starts_at=None)
        for number in range(count)
    ]
    with database.begin(write=True) as connection:
        insert(connection, TICKETS, (*NAMES, *KEPT), rows)
    assert stored(database) == rows


@pytest.mark.parametrize("count", COUNTS)
def test_the_first_of_a_key_counts(database: Database, count: int) -> None:
    """Of several rows with one key the last is stored, be it there already or not."""
    written(database, [row(number) for number in range(0, count, 2)])
    written(database, [row(number, name) for name in ("first", "last") for number in range(count)])
    assert stored(database) == [row(number, "last") for number in range(count)]


@pytest.mark.parametrize("count", COUNTS)
def test_what_is_to_stay_is_overwritten(database: Database, count: int) -> None:
    """The columns to keep keep what they hold in a row that is there, and are written in one that is not."""
    later = NOW.replace(year=2028)
    written(database, [row(number) for number in range(count)])
    written(
        database, [row(number, "new", first_seen_at=later) for number in range(count + 1)], ("first_seen_at",)
    )
    assert stored(database) == [
        *(row(number, "new") for number in range(count)),
        row(count, "new", first_seen_at=later),
    ]


@pytest.mark.parametrize("count", COUNTS)
def test_a_column_that_is_not_named_is_emptied(database: Database, count: int) -> None:
    """It keeps what it holds."""
    written(database, [row(number) for number in range(count)])
    names = ("id", "event_id", "position", "is_full", "extra", *KEPT)
    picked = [(*NAMES, *KEPT).index(name) for name in names]
    with database.begin(write=True) as connection:
        new = [row(number, is_full=True) for number in range(count)]
        upsert(connection, TICKETS, names, [tuple(each[place] for place in picked) for each in new])
    assert stored(database) == new


@pytest.mark.parametrize("count", COUNTS)
def test_two_writes_of_one_transaction_mix(database: Database, count: int) -> None:
    """What the first one staged is not written again by the second, in one transaction or the next."""
    with database.begin(write=True) as connection:
        upsert(connection, TICKETS, (*NAMES, *KEPT), [row(number, "first") for number in range(count)])
        connection.execute(TICKETS.delete())
        upsert(connection, TICKETS, (*NAMES, *KEPT), [row(number) for number in range(count, 2 * count)])
    assert stored(database) == [row(number) for number in range(count, 2 * count)]
    written(database, [row(0)] * count)
    assert len(stored(database)) == count + 1


@pytest.mark.parametrize("count", COUNTS)
def test_the_feed_is_out_of_order(database: Database, count: int) -> None:
    """New rows are numbered in their order."""
    changes = schema.metadata.tables["syncd_changes"]
    names = ("run_id", "seen_at", "table_name", "row_id", "event_id", "kind", "diff")
    rows = [
        (1, NOW, "billetweb_events", str(number), "9", "inserted", {"n": number}) for number in range(count)
    ]
    with database.begin(write=True) as connection:
        insert(connection, changes, names, rows)
        found = connection.execute(select(changes.c.row_id, changes.c.diff).order_by(changes.c.seq)).all()
    assert [*map(tuple, found)] == [(str(number), {"n": number}) for number in range(count)]


BAD: dict[str, Callable[[int], Row]] = {
    "a naive instant": lambda n: row(n, CANARY, sale_starts_at=datetime(2027, 3, 1)),  # noqa: DTZ001
    "no value where one must be": lambda n: row(n, CANARY, event_id=None),
    "a surrogate": lambda n: row(n, f"{CANARY}\ud800"),
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", BAD)
def test_a_value_gets_into_an_error(database: Database, count: int, name: str) -> None:
    """A value that cannot be stored is told without it, nothing is written, and the next write is good."""
    good = [row(number, CANARY) for number in range(count - 1)]
    with pytest.raises(StoreError) as caught:
        written(database, [*good, BAD[name](count)])
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert stored(database) == []
    written(database, good)
    assert stored(database) == good
