"""Plans, the database and the end of a run together, by properties: mirror, feed and counts agree."""

import itertools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs
from sqlalchemy import Connection, select
from support.reading import FULL_EVERY, NOW, Mirror, Reading, event, gauge, ticket, values

from syncd.database import rows, schema
from syncd.mirror.availability import with_figures
from syncd.mirror.diff import FIGURES, KINDS, EventRows, Fetched
from syncd.model import ATTENDEES, EVENTS, GAUGES, SESSIONS, TICKETS, Counts, Event, Gauge, Session, Ticket

TYPES = {table: kind for table, kind in KINDS.items() if table != ATTENDEES}
INSIDE = (GAUGES, TICKETS, SESSIONS)
numbers = itertools.count(1)
FAR = NOW.replace(year=2100)
"""When every event is: what is absent inside one that is over is forgotten."""

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
counts = st.none() | st.integers(0, 50)
instants = st.none() | st.datetimes(timezones=st.just(UTC))
money = st.none() | st.decimals(0, 99_999_999, places=4) | st.decimals(-100, 100, places=2)
finite = st.floats(-1e15, 1e15)
"""PostgreSQL writes larger ones out in digits, which are then read as a whole number."""
scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | finite | texts
objects = st.dictionaries(st.sampled_from("ab"), scalars | st.lists(scalars, max_size=2), max_size=2)
events = st.builds(
    Event,
    id=st.just(""),
    account=st.just("1"),
    name=texts,
    starts_at=st.just(FAR),
    multiple=st.booleans(),
    online=st.none() | st.booleans(),
    tax_rate=money,
    tags=st.lists(texts, max_size=1),
    extra=objects,
)
gauges = st.builds(
    lambda kind, gauge_id, left, **fields: Gauge(
        event_id="",
        session_id=gauge_id if kind == "session" else "",
        type=kind,
        gauge_id=gauge_id,
        places_total=None if left is None else left + 3,
        places_left=left,
        **fields,
    ),
    st.sampled_from(["event", "ticket", "category", "session", "seat/row"]),
    st.sampled_from(["1", "2", "A/B", "Fosse 🎸 / assis", " "]),
    counts,
    name=st.none() | st.sampled_from(["A/B", "1"]),
    unlimited=st.booleans(),
    extra=objects,
)
tickets = st.builds(
    Ticket,
    id=st.sampled_from("12345"),
    event_id=st.just(""),
    position=st.integers(1, 5),
    category=st.none() | st.sampled_from(["A/B", "1"]),
    price=money,
    places_total=counts,
    sale_starts_at=instants,
)
sessions = st.builds(
    Session,
    id=st.sampled_from("12345"),
    event_id=st.just(""),
    starts_at=instants,
    places_total=counts,
    places_sold=counts,
    tickets=objects,
)


def some(rows: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(rows, max_size=5, unique_by=lambda row: row.id)


@pytest.fixture(scope="module")
def mirror(shared_mirror: Mirror) -> Mirror:
    """Give one database for all examples: each takes an event of its own."""
    return shared_mirror


class Read(msgspec.Struct):
    """What one run reads of an event, how long after the one before, and whether it accepts absences."""

    event: Event
    fetched: Fetched
    after: timedelta
    accept: bool = False

    def of(self, table: str) -> Mapping[str, Any]:
        """Return what it reads of a table."""
        return self.fetched.rows[table]


def make_read(
    event: Event, parts: tuple[list[Any], list[Any], list[Any]], after: timedelta, accept: bool
) -> Read:
    rows = {table: {row.id: row for row in part} for table, part in zip(INSIDE, parts, strict=True)}
    fetched = Fetched(rows=rows, read_at=NOW)
    return Read(event, fetched, after, accept)


pauses = st.sampled_from([timedelta(0), FULL_EVERY / 2, FULL_EVERY])


def reads(most: int) -> st.SearchStrategy[list[Read]]:
    """Draw what runs read of one event: rows come, go and change from read to read."""
    parts = st.tuples(some(gauges), some(tickets), some(sessions))
    read = st.builds(make_read, events, parts, pauses, st.sampled_from([False, False, True]))
    return st.lists(read, min_size=1, max_size=most).map(as_a_new_event)


def as_a_new_event(found: list[Read]) -> list[Read]:
    """Give the reads an event of their own, so that no example meets another's rows."""
    number = str(next(numbers))

    def own(read: Mapping[str, Any]) -> dict[str, Any]:
        moved = [structs.replace(row, event_id=number) for row in read.values()]
        moved = [row if isinstance(row, Gauge) else structs.replace(row, id=number + row.id) for row in moved]
        return {row.id: row for row in moved}

    return [
        Read(
            structs.replace(read.event, id=number),
            Fetched(rows={table: own(some) for table, some in read.fetched.rows.items()}, read_at=NOW),
            read.after,
            read.accept,
        )
        for read in found
    ]


def take(mirror: Mirror, read: Read) -> Reading:
    """Have a run read this."""
    mirror.clock.at += read.after
    # The clock goes on from example to example, the instants of reads and figures with it.
    fetched = structs.replace(read.fetched, read_at=mirror.clock.at)
    with mirror.run(accept=read.accept) as run:
        run.fetched(read.event, fetched)
    return run


def held(mirror: Mirror, read: Read) -> EventRows:
    known: EventRows = mirror.query(rows.of_event, read.event.id)
    return known


def records(known: EventRows, table: str) -> dict[str, Any]:
    """Return the rows of a table that are not marked vanished, as records."""
    return {
        row: TYPES[table](**values(stored, TYPES[table]))
        for row, stored in known.rows[table].items()
        if not stored.vanished_at
    }


def upstream(found: Mapping[str, Any], table: str) -> dict[str, dict[str, Any]]:
    """Return what Billetweb itself said of rows: all but the figures, which are derived save a gauge's."""
    derived = () if table == GAUGES else FIGURES
    return {
        row: {name: value for name, value in structs.asdict(record).items() if name not in derived}
        for row, record in found.items()
    }


def changes(mirror: Mirror, event_id: str, run_id: int | None = None) -> list[Any]:
    table = schema.changes
    query = select(table).where(table.c.event_id == event_id).order_by(table.c.seq)
    if run_id is not None:
        query = query.where(table.c.run_id == run_id)

    def find(connection: Connection) -> list[Any]:
        return list(connection.execute(query).all())

    found: list[Any] = mirror.query(find)
    return found


def as_stored(column: str, value: Any) -> Any:
    """Return a value of the feed as it compares with the database's, where 12.50 is 12.5."""
    return Decimal(value) if value and column in ("tax_rate", "price") else value


def replay(found: list[Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Build the mirror from the feed of changes alone, checking each against what came before it."""
    built: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in TYPES}
    for change in found:
        of_table = built[change.table_name]
        assert (change.row_id in of_table) is (change.kind != "inserted")
        row = of_table.setdefault(change.row_id, {})
        for column, (old, new) in change.diff.items():
            assert as_stored(column, row.get(column)) == as_stored(column, old)
            row[column] = new
    return built


properties = settings(max_examples=20, deadline=None)


@pytest.mark.slow("many plans, each written")
@given(reads(4))
@properties
def test_mirror_feed_and_counts_drift_apart(mirror: Mirror, found: list[Read]) -> None:
    """Over any sequence of reads the counts are the changes written, and the feed replays to the mirror."""
    event_id = found[0].event.id
    for read in found:
        run = take(mirror, read)
        written = Counts(unchanged=run.plan.unchanged)
        for change in changes(mirror, event_id, run.run.id):
            setattr(written, change.kind, getattr(written, change.kind) + 1)
        assert run.run.counts == written
    known = held(mirror, found[0])
    replayed = replay(changes(mirror, event_id))
    for table, record_type in TYPES.items():
        assert replayed[table].keys() == known.rows[table].keys()
        for row, stored in known.rows[table].items():
            vanished_at = replayed[table][row].pop("vanished_at", None)
            assert msgspec.convert(vanished_at, datetime | None) == stored.vanished_at
            record = record_type(**values(stored, record_type))
            assert msgspec.convert(replayed[table][row], record_type) == record


@given(reads(4))
@properties
def test_what_is_written_is_not_what_was_read(mirror: Mirror, found: list[Read]) -> None:
    """All rows that were read stand in the mirror, whatever the read lacked; beyond them the absent alone."""
    for read in found:
        take(mirror, read)
        known = held(mirror, read)
        assert upstream(records(known, EVENTS), EVENTS) == upstream({read.event.id: read.event}, EVENTS)
        for table in INSIDE:
            standing, said = records(known, table), read.of(table)
            assert standing.keys() - said.keys() == known.absences[table].keys()
            assert upstream({row: standing[row] for row in said}, table) == upstream(said, table)


@given(reads(4))
@properties
def test_figures_do_not_follow_from_the_rows_that_stand(mirror: Mirror, found: list[Read]) -> None:
    """The figures are always those of the gauges in the mirror, whatever was absent or vanished."""
    for read in found:
        take(mirror, read)
        known = held(mirror, read)
        standing = {table: [*records(known, table).values()] for table in TYPES}
        (event,) = standing[EVENTS]
        again = with_figures(
            event, standing[GAUGES], standing[TICKETS], standing[SESSIONS], now=mirror.clock.at
        )
        assert again == (event, standing[TICKETS], standing[SESSIONS])


GAUGES_ABOVE = [gauge("A/B", places_total=3, places_left=0), gauge("1", "event")]
TARIFFS = [ticket("1", ""), ticket("4", "", category="A/B")]


@given(reads(3))
@example(
    as_a_new_event(
        [
            make_read(event("", starts_at=FAR), ([gauge("1")], [], []), timedelta(0), False),
            make_read(event("", starts_at=FAR), ([], [], []), timedelta(0), False),
            make_read(event("", starts_at=FAR), ([], [], []), timedelta(0), True),  # the gauge vanishes
        ]
    )
)
@example(
    as_a_new_event(
        [
            make_read(event("", starts_at=FAR), (GAUGES_ABOVE, [], []), timedelta(0), False),
            make_read(event("", starts_at=FAR), ([], [], []), timedelta(0), False),
            make_read(event("", starts_at=FAR), ([], TARIFFS, []), timedelta(0), True),
        ]
    )
)
@properties
def test_the_same_answer_is_written_again(mirror: Mirror, found: list[Read]) -> None:
    """A read repeated writes nothing: at once where it lacks no row, else once those have vanished.

    An event whose gauges vanished is read once more: its tariffs' own quotas count with that read.
    """
    for read in found:
        run = take(mirror, read)
    again = Read(found[-1].event, found[-1].fetched, timedelta(0))
    if any(held(mirror, again).absences.values()):
        for _ in range(2):
            run = take(mirror, structs.replace(again, accept=True))
    written = changes(mirror, again.event.id, run.run.id)
    lost_gauges = any((change.table_name, change.kind) == (GAUGES, "vanished") for change in written)
    run = take(mirror, again)
    assert (run.plan.was_due, run.doubted) == (lost_gauges, [])
    if lost_gauges:
        assert {column for change in run.plan.changes for column in change.diff} <= {*FIGURES}
        run = take(mirror, again)
    assert not run.plan.writes
    assert (run.kinds, run.doubted) == ({}, [])


@pytest.mark.slow("many plans, each written")
@given(reads(1))
@properties
def test_empty_answers_change_something(mirror: Mirror, found: list[Read]) -> None:
    """They change no row, however often they come; what they lack is absent in so many reads."""
    (read,) = found
    take(mirror, read)
    before = held(mirror, read)
    nothing = Fetched(rows={table: {} for table in INSIDE}, read_at=NOW)
    for number in (1, 2, 3):
        run = take(mirror, Read(read.event, nothing, timedelta(0)))
        after = held(mirror, read)
        assert (run.plan.changes, run.kinds) == ((), {})
        assert after.rows == before.rows
        for table in INSIDE:
            absent = {row: absence.reads for row, absence in after.absences[table].items()}
            assert absent == dict.fromkeys(records(before, table), number)


class Lacked(msgspec.Struct):
    """In how many reads in a row something was lacking, and since when; by a test's own count."""

    reads: int
    since: datetime


@pytest.mark.slow("many plans, each written")
@given(reads(6))
@properties
def test_a_row_vanishes_that_should_stay_or_stays_that_should_vanish(
    mirror: Mirror, found: list[Read]
) -> None:
    """By the rule in its own words, counted here from the reads alone: here the event is the account."""
    present: dict[str, set[str]] = {table: set() for table in INSIDE}
    lacked: dict[str, dict[str, Lacked]] = {table: {} for table in INSIDE}
    for read in found:
        run = take(mirror, read)
        now = mirror.clock.at
        for table in INSIDE:
            said, counted = read.of(table).keys(), lacked[table]
            missing, of = present[table] - said, len(present[table])
            lacked[table] = {
                row: Lacked(counted[row].reads + 1, counted[row].since) if row in counted else Lacked(1, now)
                for row in missing
            }
            twice = {row for row, one in lacked[table].items() if one.reads >= 2}
            if read.accept:
                gone = twice
            elif of > 3 and len(missing) > of / 2:
                gone = set()
            elif missing and len(missing) == of:
                gone = {row for row in twice if lacked[table][row].since <= now - FULL_EVERY}
            else:
                gone = twice
            vanished = {
                change.row_id
                for change in changes(mirror, read.event.id, run.run.id)
                if (change.table_name, change.kind) == (table, "vanished")
            }
            assert vanished == gone
            present[table] = present[table] - gone | said
            lacked[table] = {row: one for row, one in lacked[table].items() if row not in gone}
            held_now = held(mirror, read)
            assert records(held_now, table).keys() == present[table]
            assert {
                row: Lacked(one.reads, one.since) for row, one in held_now.absences[table].items()
            } == lacked[table]
