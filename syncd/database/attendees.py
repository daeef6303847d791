"""What is special about attendees: answers of any size, the cursor of their reads, and erasing them.

Rows come in slices, an answer of any size in one transaction: memory holds only a slice. They are written
like all others. Personal data never gets into the log of changes.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from decimal import Decimal

import msgspec
from msgspec import Struct, field, structs
from sqlalchemy import Connection, func, null, or_, select

from syncd.billetweb.decode import Decoded
from syncd.database import absences, bulk, deliveries, rows, schema, state
from syncd.database.postgresql import take_your_time
from syncd.database.rows import Writing, follow_nothing
from syncd.mirror.absence import Size, is_mostly_absent
from syncd.mirror.diff import FIELDS, Change, compare, keep, lack
from syncd.model import ATTENDEES, PERSONAL, Attendee, AttendeeMode, Unreadable

NAME = "attendees"
"""The name of the cursor of account-wide reads."""

OF_ORDERS = frozenset({"order_paid", "disabled"})
"""The columns that show that an order was paid, or refunded."""
HAPPENED = tuple(FIELDS[ATTENDEES].index(name) for name in ("ordered_at", "paid_at"))
"""The positions, among an attendee's values, of when an order was made and paid."""
UNSAID = ("extra",)
"""What is not taken from the account's answer for a known attendee. It has fields that the event's own answer
lacks, and may spell others differently: so unknown fields are taken only from the event's own answer."""


class Cursor(Struct, frozen=True, kw_only=True):
    """What the next account-wide read resumes from.

    `since`: the next read asks for what was modified after that. `before`: an import still asks for what was
    modified before that, back to `back_to` (None: all of it); None if no import is in progress.
    `imported_at`: when all was imported.
    """

    since: datetime
    before: datetime | None = None
    back_to: datetime | None = None
    imported_at: datetime | None = None


class Order(Struct, frozen=True):
    """An order over an event, from its attendees that have not vanished, as in the view `syncd_orders`.

    `places`: those that count. `paid`: of how many attendees it is known to be paid.
    """

    order_id: str
    event_id: str
    order_ext_id: str | None
    places: int
    refunded: int
    order_price: Decimal | None
    paid: int


class Ingested(Struct):
    """What an answer held: the ids of its rows, and the events in which a row changed.

    `size`: how many it should have held, None if it was not to hold all. `unreadable`: the values that could
    not be read.
    """

    ids: set[str] = field(default_factory=set)
    events: set[str] = field(default_factory=set)
    size: Size | None = None
    unreadable: Unreadable = field(default_factory=Unreadable)


def orders(
    connection: Connection, ids: Iterable[str], event_ids: Iterable[str]
) -> dict[tuple[str, str], Order]:
    """Return the orders of these ids over these events, by order and event.

    The index is by event: the cost is that of these events' attendees, not of all.
    """
    people, tickets = schema.attendees.c, schema.tickets.c
    is_place = tickets.is_place.is_not(False)  # one of an unknown tariff is a place
    query = (
        select(
            people.order_id,
            people.event_id,
            func.max(people.order_ext_id),
            func.count().filter(people.disabled.is_not(True), is_place),
            func.count().filter(people.disabled.is_(True), is_place),
            func.max(people.order_price),
            func.count().filter(people.order_paid.is_(True)),
        )
        .select_from(schema.attendees.outerjoin(schema.tickets, tickets.id == people.ticket_id))
        .where(people.vanished_at.is_(None))
        .group_by(people.order_id, people.event_id)
    )
    here = bulk.is_among(connection, people.event_id, event_ids)
    found = connection.execute(query.where(here, bulk.is_among(connection, people.order_id, ids))).all()
    return {(row[0], row[1]): Order(*row) for row in found}


def cursor(connection: Connection) -> Cursor | None:
    """Return what account-wide reads resume from; None before the first."""
    cursors = schema.cursors.c
    value = connection.scalar(select(cursors.value).where(cursors.name == NAME))
    return None if value is None else msgspec.convert(value, Cursor)


def set_cursor(connection: Connection, moved: Cursor, at: datetime) -> None:
    """Make the next account-wide read resume from there."""
    row = (NAME, msgspec.to_builtins(moved), at)
    bulk.upsert(connection, schema.cursors, ("name", "value", "updated_at"), [row])


def note_sales(
    connection: Connection, event_ids: Iterable[str], at: datetime, moved: Cursor, seen: Iterable[int]
) -> None:
    """Mark these events due, and remember how far sales are known and which rows showed them."""
    state.mark_due(connection, event_ids, at)
    set_cursor(connection, moved, at)
    state.put(connection, state.SEEN, sorted(seen) or None)


def ingest(
    connection: Connection,
    writing: Writing,
    slices: Iterable[Decoded[Attendee]],
    *,
    moved: Cursor,
    live: AbstractSet[str],
    unknown_until: datetime | None,
) -> Ingested:
    """Write the rows of an account-wide answer and the cursor that follows, all or nothing.

    The `live` events in which a row changed become due. A row that is new to the mirror is news of an order
    only if that was made or paid after `unknown_until`, when the mirroring of attendees began: an older one
    may merely not have been imported yet. None once all are imported.
    """
    ingested = _ingest(connection, writing, slices, unsaid=UNSAID, unknown_until=unknown_until)
    absent = absences.of(connection, ATTENDEES).keys()
    absences.end(connection, ATTENDEES, sorted(ingested.ids & absent))
    state.mark_due(connection, ingested.events & live, writing.at)
    set_cursor(connection, moved, writing.at)
    return ingested


def ingest_event(
    connection: Connection,
    writing: Writing,
    event_id: str,
    slices: Iterable[Decoded[Attendee]],
    *,
    began_at: datetime,
    whole: bool,
    unknown_until: datetime | None = None,
) -> Ingested:
    """Write the rows of an answer about one event, in the caller's transaction.

    What an answer lacks is noted if it should hold the `whole` of them. `unknown_until` as in `ingest`.
    """
    present = rows.present_attendees(connection, event_id) if whole else set[str]()
    absent = absences.of(connection, ATTENDEES, event_id)
    of = absences.size_in(connection, ATTENDEES, event_id) if whole and absent else None
    ingested = _ingest(connection, writing, slices, unknown_until=unknown_until)
    is_odd, names = False, ["attendees_at"]
    if whole:
        lacking = lack(ATTENDEES, present, ingested.ids, absent, writing.at, of=of)
        ingested.size = lacking.size
        if lacking.is_news:
            absences.note(connection, writing.run_id, ATTENDEES, event_id, lacking.absences)
        is_odd = is_mostly_absent(len(lacking.absences), lacking.size.of)
        names.append("attendees_full_at")
    else:
        absences.end(connection, ATTENDEES, sorted(ingested.ids & absent.keys()))
    if not is_odd:  # else sales since the previous read must still be asked for
        row = (event_id, *(began_at for _ in names))
        bulk.upsert(connection, schema.reads, ("event_id", *names), [row])
    return ingested


def _ingest(
    connection: Connection,
    writing: Writing,
    slices: Iterable[Decoded[Attendee]],
    *,
    unsaid: Sequence[str] = (),
    unknown_until: datetime | None,
) -> Ingested:
    """Compare attendees with the stored rows, and write those that differ; their `unsaid` columns stay.

    What follows from orders waits for the end, because an order is reported as a whole.
    """
    ingested, of_orders = Ingested(), list[Change]()
    silent = structs.replace(writing, follow=follow_nothing)
    for some in slices:
        stored = rows.stored(connection, ATTENDEES, some.records)
        kept = (
            keep(attendee, stored.get(key), (*some.unreadable.get(key, ()), *unsaid))
            for key, attendee in some.records.items()
        )
        compared = (compare(ATTENDEES, stored.get(attendee.id), attendee) for attendee in kept)
        changes = [change for change in compared if change]
        rows.write(connection, silent, changes)
        writing.counts.unchanged += len(some.records) - len(changes)
        ingested.unreadable.note(ATTENDEES, some.unreadable)
        ingested.events |= {change.event_id for change in changes}
        ingested.ids |= some.records.keys()
        of_orders += [
            change for change in changes if change.diff.keys() & OF_ORDERS and _is_news(change, unknown_until)
        ]
    if of_orders:
        writing.follow(connection, writing, of_orders)
    return ingested


def _is_news(change: Change, unknown_until: datetime | None) -> bool:
    """Return whether a change happened after mirroring began, instead of being unknown before."""
    if unknown_until is None or change.kind != "inserted":
        return True
    return any(at and at >= unknown_until for at in (change.values[index] for index in HAPPENED))


# --- erasing


def is_other(connection: Connection, user: str, mode: AttendeeMode) -> bool:
    """Return whether account or `sync.attendees` changed, or erased data may still be in the files."""
    kept = state.get(connection, state.KEPT, str) or "none"
    is_of = state.get(connection, state.ACCOUNT, str)
    return (is_of, kept) != (user, mode) or bool(state.get(connection, state.TRACES, bool))


def retain(connection: Connection, user: str, mode: AttendeeMode, at: datetime) -> int:
    """Erase what `mode` does not allow to keep; return the number of attendees concerned.

    If more is to be kept than before, or the account changed, all attendees are imported again.
    """
    is_of = state.get(connection, state.ACCOUNT, str)
    if is_of != user:
        state.put(connection, state.ACCOUNT, user)
    if is_of not in (None, user):
        _begin_anew(connection, at)
    before = state.get(connection, state.KEPT, str) or "none"
    if before == mode:
        return 0
    take_your_time(connection)
    erased = _erase(connection, before, mode, at)
    if before == "none":
        state.put(connection, state.SINCE, at.replace(microsecond=0))
    state.put(connection, state.KEPT, mode)
    if erased:
        state.put(connection, state.TRACES, value=True)
    return erased


def _begin_anew(connection: Connection, at: datetime) -> None:
    """Forget how far another account was read: of this one nothing was, and its old orders are not news."""
    connection.execute(schema.cursors.delete().where(schema.cursors.c.name == NAME))
    state.put(connection, state.SEEN, None)
    state.put(connection, state.SINCE, at.replace(microsecond=0))
    _forget_reads(connection)


def _erase(connection: Connection, before: str, mode: AttendeeMode, at: datetime) -> int:
    """Erase what is no longer kept, or arrange an import if more is. Return the number of attendees."""
    if mode == "none":
        return _erase_all(connection)
    if before == "full":
        return _erase_personal(connection, at)
    resumes = cursor(connection)
    if resumes:  # sales since then must still be reported
        set_cursor(connection, Cursor(since=resumes.since, before=resumes.since), at)
    _forget_reads(connection)
    return 0


def _forget_reads(connection: Connection) -> None:
    """Make the next read of each event's attendees whole."""
    connection.execute(schema.reads.update().values(attendees_at=None, attendees_full_at=None))


def _erase_all(connection: Connection) -> int:
    """Remove every attendee, and their lines in the log of changes, as if they had never existed."""
    for table in (schema.changes, schema.absences):
        connection.execute(table.delete().where(table.c.table_name == ATTENDEES))
    deliveries.erase_orders(connection)
    _forget_reads(connection)
    return connection.execute(schema.attendees.delete()).rowcount


def _erase_personal(connection: Connection, at: datetime) -> int:
    """Empty the columns with personal data."""
    table = schema.attendees
    columns = [table.c[name] for name in sorted(PERSONAL - {"extra"})]
    personal = or_(*(column.is_not(None) for column in columns), table.c.extra != {})
    empty = {column.name: null() for column in columns}
    return connection.execute(
        table.update().where(personal).values(changed_at=at, extra={}, **empty)
    ).rowcount
