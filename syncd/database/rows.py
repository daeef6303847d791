"""The mirrored tables: what they hold, and the one way to write rows into them.

Every result is read to its end: an open cursor keeps the connection's next user from writing.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct, field
from sqlalchemy import ColumnElement, Connection, Table, and_, bindparam, func, or_, select

from syncd.database import absences, bulk, changes, schema, state
from syncd.mirror.availability import is_on_offer
from syncd.mirror.diff import FIELDS, Change, EventPlan, EventRows, Stored, count
from syncd.model import EVENTS, Counts, Json, SaleStatus, Ticket, joined
from syncd.text import NEARLY_FULL

ALSO = ("first_seen_at", "changed_at", "vanished_at")


class Event(Struct, frozen=True):
    """An event with its availability, which was read `age_s` ago."""

    id: str
    ext_id: str | None
    name: str | None
    starts_at: datetime | None
    ends_at: datetime | None
    place: str | None
    online: bool | None
    shop_url: str | None
    places_total: int | None
    places_left: int | None
    unlimited: bool
    is_full: bool
    sale_status: SaleStatus
    availability_at: datetime | None
    vanished_at: datetime | None
    age_s: float | None


SHOWN = Event.__struct_fields__[:-1]
"""The columns of an event that the control API shows."""
PUBLIC = tuple(name for name in SHOWN if name != "availability_at")
"""Those of them that change only with news."""
OFFERED = (
    *("id", "event_id", "position", "name", "full_name", "price", "is_full"),
    *("visibility", "is_place", "sale_starts_at", "sale_ends_at"),
)
"""The columns of a tariff that say what is on offer, and for how much."""
HELD = {name: [table.c[field] for field in FIELDS[name]] for name, table in schema.MIRRORED.items()}
"""The columns of each table that its records have, in their order."""
OF_EVENT = {
    name: select(*HELD[name], *table.primary_key, table.c.vanished_at).where(
        (table.c.id if name == EVENTS else table.c.event_id) == bindparam("event")
    )
    for name, table in schema.PLANNED.items()
}
"""The rows of one event: the record's columns, the key's, and when it was marked vanished."""


Follow = Callable[[Connection, "Writing", Sequence[Change]], None]


def follow_nothing(_connection: Connection, _writing: "Writing", _changes: Sequence[Change]) -> None:
    """Do nothing."""


class Writing(Struct, frozen=True):
    """For which run rows are written, when, and what follows from them in the same transaction.

    `ext_ids`: those of the listed events, which may not be written yet. `counts`: the number of rows by kind
    of change, valid if the transaction is committed.
    """

    run_id: int
    at: datetime
    follow: Follow = follow_nothing
    ext_ids: Mapping[str, str | None] = {}
    counts: Counts = field(default_factory=Counts)


class Figures(Struct, frozen=True):
    """Of live events: how many there are, how many are full, and how many have figures.

    `oldest_at` is when the oldest figures were read, None if none were. `nearly_full`: how many have a tenth
    of their places or less left.
    """

    events: int
    full: int
    read: int
    oldest_at: datetime | None
    nearly_full: int = 0


class Places(Struct, frozen=True):
    """The places of a live event, for the metrics."""

    id: str
    name: str | None
    places_total: int | None
    places_left: int | None
    unlimited: bool
    is_full: bool


class PublicEvent(Struct, frozen=True):
    """An event as the public may see it: its PUBLIC columns, and the tariffs that can be bought now."""

    shown: dict[str, Any]
    account: str
    tags: list[str]
    changed_at: datetime
    offers: list[Ticket]


# --- what is held


def present_events(connection: Connection) -> dict[str, datetime | None]:
    """Return the events that have not vanished, and when their availability was last read."""
    events = schema.events.c
    query = select(events.id, events.availability_at).where(events.vanished_at.is_(None))
    return {row[0]: row[1] for row in connection.execute(query).all()}


def expected_events(connection: Connection, now: datetime) -> set[str]:
    """Return the events that the list should hold: one that is over may leave it without having vanished."""
    return {*connection.scalars(select(schema.events.c.id).where(schema.live(now)))}


def events_with_sessions(connection: Connection) -> set[str]:
    """Return the ids of the events that have a session not marked vanished."""
    sessions = schema.sessions.c
    query = select(sessions.event_id).distinct().where(sessions.vanished_at.is_(None))
    return {*connection.scalars(query)}


def ids_of(connection: Connection, ext_ids: Iterable[str]) -> dict[str | None, str]:
    """Return the ids of the events with these `ext_id`s, as far as they exist."""
    events = schema.events.c
    query = select(events.ext_id, events.id).where(events.ext_id.in_([*ext_ids]))
    return {row[0]: row[1] for row in connection.execute(query).all()}


def ext_ids(connection: Connection, ids: Iterable[str]) -> dict[str, str | None]:
    """Return the `ext_id`s of these events."""
    events = schema.events.c
    query = select(events.id, events.ext_id).where(bulk.is_among(connection, events.id, ids))
    return {row[0]: row[1] for row in connection.execute(query).all()}


def stored(connection: Connection, table: str, ids: Iterable[str]) -> dict[str, Stored]:
    """Return the rows of these ids, as far as they exist, in a table whose key is `id`."""
    columns = schema.MIRRORED[table].c
    query = select(*HELD[table], columns.vanished_at).where(bulk.is_among(connection, columns.id, ids))
    return {row[0]: Stored(tuple(row[:-1]), row[-1]) for row in connection.execute(query).all()}


def of_event(
    connection: Connection, event_id: str, read: Mapping[str, Iterable[str]] | None = None
) -> EventRows:
    """Return all that the mirror holds of one event except its attendees.

    Includes those rows, by table, that were `read` for it but are or were stored under another event.
    """
    lacking = absences.of_event(connection, event_id)
    sizes = {name: absences.size_in(connection, name, event_id) for name, absent in lacking.items() if absent}
    found = EventRows(event_id, absences=lacking, sizes=sizes)
    for name, query in OF_EVENT.items():
        fields = len(HELD[name])
        found.rows[name] = {
            joined(row[fields:-1]): Stored(tuple(row[:fields]), row[-1])
            for row in connection.execute(query, {"event": event_id}).all()
        }
    for name, ids in (read or {}).items():
        if unknown := {*ids} - found.rows[name].keys():
            found.rows[name] |= stored(connection, name, unknown)
    return found


def present_attendees(connection: Connection, event_id: str) -> set[str]:
    """Return the ids of an event's attendees that have not vanished."""
    columns = schema.attendees.c
    here = and_(columns.event_id == event_id, columns.vanished_at.is_(None))
    return {*connection.scalars(select(columns.id).where(here))}


def changed_by_time(connection: Connection, now: datetime) -> set[str]:
    """Return the events that began or ended since their figures were read, or a sale or session of theirs."""
    events, tickets, sessions = schema.events.c, schema.tickets.c, schema.sessions.c

    def passed(*instants: ColumnElement[datetime | None]) -> ColumnElement[bool]:
        return or_(*(and_(at > events.availability_at, at <= now) for at in instants))

    queries = [
        select(events.id).where(passed(events.starts_at, events.ends_at)),
        select(events.id)
        .join(schema.tickets, tickets.event_id == events.id)
        .where(tickets.vanished_at.is_(None), passed(tickets.sale_starts_at, tickets.sale_ends_at)),
        select(events.id)
        .join(schema.sessions, sessions.event_id == events.id)
        .where(sessions.vanished_at.is_(None), passed(sessions.starts_at)),
    ]
    return {event_id for query in queries for event_id in connection.scalars(query)}


def figures(connection: Connection, live_since: datetime, but: Iterable[str] = ()) -> Figures:
    """Return what is known of the figures of live events, except those in `but`."""
    events = schema.events.c
    read_at, left = events.availability_at, events.places_left
    query = select(
        func.count(),
        func.count().filter(events.is_full),
        func.count(read_at),
        func.min(read_at),
        func.count().filter(left > 0, left * NEARLY_FULL <= events.places_total),
    )
    return Figures(*connection.execute(query.where(schema.live(live_since), events.id.not_in([*but]))).one())


def never_read(connection: Connection, failures: int, since: datetime) -> int:
    """Return how many events were tried recently, failed this often or more in a row, and were never read."""
    events, reads = schema.events.c, schema.reads.c
    known = select(events.id).where(events.availability_at.is_not(None))
    tried = (reads.failures >= failures, reads.tried_at >= since, reads.event_id.not_in(known))
    return connection.scalar(select(func.count()).where(*tried)) or 0


def places(connection: Connection, live_since: datetime, at_most: int) -> list[Places]:
    """Return the places of each live event; none if there are more events than `at_most`."""
    columns = [schema.events.c[name] for name in Places.__struct_fields__]
    query = select(*columns).where(schema.live(live_since)).order_by(schema.events.c.id).limit(at_most + 1)
    found = [Places(*row) for row in connection.execute(query).all()]
    return found if len(found) <= at_most else []


def shown_events(connection: Connection, live_since: datetime | None, now: datetime) -> list[Json]:
    """Return the events as the control API shows them, by start; all if `live_since` is None."""
    return _shown(connection, now, *([] if live_since is None else [schema.live(live_since)]))


def shown_by_id(connection: Connection, ids: Iterable[str], now: datetime) -> dict[str, Json]:
    """Return these events as the control API shows them, by id."""
    here = bulk.is_among(connection, schema.events.c.id, ids)
    return {str(event["id"]): event for event in _shown(connection, now, here)}


def _shown(connection: Connection, now: datetime, *where: ColumnElement[bool]) -> list[Json]:
    events = schema.events.c
    query = select(*(events[name] for name in SHOWN)).where(*where)
    found = connection.execute(query.order_by(events.starts_at.nulls_first(), events.id)).mappings().all()
    return [dict(row) | {"age_s": age_s(row["availability_at"], now)} for row in found]


def public_events(connection: Connection, now: datetime) -> list[PublicEvent]:
    """Return the events that are online, not over and not vanished, by start, with what is on offer."""
    events, tickets = schema.events.c, schema.tickets.c
    is_public = and_(schema.live(now), events.online.is_(True))
    query = (
        select(*(tickets[name] for name in OFFERED))
        .join(schema.events, tickets.event_id == events.id)
        .where(is_public, tickets.vanished_at.is_(None))
        .order_by(tickets.position, tickets.id)
    )
    offers: dict[str, list[Ticket]] = defaultdict(list)
    for row in connection.execute(query).mappings().all():
        if is_on_offer(ticket := Ticket(**row), now):
            offers[ticket.event_id].append(ticket)
    names = (*PUBLIC, "account", "tags", "changed_at")
    query = select(*(events[name] for name in names)).where(is_public)
    found = connection.execute(query.order_by(events.starts_at.nulls_first(), events.id)).mappings().all()
    return [
        PublicEvent(
            {name: row[name] for name in PUBLIC},
            row["account"],
            row["tags"],
            row["changed_at"],
            offers[row["id"]],
        )
        for row in found
    ]


# --- what is written


def write_plan(connection: Connection, writing: Writing, plan: EventPlan) -> None:
    """Write an event's plan: rows, changes, absences and bookkeeping."""
    _write_rows(connection, writing, plan.changes)
    if plan.read_at and plan.writes and not plan.is_odd:  # what follows tells how old the figures are
        set_read_at(connection, {plan.event_id: plan.read_at}, writing.at)
    _tell(connection, writing, plan.changes)
    for lack in plan.lacks:
        if lack.is_news:
            absences.note(connection, writing.run_id, lack.table, plan.event_id, lack.absences)
    if plan.was_due:
        state.mark_read(connection, plan.event_id)


def write(connection: Connection, writing: Writing, some: Sequence[Change]) -> None:
    """Write rows, their lines in the log of changes, and what follows: the only way to write them."""
    _write_rows(connection, writing, some)
    _tell(connection, writing, some)


def _write_rows(connection: Connection, writing: Writing, some: Sequence[Change]) -> None:
    at = writing.at
    by_table: dict[str, list[Change]] = defaultdict(list)
    for change in some:
        by_table[change.table].append(change)
    for name, of_table in by_table.items():
        table = schema.MIRRORED[name]
        new = [(*change.values, at, at, None) for change in of_table if change.kind == "inserted"]
        known = [(*one.values, at, at, None) for one in of_table if one.kind in ("updated", "returned")]
        names = (*FIELDS[name], *ALSO)
        bulk.insert(connection, table, names, new)
        bulk.upsert(connection, table, names, known, keep=("first_seen_at",))
        _mark_vanished(connection, table, [change for change in of_table if change.kind == "vanished"], at)
        absences.end(connection, name, [change.row_id for change in of_table if _ends_absence(change)])


def _tell(connection: Connection, writing: Writing, some: Sequence[Change]) -> None:
    """Log and count what was written, and call `follow`."""
    if some:
        writing.counts.add(count(some))
        changes.log(connection, writing.run_id, writing.at, some)
        writing.follow(connection, writing, some)


def _ends_absence(change: Change) -> bool:
    """Whether the row may still be recorded as absent: it vanished, or was found under another event."""
    return change.kind == "vanished" or (change.kind == "updated" and "event_id" in change.diff)


def _mark_vanished(connection: Connection, table: Table, some: list[Change], at: datetime) -> None:
    if some:
        first = next(iter(table.primary_key))
        here = schema.row_key(table) == bindparam("row")
        if len(table.primary_key) > 1:  # the key's index finds the event, whose id is its first part
            here = and_(here, first == bindparam("event"))
        statement = table.update().where(here).values(changed_at=at, vanished_at=at)
        connection.execute(statement, [{"row": each.row_id, "event": each.event_id} for each in some])


def set_read_at(connection: Connection, read_at: Mapping[str, datetime], now: datetime) -> None:
    """Note when the availability of events was read."""
    if read_at:
        events = schema.events
        at = bindparam("at", type_=schema.Instant)
        held = events.c.availability_at
        # A run whose end is recorded late must not set back what a later one read; an instant in the future
        # came from a wrong clock.
        older = or_(held.is_(None), held < at, held > now)
        statement = events.update().where(events.c.id == bindparam("event"), older).values(availability_at=at)
        connection.execute(statement, [{"event": event_id, "at": at} for event_id, at in read_at.items()])


def age_s(at: datetime | None, now: datetime) -> float | None:
    """Return how old a figure of that instant is, in seconds to one decimal."""
    return None if at is None else round(max((now - at).total_seconds(), 0.0), 1)
