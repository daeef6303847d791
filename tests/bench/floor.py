"""The floor: what nobody who reads the same from Billetweb into the same tables can do much faster.

`floor.py BASE_URL DATABASE_URL [SINCE | log]`: httpx, msgspec's typed decoding, plain sqlite3 or psycopg;
four events at a time, each read by itself and written in one transaction. No change log, no comparison, no
doubt, no record of runs, no ceiling on requests. Without SINCE (UNIX seconds) everything is read and, on
PostgreSQL, copied straight into the tables, which must be empty; else what was modified since then, and its
events anew. With `log` everything is read, and each row stands in the log of changes too.
The tables are those that syncd made.
"""

import asyncio
import functools
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import httpx
import measure
import msgspec

WORKERS = 4
PARIS = ZoneInfo("Europe/Paris")
NOW = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
Value = str | int | bool | None
Values = tuple[Value, ...]
STAMPS: Values = ("{}", NOW, NOW, None)


class Event(msgspec.Struct):
    """A row of /events."""

    id: str
    ext_id: str
    name: str
    start: str
    end: str
    multiple: str
    place: str
    shop: str
    online: str
    tax_rate: str
    tags: msgspec.Raw
    image: str
    cover: str
    confirmation_message: str
    description: str


class Gauge(msgspec.Struct):
    """A row of /event/ID/avail."""

    type: str
    avail: str
    quota: str | bool
    status: str
    id: str = ""
    name: str = ""


class Ticket(msgspec.Struct):
    """A row of /event/ID/tickets."""

    id: str
    full_name: str
    name: str
    price: float
    category: str
    commission: float | bool
    visibility: str
    form: str
    description: str
    label: str
    instructions: str
    tax: str


class Session(msgspec.Struct):
    """A row of /event/ID/dates."""

    id: str
    start: str
    end: str
    quota: str
    total_sales: str
    tickets: msgspec.Raw
    name: str
    place: str
    description: str
    instructions: str


class Attendee(msgspec.Struct):
    """A row of /attendees and /event/ID/attendees; only the first has `event`."""

    id: str
    ext_id: str
    barcode: str
    used: str
    used_date: str
    email: str
    firstname: str
    name: str
    category: str
    ticket_id: str
    price: str
    seating_location: str
    last_update: str
    reduction_code: str
    authorization_code: str
    pass_: str = msgspec.field(name="pass")
    disabled: str
    order_id: str
    order_firstname: str
    order_name: str
    order_email: str
    order_date: str
    order_paid: str
    order_payment_type: str
    order_payment_date: str
    order_origin: str
    order_price: str
    order_session: str
    order_accreditation: str
    order_language: str
    custom: msgspec.Raw
    custom_order: msgspec.Raw
    event: str = ""


@functools.lru_cache(maxsize=1 << 15)
def _hour(wall_hour: str) -> str:
    """Return the UTC text of an hour in Paris, whose clocks differ from UTC by whole hours."""
    return datetime.fromisoformat(wall_hour).replace(tzinfo=PARIS).astimezone(UTC).strftime("%Y-%m-%d %H")


def instant(wall: str) -> str | None:
    """Return UTC as syncd stores it on SQLite, and as PostgreSQL reads it."""
    return _hour(wall[:13]) + wall[13:] + ".000000" if wall and wall[0] != "0" else None


def text(value: str) -> str | None:
    """Return None for what Billetweb shows as an empty text."""
    return value or None


COLUMNS = {
    "billetweb_events": "id account ext_id name starts_at ends_at multiple place shop_url online tax_rate"
    " tags image_url cover_url description confirmation_message places_total places_left unlimited is_full"
    " availability_at",
    "billetweb_gauges": "event_id session_id type gauge_id name places_total places_left unlimited status",
    "billetweb_tickets": "id event_id position name full_name category price commission tax unlimited is_full"
    " visibility label description instructions form",
    "billetweb_sessions": "id event_id name starts_at ends_at place description instructions visibility"
    " places_total places_left unlimited places_sold is_full tickets",
    "billetweb_attendees": "id event_id ticket_id session_id order_id ext_id barcode category price"
    " order_price used used_at disabled order_paid order_payment_type order_origin order_accreditation"
    " pass_id seating_location ordered_at paid_at last_update_at firstname name email order_firstname"
    " order_name order_email order_language reduction_code authorization_code custom custom_order",
}
KEYS = {"billetweb_gauges": "event_id, session_id, type, gauge_id"}
LOG = "syncd_changes"
LOG_COLUMNS = ["run_id", "seen_at", "table_name", "row_id", "event_id", "kind", "diff"]
PERSONAL_FROM = "firstname"


def columns_of(table: str) -> list[str]:
    """Return the columns that are written, in the order of the values."""
    if table == LOG:
        return LOG_COLUMNS
    return [*COLUMNS[table].split(), "extra", "first_seen_at", "changed_at", "vanished_at"]


def logged(table: str, rows: list[Values]) -> Iterable[Values]:
    """Return what the log of changes says of new rows."""
    names = COLUMNS[table].split()
    public = names[: names.index(PERSONAL_FROM)] if PERSONAL_FROM in names else names
    key = len(KEYS.get(table, "id").split())
    event = names.index("event_id" if "event_id" in names else "id")
    for row in rows:
        diff = {name: (None, value) for name, value in zip(public, row, strict=False) if value is not None}
        row_id = "/".join(map(str, row[:key]))
        yield (1, NOW, table, row_id, row[event], "inserted", msgspec.json.encode(diff).decode())


def event_row(row: Event, gauge: Gauge) -> Values:
    """Return the values of an event, with the figures of its own gauge."""
    total, left = int(gauge.quota), int(gauge.avail)
    return (
        *(row.id, "12345", row.ext_id, row.name, instant(row.start), instant(row.end), row.multiple == "1"),
        *(text(row.place), row.shop, row.online == "1", text(row.tax_rate), bytes(row.tags).decode()),
        *(text(row.image), text(row.cover), text(row.description), text(row.confirmation_message)),
        *(total, left, False, left == 0, NOW),
        *STAMPS,
    )


def gauge_row(event_id: str, row: Gauge) -> Values:
    """Return the values of a gauge."""
    unlimited = row.avail[0] == "-"
    total, left = (None, None) if unlimited else (int(row.quota), int(row.avail))
    key = (event_id, "", row.type, row.id or row.name)
    return (*key, text(row.name), total, left, unlimited, row.status, *STAMPS)


def ticket_row(event_id: str, position: int, row: Ticket) -> Values:
    """Return the values of a tariff."""
    return (
        *(row.id, event_id, position, row.name, row.full_name, text(row.category), str(row.price)),
        *(str(float(row.commission)), text(row.tax), True, False, row.visibility, text(row.label)),
        *(text(row.description), text(row.instructions), row.form),
        *STAMPS,
    )


def session_row(event_id: str, row: Session) -> Values:
    """Return the values of a session."""
    total, sold = int(row.quota), int(row.total_sales)
    return (
        *(row.id, event_id, text(row.name), instant(row.start), instant(row.end), text(row.place)),
        *(
            text(row.description),
            text(row.instructions),
            None,
            total,
            total - sold,
            False,
            sold,
            total == sold,
        ),
        bytes(row.tickets).decode(),
        *STAMPS,
    )


def attendee_row(event_id: str, row: Attendee) -> Values:
    """Return the values of an attendee."""
    session_id = row.order_session if row.order_session != "0" else None
    custom = [None if bytes(raw) == b"[]" else bytes(raw).decode() for raw in (row.custom, row.custom_order)]
    return (
        *(row.id, event_id, row.ticket_id, session_id, row.order_id, row.ext_id, row.barcode),
        *(text(row.category), row.price, row.order_price, int(row.used), instant(row.used_date)),
        *(row.disabled == "1", row.order_paid == "1", row.order_payment_type, row.order_origin),
        *(row.order_accreditation, row.pass_, text(row.seating_location), instant(row.order_date)),
        *(
            instant(row.order_payment_date),
            instant(row.last_update),
            row.firstname,
            row.name,
            text(row.email),
        ),
        *(row.order_firstname, row.order_name, row.order_email, row.order_language),
        *(text(row.reduction_code), text(row.authorization_code), *custom),
        *STAMPS,
    )


Tables = dict[str, list[Values]]


class Store(Protocol):
    """A database whose tables exist."""

    def write(self, tables: Tables) -> None:
        """Write rows of several tables in one transaction."""


def _upsert(table: str, placeholder: str) -> str:
    columns = columns_of(table)
    if table == LOG:
        return (
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join([placeholder] * len(columns))})"
        )
    news = ", ".join(f"{name} = excluded.{name}" for name in columns if name != "first_seen_at")
    values = ", ".join([placeholder] * len(columns))
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values}) "
        f"ON CONFLICT ({KEYS.get(table, 'id')}) DO UPDATE SET {news}"
    )


class Sqlite:
    """A SQLite file, as syncd opens it."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def write(self, tables: Tables) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for table, rows in tables.items():
            self._connection.executemany(_upsert(table, "?"), rows)
        self._connection.execute("COMMIT")


class Postgres:
    """A PostgreSQL database; `is_new`: its tables are empty."""

    def __init__(self, url: str, *, is_new: bool) -> None:
        import psycopg

        self._connection = psycopg.connect(url, options="-c timezone=UTC")
        self._is_new = is_new

    def write(self, tables: Tables) -> None:
        with self._connection.transaction(), self._connection.cursor() as cursor:
            for table, rows in tables.items():
                if not self._is_new:
                    cursor.executemany(_upsert(table, "%s").encode(), rows)
                    continue
                columns = ", ".join(columns_of(table))
                with cursor.copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as copy:
                    for row in rows:
                        copy.write_row(row)


class Floor:
    """Reads one account into a store; with `log` into the log of changes too."""

    def __init__(self, http: httpx.AsyncClient, store: Store, *, log: bool) -> None:
        self._http = http
        self._store = store
        self._log = log
        self._turn = asyncio.Lock()

    async def first_import(self) -> None:
        """Read everything, event by event."""
        await self._each(await self._events(), self._whole_event)

    async def increment(self, since: str) -> None:
        """Read what was modified, and the events that it belongs to."""
        events = await self._events()
        modified = await self._get("/attendees", list[Attendee], disabled="1", last_update=since)
        by_event: dict[str, list[Values]] = {}
        for row in modified:
            by_event.setdefault(row.event, []).append(attendee_row(row.event, row))

        async def changed(event: Event) -> None:
            await self._write({**await self._figures(event), "billetweb_attendees": by_event[event.id]})

        await self._each([event for event in events if event.id in by_event], changed)

    async def _each(self, events: Iterable[Event], read: Callable[[Event], Awaitable[None]]) -> None:
        waiting = iter(events)

        async def work() -> None:
            for event in waiting:
                await read(event)

        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(work())

    async def _events(self) -> list[Event]:
        events: list[Event] = await self._get("/events", list[Event], past="1", description="1")
        return events

    async def _whole_event(self, event: Event) -> None:
        tables = await self._figures(event)
        attendees = await self._get(f"/event/{event.id}/attendees", list[Attendee], disabled="1")
        await self._write(
            {**tables, "billetweb_attendees": [attendee_row(event.id, row) for row in attendees]}
        )

    async def _figures(self, event: Event) -> Tables:
        gauges = await self._get(f"/event/{event.id}/avail", list[Gauge], past="1", temp="0")
        tickets = await self._get(f"/event/{event.id}/tickets", list[Ticket])
        sessions = []
        if event.multiple == "1":
            sessions = await self._get(f"/event/{event.id}/dates", list[Session], past="1")
        return {
            "billetweb_events": [event_row(event, gauges[0])],
            "billetweb_gauges": [gauge_row(event.id, row) for row in gauges],
            "billetweb_tickets": [
                ticket_row(event.id, position, row) for position, row in enumerate(tickets)
            ],
            "billetweb_sessions": [session_row(event.id, row) for row in sessions],
        }

    async def _get(self, path: str, type_: Any, **params: str) -> Any:
        answer = await self._http.get(path, params=params)
        return msgspec.json.decode(answer.raise_for_status().content, type=type_, strict=False)

    async def _write(self, tables: Tables) -> None:
        if self._log:
            log = [change for table, rows in tables.items() for change in logged(table, rows)]
            tables = {**tables, LOG: log}
        async with self._turn:
            await asyncio.to_thread(self._store.write, tables)


async def main(base_url: str, database: str, how: str = "") -> None:
    """Carry it out and tell how long it took, from the first request to the last commit."""
    is_sqlite = database.startswith("sqlite")
    path = database.removeprefix("sqlite:///")
    since = "" if how == "log" else how
    store: Store = Sqlite(path) if is_sqlite else Postgres(database, is_new=not since)
    async with httpx.AsyncClient(base_url=base_url, auth=("12345", "key"), trust_env=False) as http:
        floor = Floor(http, store, log=how == "log")
        began = time.perf_counter()
        await (floor.increment(since) if since else floor.first_import())
        measure.tell(seconds=time.perf_counter() - began)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
