"""What one run leaves for the next, across restarts: named values, requests, and the reads of events."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, func, select

from syncd.database import bulk, schema

T = TypeVar("T")
PAUSED = "paused"
QUIET = "quiet"
LIMITED = "limited key"
SEEN = "seen sales"
PACE = "pace"
READINGS = "readings"
KEPT = "attendees"
ACCOUNT = "attendees of"
SINCE = "attendees since"
TRACES = "traces of attendees"
SHORT = "list without descriptions"
FEEDS = "feeds"
HOLDER = "holder"


class Limited(Struct, frozen=True):
    """Since when a key is known to be limited to some events; `key` is its digest."""

    at: datetime
    key: str


class Readings(Struct, frozen=True):
    """The readings of all live events, each in one full run or in a rotation over many runs.

    `began_at`: since when the current one counts; `ended_at`: when the latest ended.
    """

    began_at: datetime
    ended_at: datetime | None = None


class Pause(Struct, frozen=True):
    """A pause of scheduled runs; `since` and `by` are None if an earlier version noted it."""

    since: datetime | None = None
    by: str | None = None


class Reads(Struct, frozen=True):
    """What is remembered of an event's reads; see `schema.reads`."""

    due_at: datetime | None = None
    attendees_at: datetime | None = None
    attendees_full_at: datetime | None = None
    tried_at: datetime | None = None
    failures: int = 0


class Try(Struct, frozen=True):
    """When an event was last tried without success, None after a success; how often in a row it failed."""

    at: datetime | None = None
    failures: int = 0


def size_bytes(connection: Connection) -> int:
    """Return the size of the database: SQLite's file, or on PostgreSQL syncd's own tables."""
    if connection.dialect.name == "sqlite":
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        return int(pages * connection.exec_driver_sql("PRAGMA page_size").scalar_one())
    tables = (func.to_regclass(f'"{table}"') for table in schema.metadata.tables)
    sizes = (func.coalesce(func.pg_total_relation_size(table), 0) for table in tables)
    return int(sum(connection.execute(select(*sizes)).one()))


# --- named values


def get(connection: Connection, name: str, kind: type[T]) -> T | None:
    """Return a named value, None if there is none."""
    value = connection.scalar(select(schema.state.c.value).where(schema.state.c.name == name))
    return None if value is None else msgspec.convert(value, kind)


def put(connection: Connection, name: str, value: object) -> None:
    """Store a value under a name; None removes it."""
    if value is None:
        connection.execute(schema.state.delete().where(schema.state.c.name == name))
    else:
        row = (name, msgspec.to_builtins(value))
        bulk.upsert(connection, schema.state, ("name", "value"), [row])


def pause(connection: Connection) -> Pause | None:
    """Return the pause of scheduled runs, None if there is none."""
    noted = get(connection, PAUSED, object)
    return Pause() if noted is True else msgspec.convert(noted, Pause) if noted else None


# --- requests


def note_request(connection: Connection, at_s: float) -> None:
    """Note that a request is being sent at `at_s` (UNIX seconds)."""
    bulk.upsert(connection, schema.requests, ("sent_at",), [(at_s,)])


def forget_requests(connection: Connection, at_s: float, window_s: float) -> None:
    """Forget the requests outside the window; the clock may have been set back."""
    within = schema.requests.c.sent_at.between(at_s - window_s, at_s + window_s)
    connection.execute(schema.requests.delete().where(~within))


def request_ages_s(connection: Connection, at_s: float, window_s: float) -> list[float]:
    """Return how long before `at_s` the requests in the window were sent; the clock may be set back."""
    sent_at = schema.requests.c.sent_at
    noted = connection.scalars(select(sent_at).where(sent_at > at_s - window_s)).all()
    return [max(at_s - at, 0.0) for at in noted]


# --- reads of events


def reads(connection: Connection) -> dict[str, Reads]:
    """Return what is remembered of events' reads, by event."""
    columns = [schema.reads.c[name] for name in ("event_id", *Reads.__struct_fields__)]
    return {event_id: Reads(*rest) for event_id, *rest in connection.execute(select(*columns)).all()}


def mark_due(connection: Connection, event_ids: Iterable[str], at: datetime) -> None:
    """Mark these events due: something happened to them that must still be read."""
    rows = [(event_id, at) for event_id in sorted(event_ids)]
    bulk.upsert(connection, schema.reads, ("event_id", "due_at"), rows)


def mark_read(connection: Connection, event_id: str) -> None:
    """Mark an event as read, no longer due."""
    reads_ = schema.reads
    connection.execute(reads_.update().where(reads_.c.event_id == event_id).values(due_at=None))


def note_tries(connection: Connection, tries: Mapping[str, Try]) -> None:
    """Store how events were tried in a run."""
    rows = [(event_id, tried.at, tried.failures) for event_id, tried in sorted(tries.items())]
    bulk.upsert(connection, schema.reads, ("event_id", "tried_at", "failures"), rows)


def is_recent(at: datetime | None, now: datetime, within: timedelta) -> bool:
    """Return whether an instant is at most that long ago; one in the future came from a wrong clock."""
    return at is not None and timedelta(0) <= now - at < within
