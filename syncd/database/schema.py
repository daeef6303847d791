"""The tables, as SQLAlchemy Core. The migrations in `migrations/` create them.

The mirrored tables, whose columns are the fields of their records, and `syncd_runs`, `syncd_changes`,
`syncd_deliveries`, `syncd_cursors` are public: other programs read them, and the views, which only the
migrations define.
`syncd_absences`, `syncd_reads`, `syncd_requests` and `syncd_state` are private.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache, reduce
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct, structs
from sqlalchemy import JSON as _JSON
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    TypeDecorator,
    and_,
    func,
    or_,
)

from syncd.model import (
    ATTENDEES,
    EVENTS,
    GAUGES,
    SESSIONS,
    TICKETS,
    Attendee,
    Counts,
    Event,
    Gauge,
    Session,
    Ticket,
)

REVISION = "0007"
"""The migration that this version of syncd works with."""
VIEWS = ("syncd_availability", "syncd_orders")


class Instant(TypeDecorator[datetime]):
    """Aware UTC in Python; timestamptz on PostgreSQL, UTC text that sorts on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return the processor that writes an instant, as text on both databases: that is far faster."""
        return _sqlite_instant if dialect.name == "sqlite" else _instant

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Make it aware, because SQLite's type drops the zone; convert PostgreSQL's, in any zone, to UTC."""
        if value is None or value.tzinfo is UTC:
            return value
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _instant(value: datetime | None) -> str | None:
    return None if value is None else _text(value if value.tzinfo is UTC else _in_utc(value))


def _sqlite_instant(value: datetime | None) -> str | None:
    """Return text without a zone, which SQLite's type does not have."""
    text = _instant(value)
    return text and text.removesuffix("+00:00")


def _in_utc(value: datetime) -> datetime:
    """Refuse a naive instant: its meaning is unknown."""
    if value.tzinfo is None:
        raise ValueError(f"naive instant {value!r}")
    return value.astimezone(UTC)


# An order's places, and often its instants too, are equal. In UTC alone: elsewhere the two passes of the
# doubled hour of autumn are one key.
@lru_cache(maxsize=4096)
def _text(value: datetime) -> str:
    return value.isoformat(" ", "microseconds")


class Money(TypeDecorator[Decimal]):
    """Decimal in Python; on SQLite a column of numeric affinity, so that SUM works, written and read as text.

    SQLite may store 12.50 as the real 12.5: its shortest text gives the same Decimal. PostgreSQL returns
    12.5000; both are read as 12.5, so that a change looks the same.
    """

    impl = Numeric
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Bypass SQLAlchemy's conversion through float on SQLite."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(Numeric(asdecimal=False))
        return dialect.type_descriptor(Numeric(12, 4))

    def bind_processor(self, _dialect: Dialect) -> Any:
        """Return the processor that writes an amount, as text, which both databases convert."""
        return _money_text

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """Read a number of any kind by its shortest text."""
        if value is None:
            return None
        return Decimal(str(value) if dialect.name == "sqlite" else f"{value.normalize():f}")


def _money_text(value: Decimal | None) -> str | None:
    return None if value is None else str(value)


class Json(TypeDecorator[Any]):
    """Lists, dicts and what they hold; jsonb on PostgreSQL, text on SQLite. None is null, as everywhere."""

    impl = _JSON(none_as_null=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Import PostgreSQL's types only for PostgreSQL."""
        if dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import JSONB  # noqa: PLC0415

            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(_JSON(none_as_null=True))

    def bind_processor(self, _dialect: Dialect) -> Any:
        """Return the processor that writes JSON, as text on both databases."""
        return _json_text


def _json_text(value: object) -> str | None:
    """Return JSON without escapes and spaces."""
    return None if value is None else msgspec.json.encode(value).decode()


JSON = Json()
WIDE = BigInteger().with_variant(Integer, "sqlite")
"""A number that grows for ever, or that others set; SQLite's INTEGER is as wide as needed."""
metadata = MetaData()


_TYPES: dict[Any, Any] = {
    str: Text,
    Literal: Text,
    bool: Boolean,
    int: BigInteger,
    datetime: Instant,
    Decimal: Money,
    list: JSON,
    dict: JSON,
}


def _mirrored(
    name: str, kind: type[Struct], *more: Column[Any], key: Sequence[str] = ("id",), **types: Any
) -> Table:
    """Return the table of a record: a column for each field, of its type unless `types` has another."""

    def column(field: structs.FieldInfo) -> Column[Any]:
        """Return the column of a field."""
        kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        return Column(
            field.name,
            types.get(field.name) or _TYPES[get_origin(kinds[0]) or kinds[0]],
            primary_key=field.name in key,
            nullable=NoneType in kinds,
            index=field.name == "event_id" and field.name not in key,
        )

    return Table(
        name,
        metadata,
        *map(column, structs.fields(kind)),
        *more,
        Column("first_seen_at", Instant, nullable=False),
        Column("changed_at", Instant, nullable=False),
        Column("vanished_at", Instant),
    )


events = _mirrored(EVENTS, Event, Column("availability_at", Instant))
Index("ix_billetweb_events_ext_id", events.c.ext_id)
gauges = _mirrored(GAUGES, Gauge, key=("event_id", "session_id", "type", "gauge_id"))
tickets = _mirrored(TICKETS, Ticket, position=Integer)
sessions = _mirrored(SESSIONS, Session)
attendees = _mirrored(ATTENDEES, Attendee, used=WIDE)

runs = Table(
    "syncd_runs",
    metadata,
    Column("id", WIDE, primary_key=True, autoincrement=True),
    Column("trigger", Text, nullable=False),
    Column("requested_by", JSON),
    Column("full", Boolean, nullable=False),
    Column("events", JSON, nullable=False),
    Column("whole", Boolean, nullable=False),
    Column("accept", Boolean, nullable=False),
    Column("accepted", JSON, nullable=False),
    Column("state", Text, nullable=False),
    Column("outcome", Text),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("duration_s", Float),
    *(
        Column(name, Integer, nullable=False)
        for name in ("requests", "synced", "failed", *Counts.__struct_fields__)
    ),
    Column("errors", JSON, nullable=False),
    Column("errors_total", Integer, nullable=False),
    Column("unreadable", Integer, nullable=False, server_default="0"),
)

changes = Table(
    "syncd_changes",
    metadata,
    Column("seq", WIDE, primary_key=True, autoincrement=True),
    Column("run_id", WIDE, nullable=False),
    Column("seen_at", Instant, nullable=False),
    Column("table_name", Text, nullable=False),
    Column("row_id", Text, nullable=False),
    Column("event_id", Text, nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("diff", JSON, nullable=False),
    sqlite_autoincrement=True,  # a reader's position stays valid: numbers are never reused
)

deliveries = Table(
    "syncd_deliveries",
    metadata,
    Column("seq", WIDE, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("endpoint", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_at", Instant),
    Column("retry_until", Instant, nullable=False),
    Column("attempted_at", Instant),
    Column("delivered_at", Instant),
    Column("status", Integer),
    Column("error", Text),
    sqlite_autoincrement=True,  # their order: a number is never reused
)
"""The deliveries to endpoints, and their results. `state` is `pending`, `delivered` or `parked`;
`event_id` is '' for what concerns no event, or the list of them; `body` is sent unchanged."""
PENDING = deliveries.c.state == "pending"
# The migration restricts it to these; `postgresql_where` here would load that dialect at every start.
Index("ix_syncd_deliveries_pending", deliveries.c.endpoint, deliveries.c.event_id, deliveries.c.seq)
Index("ix_syncd_deliveries_state", deliveries.c.state, deliveries.c.seq)
"""Those that wait or are parked are few; all others are history."""

cursors = Table(
    "syncd_cursors",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", JSON, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

absences = Table(
    "syncd_absences",
    metadata,
    Column("table_name", Text, primary_key=True),
    Column("row_id", Text, primary_key=True),
    Column("event_id", Text, nullable=False, index=True),
    Column("since", Instant, nullable=False),
    Column("reads", Integer, nullable=False),
    Column("run_id", WIDE, nullable=False),
    Column("waits_for", Text),
)
"""Rows that complete reads lacked and that have not vanished: since when, in how many reads in a row, in
which run last; and what a doubt waits for by the latest ruling."""

reads = Table(
    "syncd_reads",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("due_at", Instant),
    Column("attendees_at", Instant),
    Column("attendees_full_at", Instant),
    Column("tried_at", Instant),
    Column("failures", Integer, nullable=False, server_default="0"),
)
"""For each event: since when a change is known that was not read yet; when the latest read of its own
attendees began, and the latest read of all of them; when it was last tried without success, and how often in
a row it failed."""

requests = Table("syncd_requests", metadata, Column("sent_at", Float, primary_key=True))

state = Table(
    "syncd_state",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", JSON, nullable=False),
)

PLANNED = {table.name: table for table in (events, gauges, tickets, sessions)}
"""The tables with few rows for each event, which are planned together, by name."""
MIRRORED = PLANNED | {attendees.name: attendees}
"""The tables that hold what Billetweb has, by name."""


def live(since: datetime) -> ColumnElement[bool]:
    """Return the condition for events that have not vanished and were not over at that instant.

    An event without any date, such as an old series, counts while it is online.
    """
    end = func.coalesce(events.c.ends_at, events.c.starts_at)
    goes_on = or_(end > since, and_(end.is_(None), events.c.online.is_not(False)))
    return and_(events.c.vanished_at.is_(None), goes_on)


def row_key(table: Table) -> ColumnElement[str]:
    """Return what equals a row id: in SQL what `model.joined` is in Python."""
    if len(table.primary_key) == 1:
        return next(iter(table.primary_key))
    parts = (func.replace(func.replace(c, "%", "%25"), "/", "%2F") for c in table.primary_key)
    return reduce(lambda key, part: key + "/" + part, parts)
