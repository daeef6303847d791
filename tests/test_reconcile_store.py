"""Plans and the store together, by properties: whatever is read, the mirror, the feed and the counts agree."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
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
IN_AN_EVENT = (GAUGES, TICKETS, SESSIONS)
numbers = itertools.count(1)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
optional_texts = st.none() | texts
counts = st.none() | st.integers(0, 50)
instants = st.none() | st.datetimes(timezones=st.just(UTC))
money = st.none() | st.decimals(0, 99_999_999, places=4) | st.decimals(-100, 100, places=2)
scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | texts
objects = st.dictionaries(
    texts,
    st.recursive(
        scalars.filter(lambda value: value not in (float("inf"), float("-inf"))),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
        max_leaves=3,
    ),
    max_size=2,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Give one database for all examples: each takes an event of its own."""
    store = Store(Database(f"sqlite:///{tmp_path_factory.mktemp('mirror')}/mirror.db"))
    yield store
    store.close()


class Read(msgspec.Struct):
    """What one run reads of an event, and the run's weight."""

    event: Event
    fetched: Fetched
    evidence: Evidence


@st.composite
def reads(draw: st.DrawFn, number: int) -> Read:
    """Draw a read of the event of that number: rows come, go and change from read to read."""
    event_id = str(number)
    event = draw(
        st.builds(
            Event,
            id=st.just(event_id),
            account=st.just("1"),
            name=optional_texts,
            starts_at=instants,
            multiple=st.booleans(),
            online=st.none() | st.booleans(),
            tax_rate=money,
            tags=st.lists(texts, max_size=2),
            extra=objects,
        )
    )
    gauges = draw(
        st.lists(
            st.builds(
                Gauge,
                event_id=st.just(event_id),
                session_id=st.sampled_from(["", "1"]),
                type=st.sampled_from(["event", "ticket", "category", "session", "seat/row"]),
                gauge_id=st.sampled_from(["1", "2", "A/B", "Fosse 🎸 / assis", " "]),
                name=optional_texts,
                places_left=counts,
                unlimited=st.booleans(),
                extra=objects,
            ),
            max_size=5,
        )
    )
    ids = st.lists(st.integers(1, 5), max_size=5, unique=True)
    tickets = [
        draw(
            st.builds(
                Ticket,
                id=st.just(f"{number}0{n}"),
                event_id=st.just(event_id),
                position=st.just(n),
                category=st.none() | st.sampled_from(["A/B", "1"]),
                price=money,
                places_total=counts,
                sale_starts_at=instants,
                extra=objects,
            )
        )
        for n in draw(ids)
    ]
    sessions = [
        draw(
            st.builds(
                Session,
                id=st.just(f"{number}0{n}"),
                event_id=st.just(event_id),
                starts_at=instants,
                places_total=counts,
                places_sold=counts,
                tickets=objects,
            )
        )
        for n in draw(ids)
    ]
    fetched = Fetched(
        gauges={row_id(gauge): gauge for gauge in gauges},
        tickets={ticket.id: ticket for ticket in tickets},
        sessions={session.id: session for session in sessions},
        read_at=NOW,
    )
    return Read(event, fetched, draw(st.builds(Evidence, st.booleans(), st.booleans(), st.booleans())))


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


def without_figures(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        row: {name: value for name, value in structs.asdict(record).items() if name not in FIGURES}
        for row, record in found.items()
    }


def changes(store: Store, event_id: str, run_id: int | None = None) -> list[Any]:
    table = schema.changes
    query = select(table).where(table.c.event_id == event_id).order_by(table.c.seq)
    if run_id is not None:
        query = query.where(table.c.run_id == run_id)
    with store._transaction() as connection:
        return list(connection.execute(query).all())


def replay(found: list[Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Build the mirror from the feed of changes alone, checking each against what came before it."""
    mirror: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in TYPES}
    for change in found:
        rows = mirror[change.table_name]
        assert (change.row_id in rows) is (change.kind != "inserted")
        row = rows.setdefault(change.row_id, {})
        for column, (old, new) in change.diff.items():
            assert row.get(column) == old
            row[column] = new
    return mirror


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_mirror_feed_and_counts_never_drift_apart(store: Store, data: st.DataObject) -> None:
    """Over any sequence of reads the counts are the changes written, and the feed replays to the mirror."""
    number = next(numbers)
    for run_id in range(data.draw(st.integers(1, 4))):
        plan = take(store, run_id, data.draw(reads(number)))
        written = Counts(unchanged=plan.unchanged)
        for change in changes(store, str(number), run_id):
            setattr(written, change.kind, getattr(written, change.kind) + 1)
        assert plan.counts() == written
    known = store.event_rows(str(number))
    replayed = replay(changes(store, str(number)))
    for table, record_type in TYPES.items():
        assert replayed[table].keys() == known.rows[table].keys()
        for row, stored in known.rows[table].items():
            vanished_at = replayed[table][row].pop("vanished_at", None)
            assert msgspec.convert(vanished_at, datetime | None) == stored.vanished_at
            assert msgspec.convert(replayed[table][row], record_type) == record_type(**stored.values)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_what_is_written_is_what_was_read(store: Store, data: st.DataObject) -> None:
    """Rows that were read and not doubted stand in the mirror; beyond them stand the suspected alone."""
    number = next(numbers)
    for run_id in range(data.draw(st.integers(1, 4))):
        read = data.draw(reads(number))
        before = store.event_rows(str(number))
        plan = take(store, run_id, read)
        known = store.event_rows(str(number))
        said = {
            GAUGES: read.fetched.gauges,
            TICKETS: read.fetched.tickets,
            SESSIONS: read.fetched.sessions or {},
        }
        assert without_figures(records(known, EVENTS)) == without_figures({read.event.id: read.event})
        for table in IN_AN_EVENT:
            standing, were = records(known, table), records(before, table)
            if table in plan.doubts:
                assert without_figures(standing) == without_figures({row: were[row] for row in standing})
                if not read.evidence.full:
                    assert standing.keys() == were.keys()
            else:
                assert standing.keys() - said[table].keys() == known.suspects[table].keys()
                shown = {row: standing[row] for row in said[table]}
                assert without_figures(shown) == without_figures(dict(said[table]))


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_figures_follow_from_the_rows_that_stand(store: Store, data: st.DataObject) -> None:
    """The figures of event, tickets and sessions are those of the gauges in the mirror, whatever was doubted."""
    number = next(numbers)
    for run_id in range(data.draw(st.integers(1, 4))):
        read = data.draw(reads(number))
        take(store, run_id, read)
        known = store.event_rows(str(number))
        standing = {table: [*records(known, table).values()] for table in TYPES}
        [event] = standing[EVENTS]
        again = with_figures(event, standing[GAUGES], standing[TICKETS], standing[SESSIONS], now=NOW)
        assert again == (event, standing[TICKETS], standing[SESSIONS])


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_the_same_answer_is_not_written_again(store: Store, data: st.DataObject) -> None:
    """A read repeated plans nothing: at once where it lacked no row, else from the third time on."""
    number = next(numbers)
    for run_id in range(data.draw(st.integers(0, 2))):
        take(store, run_id, data.draw(reads(number)))
    read = data.draw(reads(number))
    plans = [take(store, 10 + n, read) for n in range(3)]
    quiet = store.event_rows(read.event.id).suspects == {name: {} for name in TYPES}
    missing = any(plan.suspects or plan.doubts for plan in plans)
    last = plans[-1] if missing else plans[1]
    assert last.changes == []
    assert not last.writes or read.evidence.full
    assert quiet or last.doubts


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_refused_plan_changes_nothing(store: Store, data: st.DataObject) -> None:
    """A run that is not full and finds every part empty leaves each row and each suspicion of a full run."""
    number = next(numbers)
    read = data.draw(reads(number))
    take(store, 1, read)
    for full in (True, False):
        before = store.event_rows(str(number))
        nothing = Fetched(gauges={}, tickets={}, sessions={}, read_at=NOW)
        plan = take(store, 2, Read(read.event, nothing, Evidence(full=full)))
        after = store.event_rows(str(number))
        assert plan.changes == []
        assert after.rows == before.rows
        for table in IN_AN_EVENT:
            assert after.suspects[table] == {row: Suspicion(doubted=True) for row in records(before, table)}
