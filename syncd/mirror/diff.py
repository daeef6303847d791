"""What a read changes in the mirror: records beside stored rows, column by column. Pure: no I/O, no clock.

One form of diff serves every table: a `Change` is both the row to write and the line of the log. A plan is
complete before anything of it is written, and is not changed afterwards.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypeVar

from msgspec import Struct, field, structs

from syncd.mirror import absence
from syncd.mirror.absence import Absence, Size
from syncd.mirror.availability import with_end, with_figures, with_place
from syncd.model import (
    ATTENDEES,
    EVENTS,
    GAUGES,
    PERSONAL,
    SESSIONS,
    TICKETS,
    Attendee,
    Counts,
    Event,
    Gauge,
    Session,
    Ticket,
)

Record = Event | Gauge | Ticket | Session | Attendee
R = TypeVar("R", Event, Gauge, Ticket, Session, Attendee)
FIGURES = ("places_total", "places_left", "unlimited", "is_full", "sale_status")
"""The columns of an event that are derived from its gauges, tickets and sessions."""
KINDS: dict[str, type[Record]] = {
    EVENTS: Event,
    GAUGES: Gauge,
    TICKETS: Ticket,
    SESSIONS: Session,
    ATTENDEES: Attendee,
}
"""The record of each mirrored table, whose fields are the table's columns in their order."""
PARTS = (GAUGES, TICKETS, SESSIONS)
"""The tables of what an event's figures are derived from."""
FIELDS = {table: kind.__struct_fields__ for table, kind in KINDS.items()}
LOGGED = {
    table: tuple(name for name in names if not (table == ATTENDEES and name in PERSONAL))
    for table, names in FIELDS.items()
}
"""The columns that the log of changes shows: the first ones, without those that hold personal data."""
EVENT_ID = {table: names.index("id" if table == EVENTS else "event_id") for table, names in FIELDS.items()}
"""The position of the event's id in a record."""
JSON_AT = {
    table: [
        number
        for number, name in enumerate(names)
        if name in ("tags", "custom", "custom_order", "extra") or (table == SESSIONS and name == "tickets")
    ]
    for table, names in FIELDS.items()
}
"""The positions of JSON fields in a record."""
ChangeKind = Literal["inserted", "updated", "vanished", "returned"]


class Stored(Struct, frozen=True):
    """A row of the mirror: its record's fields in order, and when it was marked vanished."""

    values: tuple[Any, ...]
    vanished_at: datetime | None


class Change(Struct, frozen=True):
    """One row to write. `values`: the whole row, empty if it vanished. `diff`: column → (old, new)."""

    table: str
    row_id: str
    event_id: str
    kind: ChangeKind
    values: tuple[Any, ...]
    diff: Mapping[str, tuple[object, object]]


class Lack(Struct, frozen=True):
    """What a complete read of one event's rows in a table lacked.

    `is_news`: whether there are absences now, or recorded ones that end: either must be written.
    """

    table: str
    size: Size
    absences: Mapping[str, Absence]
    is_news: bool


class EventRows(Struct, frozen=True):
    """All that the mirror holds of one event except attendees: by table, rows and absences by row id.

    It may include rows of other events that move to this one. `sizes`: how many rows a complete read should
    hold, for the tables with absences.
    """

    event_id: str
    rows: dict[str, dict[str, Stored]] = field(default_factory=dict)
    absences: dict[str, dict[str, Absence]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class EventPlan(Struct, frozen=True, kw_only=True):
    """What one event's reads change in the database.

    `read_at` is when the availability was read, None if it was not. `is_odd`: that read lacked so much that
    its figures keep their old age. `was_due`: the event was due, and is now read.
    """

    event_id: str
    changes: tuple[Change, ...] = ()
    unchanged: int = 0
    lacks: tuple[Lack, ...] = ()
    read_at: datetime | None = None
    is_odd: bool = False
    was_due: bool = False

    @property
    def writes(self) -> bool:
        """Whether there is anything to write now; `read_at` alone can wait for the end of the run."""
        return bool(self.changes or self.was_due or any(lack.is_news for lack in self.lacks))


class Fetched(Struct, frozen=True, kw_only=True):
    """What complete reads returned for one event: `rows` of each of PARTS by id, none if it need not be read.

    `unreadable`: by table and row id, the columns whose values could not be read.
    """

    rows: Mapping[str, Mapping[str, Any]]
    read_at: datetime
    unreadable: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


def count(changes: Iterable[Change]) -> Counts:
    """Return the number of rows by kind of change."""
    return Counts(**Counter[str](change.kind for change in changes))


def compare(table: str, stored: Stored | None, record: Record) -> Change | None:
    """Return the change from `stored` to `record`, None if they are equal."""
    new = structs.astuple(record)
    event_id, names = new[EVENT_ID[table]], LOGGED[table]
    if stored is None:
        diff = {name: (None, value) for name, value in zip(names, new, strict=False) if value is not None}
        return Change(table, record.id, event_id, "inserted", new, diff)
    if stored.vanished_at is None and _are_same(table, stored.values, new):
        return None
    pairs = zip(names, stored.values, new, strict=False)
    diff = {name: (old, value) for name, old, value in pairs if not is_same(old, value)}
    if stored.vanished_at is None:
        return Change(table, record.id, event_id, "updated", new, diff)
    return Change(
        table, record.id, event_id, "returned", new, diff | {"vanished_at": (stored.vanished_at, None)}
    )


def keep(record: R, stored: Stored | None, columns: Sequence[str]) -> R:
    """Return the record with the mirror's values in these columns, if it has the row.

    `places_left` and `unlimited` of a gauge are one value at Billetweb.
    """
    if not (columns and stored):
        return record
    if "places_left" in columns:
        columns = (*columns, "unlimited")
    held = dict(zip(record.__struct_fields__, stored.values, strict=True))
    return structs.replace(record, **{column: held[column] for column in columns})


def vanished(table: str, event_id: str, rows: Iterable[str], at: datetime) -> list[Change]:
    """Return the changes that mark rows vanished, in the order of their ids."""
    diff = {"vanished_at": (None, at)}
    return [Change(table, row, event_id, "vanished", (), diff) for row in sorted(rows)]


def plan_event(
    event: Event, known: EventRows, fetched: Fetched, *, was_due: bool, not_places: Sequence[str] = ()
) -> EventPlan:
    """Return the plan for one live event whose scopes were all read.

    `not_places`: ids and names of the tariffs that sell no place. If a value could not be read, the mirror
    keeps the old one.

    Figures are derived from the rows that the mirror then holds: an absent row still counts until it
    vanishes. So one odd answer never changes a figure by absence.
    """
    lacks = tuple(
        lack(
            table,
            present(known, table),
            fetched.rows[table].keys(),
            known.absences.get(table, {}),
            fetched.read_at,
            of=known.sizes.get(table),
        )
        for table in PARTS
    )
    parts = {table: _present_records(known, table) | _readable(known, table, fetched) for table in PARTS}
    parts[TICKETS] = {row: with_place(ticket, not_places) for row, ticket in parts[TICKETS].items()}
    changes, unchanged = _compared(event, known, parts, now=fetched.read_at)
    of_gauges = lacks[0]
    is_odd = absence.is_mostly_absent(len(of_gauges.absences), of_gauges.size.of)
    return EventPlan(
        event_id=event.id,
        changes=changes,
        unchanged=unchanged,
        lacks=lacks,
        read_at=fetched.read_at,
        is_odd=is_odd,
        was_due=was_due and not is_odd,
    )


def plan_vanished(known: EventRows, gone: Mapping[str, AbstractSet[str]], at: datetime) -> EventPlan:
    """Return the plan that marks rows of an event vanished, by table, and updates its figures."""
    event_id = known.event_id
    marked = [
        change
        for table, rows in gone.items()
        for change in vanished(table, event_id, rows & present(known, table), at)
    ]
    stored = known.rows.get(EVENTS, {}).get(event_id)
    if stored is None:
        return EventPlan(event_id=event_id, changes=tuple(marked))
    parts = {table: _present_records(known, table, but=gone.get(table, set())) for table in PARTS}
    changes, _ = _compared(_record(EVENTS, stored), known, parts, now=at)
    followed = [change for change in changes if change.kind == "updated"]
    return EventPlan(event_id=event_id, changes=(*marked, *followed))


def plan_listed(event: Event, stored: Stored | None, now: datetime) -> EventPlan:
    """Return the plan for an event of which only the list was read: figures stay, but the sale may end."""
    change = compare(EVENTS, stored, with_end(keep(event, stored, FIGURES), now))
    return EventPlan(event_id=event.id, changes=(change,) if change else (), unchanged=0 if change else 1)


def lack(
    table: str,
    present: AbstractSet[str],
    read: AbstractSet[str],
    before: Mapping[str, Absence],
    at: datetime,
    *,
    of: int | None = None,
) -> Lack:
    """Return what a complete read lacked; see `absence.note`. `of`: as in Size; all present, if not given."""
    absences = absence.note(present, read, before, at)
    should_hold = len(present) if of is None else max(of, len(absences))  # rows that came later may lack too
    size = Size(should_hold, len(present))
    return Lack(table, size, absences, is_news=bool(absences or before))


def present(known: EventRows, table: str) -> set[str]:
    """Return the ids of the event's own rows in a table that have not vanished."""
    column = EVENT_ID[table]
    rows = known.rows.get(table, {}).items()
    return {row for row, old in rows if not old.vanished_at and old.values[column] == known.event_id}


def _present_records(known: EventRows, table: str, but: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """Return the rows that have not vanished, in the order of their ids."""
    rows = known.rows.get(table, {})
    return {row: _record(table, rows[row]) for row in sorted(present(known, table) - but)}


def _readable(known: EventRows, table: str, fetched: Fetched) -> dict[str, Any]:
    """Return the rows that were read, with the mirror's values for unreadable ones."""
    unreadable, stored = fetched.unreadable.get(table, {}), known.rows.get(table, {})
    read = fetched.rows[table].items()
    return {row: keep(record, stored.get(row), unreadable.get(row, ())) for row, record in read}


def _record(table: str, stored: Stored) -> Any:
    return KINDS[table](**dict(zip(FIELDS[table], stored.values, strict=True)))


def _compared(
    event: Event, known: EventRows, parts: Mapping[str, Mapping[str, Any]], *, now: datetime
) -> tuple[tuple[Change, ...], int]:
    """Return the changes from an event's stored rows to these, with figures; and how many are unchanged."""
    gauges, tickets, sessions = ([*parts[table].values()] for table in PARTS)
    event, tickets, sessions = with_figures(event, gauges, tickets, sessions, now=now)
    records: list[tuple[str, Record]] = [
        (EVENTS, event),
        *((GAUGES, gauge) for gauge in gauges),
        *((TICKETS, ticket) for ticket in tickets),
        *((SESSIONS, session) for session in sessions),
    ]
    compared = [compare(table, known.rows.get(table, {}).get(record.id), record) for table, record in records]
    changes = tuple(change for change in compared if change)
    return changes, len(compared) - len(changes)


def _are_same(table: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    """Return whether a row keeps all its values."""
    if old == new:  # nearly always enough, except for what Python takes for equal inside JSON
        return all(is_same(old[at], new[at]) for at in JSON_AT[table])
    return all(map(is_same, old, new))


def is_same(old: object, new: object) -> bool:
    """Return whether a column keeps its value; inside JSON, unlike in Python, 1 is neither true nor 1.0."""
    if new and isinstance(new, dict | list):
        return _canonical(old) == _canonical(new)
    return old == new


def _canonical(value: object) -> str:
    """Return JSON in one spelling, that of PostgreSQL's numbers: 1e300 is its digits, -0.0 is 0.0."""
    text = json.dumps(value, sort_keys=True)
    if "e+" in text or "-0.0" in text:  # seldom
        text = json.dumps(json.loads(text, parse_float=_number))
    return text


def _number(text: str) -> float | int:
    return int(Decimal(text)) if "e+" in text else float(text) or 0.0
