"""Reads and writes attendees, and what their incremental reads resume from. The other rows: `store.py`.

Rows come in slices, an answer of any size in one transaction: what is held in memory is a slice. Each row
is compared with the stored one, and only what changed is written, in bulk. Personal data never gets into the
log of changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import astuple
from sqlalchemy import Connection, and_, bindparam, null, or_, select

from syncd import bulk, schema
from syncd.database import Database
from syncd.model import PERSONAL, Attendee, AttendeeMode, Counts
from syncd.reconcile import EventPlan, Evidence, is_same, plan_missing
from syncd.store import CHANGE_COLUMNS, suspects_in, write_plan

TABLE = schema.attendees
TABLE_NAME = str(TABLE.name)
"""A plain str: SQLAlchemy's own kind costs the driver a search for an adapter in every row."""
NAMES = Attendee.__struct_fields__
PUBLIC = tuple(name for name in NAMES if name not in PERSONAL)
WRITTEN = (*NAMES, "first_seen_at", "changed_at", "vanished_at")
COMPARED = [TABLE.c[name] for name in (*NAMES, "vanished_at")]
SUSPECTS = schema.suspects.c
JSON_FROM = NAMES.index("custom")
"""The columns from here on hold JSON."""
AT_ONCE = 500
"""So many rows are compared with one query."""
NAME = "attendees"
"""Of the cursor of account-wide reads, and of the note which columns are kept."""
TRACES = "traces of attendees"
"""Of the note that the files still hold what was erased."""

Rows = Mapping[str, Attendee]


class Cursor(Struct, frozen=True, kw_only=True):
    """What the next account-wide read resumes from.

    `since`: what was modified after that is still to be asked for. `before`: so is, for an import, what was
    modified before that, as far as `back_to` (None: all of it); None while there is no import to go on with.
    `imported_at`: when all was imported.
    """

    since: datetime
    before: datetime | None = None
    back_to: datetime | None = None
    imported_at: datetime | None = None


class Reads(Struct, frozen=True):
    """What is remembered of an event's reads; see `schema.reads`."""

    due_at: datetime | None = None
    attendees_at: datetime | None = None
    attendees_full_at: datetime | None = None


class Taken(Struct):
    """What became of the rows of an answer: their counts, the events of those that changed, a doubt."""

    counts: Counts = field(default_factory=Counts)
    events: set[str] = field(default_factory=set)
    doubt: str | None = None


class Erased(Struct, frozen=True):
    """Of how many attendees something was erased, and whether it can still be found in the files."""

    attendees: int = 0
    has_traces: bool = False


class AttendeeStore:
    """The queries on an open database. Every method is one transaction, blocks, and raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def retain(self, mode: AttendeeMode, at: datetime) -> Erased:
        """Erase what `mode` does not allow to keep, from the files too, where an earlier run could not.

        Where more is to be kept than before, all of it is imported.
        """
        state = schema.state
        with self._database.begin() as connection:
            held = dict(connection.execute(select(state.c.name, state.c.value)).all())
        before, erased = held.get(NAME, "none"), 0
        if before != mode:
            with self._database.begin(write=True, takes_long=True) as connection:
                erased = _erase(connection, before, mode, at)
                notes = [(NAME, mode)] + [(TRACES, True)] * bool(erased)
                bulk.upsert(connection, state, ("name", "value"), notes)
        if not erased and TRACES not in held:
            return Erased()
        if not self._database.erased():
            return Erased(erased, has_traces=True)
        with self._database.begin(write=True) as connection:
            connection.execute(state.delete().where(state.c.name == TRACES))
        return Erased(erased)

    def cursor(self) -> Cursor | None:
        """Return what account-wide reads resume from; None before the first."""
        with self._database.begin() as connection:
            return _cursor(connection)

    def reads(self) -> dict[str, Reads]:
        """Return what is remembered of events' reads, by event."""
        with self._database.begin() as connection:
            rows = connection.execute(select(schema.reads)).all()
            return {event_id: Reads(*rest) for event_id, *rest in rows}

    def mark_due(self, event_ids: Iterable[str], at: datetime, cursor: Cursor | None = None) -> None:
        """Remember that something happened to these events, and how far that is known."""
        with self._database.begin(write=True) as connection:
            _mark_due(connection, event_ids, at)
            if cursor:
                _set_cursor(connection, cursor, at)

    def take(
        self, run_id: int, slices: Iterable[Rows], cursor: Cursor, at: datetime, live: AbstractSet[str]
    ) -> Taken:
        """Write the rows of an account-wide answer and the cursor that follows, all or nothing.

        Of the events in which a row changed, those that are `live` become due.
        """
        with self._database.begin(write=True) as connection:
            suspects = suspects_in(connection, SUSPECTS.table_name == TABLE_NAME)
            told: set[str] = set()
            taken = _take(connection, run_id, slices, at, told if suspects else None)
            _clear(connection, told & suspects.keys())
            _mark_due(connection, taken.events & live, at)
            _set_cursor(connection, cursor, at)
            return taken


def take_event(
    connection: Connection,
    run_id: int,
    event_id: str,
    slices: Iterable[Rows],
    at: datetime,
    *,
    began_at: datetime,
    evidence: Evidence | None,
) -> Taken:
    """Write the rows of an answer about one event, in the caller's transaction.

    With `evidence` the answer was to hold all of them, and what it lacks is judged; where that makes it
    doubtful, nothing of it is written.
    """
    names = ["attendees_at"]
    if evidence:
        taken = _take_whole(connection, run_id, event_id, slices, at=at, evidence=evidence)
        names.append("attendees_full_at")
    else:
        taken = _take(connection, run_id, slices, at)
    if not taken.doubt:
        row = (event_id, *(began_at for _ in names))
        bulk.upsert(connection, schema.reads, ("event_id", *names), [row])
    return taken


def _take_whole(
    connection: Connection,
    run_id: int,
    event_id: str,
    slices: Iterable[Rows],
    *,
    at: datetime,
    evidence: Evidence,
) -> Taken:
    present, fetched = _present(connection, event_id), set[str]()
    plan = EventPlan(event_id=event_id)
    with connection.begin_nested() as rows:  # whether they are believed is known when the last has come
        taken = _take(connection, run_id, slices, at, fetched)
        here = SUSPECTS.table_name == TABLE_NAME, SUSPECTS.event_id == event_id
        suspects = suspects_in(connection, *here)
        plan_missing(plan, TABLE_NAME, present, fetched, suspects=suspects, evidence=evidence)
        if doubt := plan.doubts.get(TABLE_NAME):
            rows.rollback()
            taken = Taken(doubt=doubt)
    write_plan(connection, run_id, plan, at)
    taken.counts.add(plan.counts())
    return taken


def _take(
    connection: Connection,
    run_id: int,
    slices: Iterable[Rows],
    at: datetime,
    fetched: set[str] | None = None,
) -> Taken:
    taken = Taken()
    for rows in slices:
        if fetched is not None:
            fetched.update(rows)
        attendees = list(rows.values())
        for start in range(0, len(attendees), AT_ONCE):
            _take_some(connection, run_id, attendees[start : start + AT_ONCE], at, taken)
    return taken


def _take_some(
    connection: Connection, run_id: int, attendees: list[Attendee], at: datetime, taken: Taken
) -> None:
    """Compare attendees with the stored rows, and write those that differ."""
    ids = [attendee.id for attendee in attendees]
    stored = {row[0]: row for row in connection.execute(select(*COMPARED).where(TABLE.c.id.in_(ids))).all()}
    new_rows: list[tuple[Any, ...]] = []
    rows: list[tuple[Any, ...]] = []
    changes = []
    for attendee in attendees:
        new = astuple(attendee)
        old = stored.get(attendee.id)
        if old is None:
            kind = "inserted"
            diff: dict[str, tuple[Any, Any]] = {
                name: (None, value) for name, value in zip(PUBLIC, new, strict=False) if value is not None
            }
        elif old[-1] is None and _are_same(old, new):
            taken.counts.unchanged += 1
            continue
        else:
            diff = {
                name: (was, value) for name, was, value in zip(PUBLIC, old, new, strict=False) if was != value
            }
            kind = "updated"
            if old[-1] is not None:
                kind, diff["vanished_at"] = "returned", (old[-1], None)
        setattr(taken.counts, kind, getattr(taken.counts, kind) + 1)
        taken.events.add(attendee.event_id)
        (rows if old else new_rows).append((*new, at, at, None))
        changes.append((run_id, at, TABLE_NAME, attendee.id, attendee.event_id, kind, diff))
    if changes:
        bulk.insert(connection, TABLE, WRITTEN, new_rows)
        bulk.upsert(connection, TABLE, WRITTEN, rows, keep=("first_seen_at",))
        bulk.insert(connection, schema.changes, CHANGE_COLUMNS, changes)


def _are_same(old: Sequence[Any], new: Sequence[Any]) -> bool:
    if old[:JSON_FROM] != new[:JSON_FROM]:
        return False
    return all(is_same(was, value) for was, value in zip(old[JSON_FROM:-1], new[JSON_FROM:], strict=True))


def _present(connection: Connection, event_id: str) -> set[str]:
    here = and_(TABLE.c.event_id == event_id, TABLE.c.vanished_at.is_(None))
    return set(connection.scalars(select(TABLE.c.id).where(here)).all())


def _mark_due(connection: Connection, event_ids: Iterable[str], at: datetime) -> None:
    rows = [(event_id, at) for event_id in sorted(event_ids)]
    if rows:
        bulk.upsert(connection, schema.reads, ("event_id", "due_at"), rows)


def _clear(connection: Connection, row_ids: Iterable[str]) -> None:
    """Suspect rows no longer that were just told."""
    here = and_(SUSPECTS.table_name == TABLE_NAME, SUSPECTS.row_id == bindparam("row"))
    if rows := [{"row": row_id} for row_id in sorted(row_ids)]:
        connection.execute(schema.suspects.delete().where(here), rows)


def _cursor(connection: Connection) -> Cursor | None:
    cursors = schema.cursors.c
    value = connection.scalar(select(cursors.value).where(cursors.name == NAME))
    return None if value is None else msgspec.convert(value, Cursor)


def _set_cursor(connection: Connection, cursor: Cursor, at: datetime) -> None:
    row = (NAME, msgspec.to_builtins(cursor), at)
    bulk.upsert(connection, schema.cursors, ("name", "value", "updated_at"), [row])


def _erase(connection: Connection, before: AttendeeMode, mode: AttendeeMode, at: datetime) -> int:
    """Erase what is no longer kept; where more is, have it imported. Return of how many attendees."""
    if mode == "none":
        return _erase_all(connection)
    if before == "full":
        return _erase_personal(connection, at)
    cursor = _cursor(connection)
    if cursor:  # who sold since then is still to be told
        _set_cursor(connection, Cursor(since=cursor.since, before=cursor.since), at)
    _forget_reads(connection)
    return 0


def _forget_reads(connection: Connection) -> None:
    """Have each event's attendees read whole."""
    connection.execute(schema.reads.update().values(attendees_at=None, attendees_full_at=None))


def _erase_all(connection: Connection) -> int:
    """Remove every attendee and what the log of changes holds of them; a log of rows that never were."""
    for table in (schema.changes, schema.suspects):
        connection.execute(table.delete().where(table.c.table_name == TABLE_NAME))
    _forget_reads(connection)
    return connection.execute(TABLE.delete()).rowcount


def _erase_personal(connection: Connection, at: datetime) -> int:
    """Empty the columns with personal data."""
    columns = [TABLE.c[name] for name in sorted(PERSONAL - {"extra"})]
    personal = or_(*(column.is_not(None) for column in columns), TABLE.c.extra != {})
    empty = {column.name: null() for column in columns}
    return connection.execute(
        TABLE.update().where(personal).values(changed_at=at, extra={}, **empty)
    ).rowcount
