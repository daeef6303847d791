"""Plans and the store together, by properties: whatever is read, mirror, feed and counts agree."""

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from real_databases import url_at
from sqlalchemy import select

from syncd import schema
from syncd.availability import with_figures
from syncd.database import Database
from syncd.model import Counts, Event, Gauge, Session, Ticket
from syncd.reconcile import (
    FIGURES,
    EventPlan,
    EventRows,
    Evidence,
    Fetched,
    Record,
    Suspicion,
    plan_event,
    row_id,
)
from syncd.store import Store

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
EVENTS, GAUGES = "billetweb_events", "billetweb_gauges"
TICKETS, SESSIONS = "billetweb_tickets", "billetweb_sessions"
TYPES: dict[str, type[Record]] = {EVENTS: Event, GAUGES: Gauge, TICKETS: Ticket, SESSIONS: Session}
numbers = itertools.count(1)

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
evidences = st.builds(Evidence, st.booleans(), st.booleans(), st.booleans())


def some(rows: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(rows, max_size=5, unique_by=row_id)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, database_kind: str) -> Iterator[Store]:
    """Give one database for all examples: each takes an event of its own."""
    store = Store(Database(url_at(tmp_path_factory.mktemp("mirror") / "mirror.db")))
    yield store
    store.close()


class Read(msgspec.Struct):
    """What one run reads of an event, and the run's weight."""

    event: Event
    fetched: Fetched
    evidence: Evidence


def make_read(event: Event, parts: tuple[list[Any], list[Any], list[Any]], evidence: Evidence) -> Read:
    of_gauges, of_tickets, of_sessions = ({row_id(row): row for row in part} for part in parts)
    fetched = Fetched(gauges=of_gauges, tickets=of_tickets, sessions=of_sessions, read_at=NOW)
    return Read(event, fetched, evidence)


def reads(most: int) -> st.SearchStrategy[list[Read]]:
    """Draw what runs read of one event: rows come, go and change from read to read."""
    parts = st.tuples(some(gauges), some(tickets), some(sessions))
    found = st.lists(st.builds(make_read, events, parts, evidences), min_size=1, max_size=most)
    return found.map(as_a_new_event)


def as_a_new_event(found: list[Read]) -> list[Read]:
    """Give the reads an event of their own, so that no example meets another's rows."""
    number = str(next(numbers))

    def own(rows: Mapping[str, Any] | None) -> dict[str, Any]:
        moved = [structs.replace(row, event_id=number) for row in (rows or {}).values()]
        moved = [row if isinstance(row, Gauge) else structs.replace(row, id=number + row.id) for row in moved]
        return {row_id(row): row for row in moved}

    return [
        Read(
            structs.replace(read.event, id=number),
            Fetched(
                gauges=own(read.fetched.gauges),
                tickets=own(read.fetched.tickets),
                sessions=own(read.fetched.sessions),
                read_at=NOW,
            ),
            read.evidence,
        )
        for read in found
    ]


def take(store: Store, run_id: int, read: Read) -> EventPlan:
    """Plan a read and write the plan."""
    plan = plan_event(read.event, store.event_rows(read.event.id), read.fetched, read.evidence)
    if plan.writes:
        store.apply(run_id, plan, NOW)
    return plan


def records(known: EventRows, table: str) -> dict[str, Any]:
    """Return the rows of a table that are not marked vanished, as records."""
    return {
        row: TYPES[table](**stored.values)
        for row, stored in known.rows[table].items()
        if not stored.vanished_at
    }


def upstream(rows: Mapping[str, Any], table: str) -> dict[str, dict[str, Any]]:
    """Return what Billetweb itself said of rows: all but the figures, which are derived save a gauge's."""
    derived = () if table == GAUGES else FIGURES
    return {
        row: {name: value for name, value in structs.asdict(record).items() if name not in derived}
        for row, record in rows.items()
    }


def changes(store: Store, event_id: str, run_id: int | None = None) -> list[Any]:
    table = schema.changes
    query = select(table).where(table.c.event_id == event_id).order_by(table.c.seq)
    if run_id is not None:
        query = query.where(table.c.run_id == run_id)
    with store._transaction() as connection:
        return list(connection.execute(query).all())


def as_stored(column: str, value: Any) -> Any:
    """Return a value of the feed as it compares with the database's, where 12.50 is 12.5."""
    return Decimal(value) if value and column in ("tax_rate", "price") else value


def replay(found: list[Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Build the mirror from the feed of changes alone, checking each against what came before it."""
    mirror: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in TYPES}
    for change in found:
        rows = mirror[change.table_name]
        assert (change.row_id in rows) is (change.kind != "inserted")
        row = rows.setdefault(change.row_id, {})
        for column, (old, new) in change.diff.items():
            assert as_stored(column, row.get(column)) == as_stored(column, old)
            row[column] = new
    return mirror


SETTLING = (Evidence(full=True, by_hand=True),) * 3
"""The first may believe part of a doubt, and leave so few rows that the others suspect the rest lightly."""
properties = settings(max_examples=30, deadline=None)


@given(reads(4))
@properties
def test_mirror_feed_and_counts_never_drift_apart(store: Store, found: list[Read]) -> None:
    """Over any sequence of reads the counts are the changes written, and the feed replays to the mirror."""
    event_id = found[0].event.id
    for run_id, read in enumerate(found):
        plan = take(store, run_id, read)
        written = Counts(unchanged=plan.unchanged)
        for change in changes(store, event_id, run_id):
            setattr(written, change.kind, getattr(written, change.kind) + 1)
        assert plan.counts() == written
    known = store.event_rows(event_id)
    replayed = replay(changes(store, event_id))
    for table, record_type in TYPES.items():
        assert replayed[table].keys() == known.rows[table].keys()
        for row, stored in known.rows[table].items():
            vanished_at = replayed[table][row].pop("vanished_at", None)
            assert msgspec.convert(vanished_at, datetime | None) == stored.vanished_at
            assert msgspec.convert(replayed[table][row], record_type) == record_type(**stored.values)


@given(reads(4))
@properties
def test_what_is_written_is_what_was_read(store: Store, found: list[Read]) -> None:
    """Rows that were read and not doubted stand in the mirror; beyond them stand the suspected alone."""
    for run_id, read in enumerate(found):
        before = store.event_rows(read.event.id)
        plan = take(store, run_id, read)
        known = store.event_rows(read.event.id)
        said: dict[str, Mapping[str, Any]] = {
            GAUGES: read.fetched.gauges,
            TICKETS: read.fetched.tickets,
            SESSIONS: read.fetched.sessions or {},
        }
        assert upstream(records(known, EVENTS), EVENTS) == upstream({read.event.id: read.event}, EVENTS)
        for table, rows in said.items():
            standing, were = records(known, table), records(before, table)
            if table in plan.doubts:
                assert upstream(standing, table) == upstream({row: were[row] for row in standing}, table)
                assert read.evidence.full or standing.keys() == were.keys()
            else:
                assert standing.keys() - rows.keys() == known.suspects[table].keys()
                assert upstream({row: standing[row] for row in rows}, table) == upstream(rows, table)


@given(reads(4))
@properties
def test_figures_follow_from_the_rows_that_stand(store: Store, found: list[Read]) -> None:
    """The figures are always those of the gauges in the mirror, whatever was doubted or suspected."""
    for run_id, read in enumerate(found):
        take(store, run_id, read)
        known = store.event_rows(read.event.id)
        standing = {table: [*records(known, table).values()] for table in TYPES}
        [event] = standing[EVENTS]
        again = with_figures(event, standing[GAUGES], standing[TICKETS], standing[SESSIONS], now=NOW)
        assert again == (event, standing[TICKETS], standing[SESSIONS])


@given(reads(3))
@properties
def test_the_same_answer_is_not_written_again(store: Store, found: list[Read]) -> None:
    """A read repeated writes nothing: at once where it lacks no row, else once those are judged."""
    for run_id, read in enumerate(found):
        take(store, run_id, read)
    last = found[-1]
    whole = not any(store.event_rows(last.event.id).suspects.values())
    settled = [] if whole else [Read(last.event, last.fetched, weight) for weight in SETTLING]
    for run_id, read in enumerate(settled, 10):
        take(store, run_id, read)
    plan = take(store, 20, Read(last.event, last.fetched, Evidence(full=True)))
    if whole and plan.doubts:
        return  # an ordinary run's doubt leaves no suspicion: this full run is the first to
    assert not plan.writes
    assert (plan.changes, plan.doubts) == ([], {})


@given(reads(1))
@properties
def test_a_refused_plan_changes_nothing(store: Store, found: list[Read]) -> None:
    """Empty answers change no row, and those of an ordinary run leave a full run's doubts as they are."""
    [read] = found
    take(store, 1, read)
    for full in (True, False):
        before = store.event_rows(read.event.id)
        nothing = Fetched(gauges={}, tickets={}, sessions={}, read_at=NOW)
        plan = take(store, 2, Read(read.event, nothing, Evidence(full=full)))
        after = store.event_rows(read.event.id)
        assert plan.changes == []
        assert after.rows == before.rows
        for table in (GAUGES, TICKETS, SESSIONS):
            assert after.suspects[table] == {row: Suspicion(doubted=True) for row in records(before, table)}
