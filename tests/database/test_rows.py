"""The mirror's tables: what is written comes back, all or nothing, and no value leaves in an error."""

import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from conftest import migrated_at
from msgspec import structs
from support.reading import FULL_EVERY, NOW, QUARTER, Mirror, event, gauge, ticket, tickets, values
from support.real_databases import Rows, allow, connected, locked, refuse

from syncd.database import rows, runs, schema, state
from syncd.errors import StoreError
from syncd.model import EVENTS, SESSIONS, TICKETS, Attendee, Event, Gauge, Session, Ticket

LATER = NOW + QUARTER
MINUTE = timedelta(minutes=1)
CANARY = "canary-8f3a"


@pytest.fixture
def mirror(tmp_path: Path, database_kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Give a mirror whose statements wait only a moment for another program's lock."""
    monkeypatch.setattr("syncd.database.sqlite.BUSY_TIMEOUT_MS", 20)
    monkeypatch.setattr("syncd.database.postgresql.LOCK_TIMEOUT_S", 0.02)
    mirror = Mirror(migrated_at(tmp_path / "mirror.db"))
    yield mirror
    mirror.close()


def dump(mirror: Mirror) -> list[Rows]:
    """Return every stored byte, but for the runs'."""
    tables = [table for table in schema.metadata.tables if table != "syncd_runs"]
    return [sorted(mirror.sql(f"SELECT * FROM {table}"), key=repr) for table in tables]


# --- what is written comes back


PARIS = ZoneInfo("Europe/Paris")


@pytest.mark.parametrize(
    "at",
    [
        datetime(2026, 10, 25, 2, 30, tzinfo=PARIS),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=PARIS),
        datetime(2027, 3, 28, 1, 59, 59, tzinfo=PARIS),
        datetime(2027, 3, 28, 3, 0, tzinfo=PARIS),
        datetime(2027, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
)
def test_an_instant_is_not_moved_by_being_stored(mirror: Mirror, at: datetime) -> None:
    """An instant comes back as the same one, in UTC, on both sides of a change of clocks."""
    mirror.take(event(starts_at=at))
    (stored,) = mirror.held(EVENTS).values()
    starts_at = values(stored, Event)["starts_at"]
    assert starts_at == at.astimezone(UTC)
    assert starts_at.tzinfo is UTC
    ((text,),) = mirror.sql("SELECT starts_at FROM billetweb_events")
    assert str(text)[5:19] == at.astimezone(UTC).strftime("%m-%d %H:%M:%S")
    assert not mirror.take(event(starts_at=at.astimezone(UTC))).plan.writes


def test_an_instant_without_a_zone_is_not_guessed(mirror: Mirror) -> None:
    """A naive instant is refused, and nothing of its event is written."""
    with pytest.raises(StoreError, match="naive instant"):
        mirror.take(
            event(), ticket("1"), Session(id="1", event_id="9", last_update_at=NOW.replace(tzinfo=None))
        )
    assert mirror.sql("SELECT * FROM billetweb_events") == []


@pytest.mark.parametrize("amount", ["12.50", "0.1", "0", "-3.3333", "99999999.9999", "1000"])
def test_money_does_not_change_in_the_database(mirror: Mirror, amount: str, database_kind: str) -> None:
    """A price comes back as the same Decimal, and other programs can add prices up."""
    prices = [ticket("1", price=Decimal(amount)), ticket("2", price=Decimal(amount))]
    mirror.take(event(), *prices)
    for stored in mirror.held(TICKETS).values():
        assert values(stored, Ticket)["price"] == Decimal(amount)
    assert not mirror.take(event(), *prices).plan.writes
    type_of = "typeof" if database_kind == "sqlite" else "pg_typeof"
    found = mirror.sql(f"SELECT price, CAST({type_of}(price) AS text) FROM billetweb_tickets")
    assert float(sum(price for price, _ in found)) == pytest.approx(2 * float(amount))
    assert {kind for _, kind in found} < {"integer", "real", "numeric"}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"x": None},
        {"x": []},
        {"x": {}},
        {"x": False, "y": 0, "z": ""},
        {"x": 10**60, "y": 1.0, "z": 0.1},
        {"été 🎟️": ["  ", "\u2028", "'\";--", "\x1f"]},
        {"x": [[{"y": [None]}]]},
    ],
)
def test_unknown_fields_are_not_updated_for_ever(mirror: Mirror, extra: dict[str, object]) -> None:
    """JSON comes back as it was, and the same answer plans nothing."""
    read = (ticket(extra=extra), Session(id="1", event_id="9", tickets=extra, extra=extra))
    mirror.take(event(extra=extra, tags=[*extra]), *read)
    (stored,) = mirror.held(TICKETS).values()
    assert repr(values(stored, Ticket)["extra"]) == repr(extra)
    assert not mirror.take(event(extra=extra, tags=[*extra]), *read).plan.writes


def test_a_huge_number_is_not_updated_for_ever(mirror: Mirror) -> None:
    """A number that PostgreSQL writes in another way, in digits or without its sign, plans nothing either."""
    extra = {"y": -0.0, "z": 1e300}
    mirror.take(event(extra=extra))
    assert not mirror.take(event(extra=extra)).plan.writes


def test_accents_in_json_can_be_searched_for(mirror: Mirror) -> None:
    """JSON is stored as it reads, without escapes."""
    mirror.take(event(tags=["été"]))
    assert mirror.sql("SELECT tags FROM billetweb_events") == [('["été"]',)]


def test_a_flag_that_becomes_a_number_is_written_once(mirror: Mirror) -> None:
    """Between true and 1 an unknown field changes, one time."""
    mirror.take(event(extra={"x": True}))
    assert mirror.take(event(extra={"x": 1})).kinds == {"9": "updated"}
    assert not mirror.take(event(extra={"x": 1})).plan.writes


ODD_NAMES = ["", " ", "A/B", "/", "//x//", "🎸 fosse", "é", "e\u0301", "A\nB", "%_'\"", "a", "A"]


def test_an_odd_name_does_not_lead_to_another_row(mirror: Mirror) -> None:
    """Gauges are told apart and found again by their name alone, whatever it holds; their type too."""
    gauges = [gauge(name, kind) for kind in ("category", "seat/row") for name in ODD_NAMES]
    mirror.take(event(), *gauges)
    assert not mirror.take(event(), *gauges).plan.writes
    for number, old in enumerate(gauges):
        new = [structs.replace(row, places_left=number) if row is old else row for row in gauges]
        run = mirror.take(event(), *new)
        assert run.kinds | {"9": ""} == {old.id: "updated", "9": ""}
        assert not mirror.take(event(), *new).plan.writes
        mirror.take(event(), *gauges)
    remaining = gauges[1:]
    assert mirror.take(event(), *remaining).kinds == {}
    assert mirror.take(event(), *remaining).kinds == {gauges[0].id: "vanished"}
    assert mirror.sql("SELECT type, gauge_id FROM billetweb_gauges WHERE vanished_at IS NOT NULL") == [
        ("category", "")
    ]


# --- rows and their marks


def test_a_row_that_did_not_change_gets_new_instants(mirror: Mirror) -> None:
    """`changed_at` moves with the row that changed alone; `first_seen_at` never does."""
    mirror.take(event(), ticket("1", name="old"), ticket("2"))
    mirror.clock.at = LATER
    mirror.take(event(), ticket("1", name="new"), ticket("2"))
    statement = "SELECT id, first_seen_at < changed_at FROM billetweb_tickets ORDER BY id"
    assert mirror.sql(statement) == [("1", 1), ("2", 0)]


def test_a_vanished_row_is_deleted(mirror: Mirror) -> None:
    """The row stays with its values, is marked with the instant, and its return takes the mark away."""
    read = [ticket(str(n), name=f"tariff {n}") for n in range(1, 4)]
    mirror.take(event(), *read)
    mirror.take(event(), *read[:2])
    mirror.clock.at = LATER
    run = mirror.take(event(), *read[:2])
    assert (run.kinds, run.run.counts.vanished) == ({"3": "vanished"}, 1)
    statement = "SELECT name, vanished_at = changed_at, vanished_at FROM billetweb_tickets WHERE id = '3'"
    assert mirror.sql(statement) == [("tariff 3", 1, "2027-03-01 12:15:00.000000")]
    assert mirror.take(event(), *read).kinds == {"3": "returned"}
    assert mirror.sql("SELECT COUNT(*) FROM billetweb_tickets WHERE vanished_at IS NULL") == [(3,)]
    feed = mirror.sql("SELECT kind, diff FROM syncd_changes WHERE row_id = '3' ORDER BY seq")
    assert feed[1:] == [
        ("vanished", '{"vanished_at":[null,"2027-03-01T12:15:00Z"]}'),
        ("returned", '{"vanished_at":["2027-03-01T12:15:00Z",null]}'),
    ]


def test_events_of_the_list_are_not_stored_or_stay_for_ever(mirror: Mirror) -> None:
    """Events are stored by their list, and marked when two runs' lists lack them."""
    with mirror.run() as run:
        for event_id in "123":
            run.event_of_list(event(event_id))
    assert run.kinds == dict.fromkeys("123", "inserted")
    for at, vanished in ((NOW, {}), (LATER, {"3": "vanished"})):
        mirror.clock.at = at
        with mirror.run() as run:
            run.listed("1", "2")
        assert run.kinds == vanished
    assert mirror.query(rows.present_events).keys() == {"1", "2"}
    stored = mirror.query(rows.stored, EVENTS, ["3", "4"])
    assert {row: held.vanished_at for row, held in stored.items()} == {"3": LATER}
    assert mirror.absent(EVENTS) == {}


def test_an_event_that_is_over_is_missed_in_the_list(mirror: Mirror) -> None:
    """The list should hold those that are not over, and not those that vanished."""
    ends = {"1": NOW - MINUTE, "2": NOW + MINUTE, "3": None, "4": NOW}
    with mirror.run() as run:
        for event_id, ends_at in ends.items():
            run.event_of_list(event(event_id, ends_at=ends_at))
        run.event_of_list(event("5", starts_at=NOW - MINUTE))
    assert mirror.query(rows.expected_events, NOW) == {"2", "3"}
    for _ in range(2):
        with mirror.run() as run:
            run.listed("3")
    assert run.kinds == {"2": "vanished"}
    assert mirror.query(rows.expected_events, NOW) == {"3"}


def test_a_session_is_forgotten_when_its_event_leaves_session_mode(mirror: Mirror) -> None:
    """Events with dates still standing are known by them, and no longer when these have vanished."""
    dates = [Session(id=str(n), event_id="9") for n in range(3)]
    mirror.take(event(), *dates)
    mirror.take(event("8"))
    for _ in range(3):
        assert mirror.query(rows.events_with_sessions) == {"9"}
        mirror.take(event())
    mirror.clock.at += FULL_EVERY
    mirror.take(event())
    assert mirror.query(rows.events_with_sessions) == set()


# --- rows that move from event to event

MOVING = [
    pytest.param(TICKETS, ticket, id="a tariff"),
    pytest.param(SESSIONS, lambda row, event_id: Session(id=row, event_id=event_id), id="a date"),
]


@pytest.mark.parametrize(("table", "made"), MOVING)
def test_a_row_that_moves_to_another_event_stops_the_run(mirror: Mirror, table: str, made: Any) -> None:
    """It is changed, not inserted twice, and keeps its first sight; nobody misses it where it was."""
    mirror.take(event("8"), made("1", "8"), made("2", "8"), made("3", "8"))
    mirror.clock.at = LATER
    run = mirror.take(event("9"), made("1", "9"))
    assert run.kinds == {"9": "inserted", "1": "updated"}
    assert (run.run.counts.inserted, run.run.counts.updated) == (1, 1)
    told = mirror.sql("SELECT event_id, diff FROM syncd_changes WHERE row_id = '1' ORDER BY seq")[1:]
    assert told == [("9", '{"event_id":["8","9"]}')]
    for _ in range(3):
        assert not mirror.take(event("8"), made("2", "8"), made("3", "8")).plan.writes
    statement = f"SELECT event_id, first_seen_at, changed_at, vanished_at FROM {table} WHERE id = '1'"
    assert mirror.sql(statement) == [("9", "2027-03-01 12:00:00.000000", "2027-03-01 12:15:00.000000", None)]


@pytest.mark.parametrize(("table", "made"), MOVING)
def test_a_row_that_moved_is_still_missed_where_it_was(mirror: Mirror, table: str, made: Any) -> None:
    """Its absence under the event that it left ends with the read that finds it, and it does not vanish."""
    mirror.take(event("8"), made("1", "8"), made("2", "8"), made("3", "8"))
    mirror.take(event("8"), made("2", "8"), made("3", "8"))
    assert mirror.absent(table) == {"1": 1}
    with mirror.run() as run:  # the second run that misses it where it was, before it finds it elsewhere
        run.event(event("8"), made("2", "8"), made("3", "8"))
        assert mirror.absent(table) == {"1": 2}
        run.event(event("9"), made("1", "9"), made("4", "9"))
        assert mirror.absent(table) == {}
    assert (run.kinds["1"], run.run.counts.vanished) == ("updated", 0)
    mirror.take(event("9"), made("4", "9"))
    assert (mirror.absent(table, "8"), mirror.absent(table, "9")) == ({}, {"1": 1})


def test_a_place_that_moved_is_still_missed_where_it_was(mirror: Mirror) -> None:
    """An attendee found among another event's is the same one, and no longer absent."""
    with mirror.run() as run:
        run.people("8", *(Attendee(row, "8") for row in "123"))
    with mirror.run() as run:
        run.people("8", Attendee("2", "8"), Attendee("3", "8"))
    assert mirror.absent("billetweb_attendees") == {"1": 1}
    with mirror.run() as run:
        run.people("8", Attendee("2", "8"), Attendee("3", "8"))
        run.people("9", Attendee("1", "9"), whole=False)
    assert (run.kinds, run.run.counts.vanished) == ({"1": "updated"}, 0)
    assert mirror.absent("billetweb_attendees") == {}
    assert mirror.sql("SELECT id, event_id FROM billetweb_attendees ORDER BY id") == [
        ("1", "9"),
        ("2", "8"),
        ("3", "8"),
    ]


def test_a_moved_row_that_had_vanished_stays_away(mirror: Mirror) -> None:
    """Under its new event the row is no longer marked."""
    read = tickets("123", "8")
    for shown in (read, read[1:], read[1:]):
        run = mirror.take(event("8"), *shown)
    assert run.kinds == {"1": "vanished"}
    run = mirror.take(event("9"), ticket("1", "9"))
    assert run.kinds == {"9": "inserted", "1": "returned"}
    assert mirror.sql("SELECT event_id, vanished_at FROM billetweb_tickets WHERE id = '1'") == [("9", None)]


# --- all or nothing


@pytest.mark.parametrize("table", ["billetweb_tickets", "syncd_changes", "syncd_absences"])
def test_half_a_plan_is_left_in_the_mirror(mirror: Mirror, table: str) -> None:
    """Where one statement of many fails, old rows, changes and absences all stand; later it works."""
    mirror.take(event(name="old"), *(ticket(str(n)) for n in range(4)))
    refuse(mirror.url, f"INSERT ON {table}")
    before = dump(mirror)
    mirror.clock.at = LATER
    new = [*(ticket(str(n), name="new") for n in range(3)), ticket("5", name=CANARY)]
    with pytest.raises(StoreError, match="refused"):
        mirror.take(event(name="new"), *new)
    assert dump(mirror) == before
    allow(mirror.url, f"INSERT ON {table}")
    mirror.take(event(name="new"), *new)
    assert values(mirror.held(TICKETS)["5"], Ticket)["name"] == CANARY
    assert mirror.absent(TICKETS) == {"3": 1}
    assert mirror.query(rows.present_events) == {"9": LATER}


def test_half_of_what_vanishes_is_left_in_the_mirror(mirror: Mirror) -> None:
    """Where an event's figures cannot follow, none of its rows vanishes; with the next run they do."""
    gauges = [gauge(name, "ticket", places_left=1, places_total=1) for name in "123"]
    mirror.take(event(), *tickets("123"), *gauges)
    left: list[Gauge | Ticket] = [*tickets("12"), *gauges[:2]]
    mirror.take(event(), *left)
    refuse(mirror.url, "UPDATE OF places_left ON billetweb_events")
    before = []

    def lack_it_again() -> None:
        with mirror.run() as run:
            run.event(event(), *left)
            before.append(dump(mirror))

    with pytest.raises(StoreError, match="refused"):
        lack_it_again()
    assert [dump(mirror)] == before
    allow(mirror.url, "UPDATE OF places_left ON billetweb_events")
    run = mirror.take(event(), *left)
    assert run.kinds == {"3": "vanished", gauges[2].id: "vanished", "9": "updated"}
    assert values(mirror.held(EVENTS)["9"], Event)["places_left"] == 2


def test_a_value_of_a_row_gets_into_an_error(mirror: Mirror, database_kind: str) -> None:
    """A statement that fails is told in the driver's words: no value in the message nor in the traceback."""
    broken = structs.replace(event(name=CANARY, description=CANARY), account=None)
    with pytest.raises(StoreError) as caught:
        mirror.take(broken)
    said = {
        "sqlite": "NOT NULL constraint failed: billetweb_events.account",
        "postgresql": 'null value in column "account" of relation "billetweb_events" violates'
        " not-null constraint",
    }
    assert str(caught.value) == f"the database cannot hold a value: {said[database_kind]}"
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_a_locked_database_hangs_or_cannot_be_read(mirror: Mirror) -> None:
    """While another program holds the file, writing fails soon and reading goes on; then writing works."""
    mirror.take(event())
    with mirror.run() as run:
        with locked(mirror.url):
            for write in (
                lambda: run.event(event(name="new")),
                lambda: mirror.write(state.put, state.PAUSED, value=True),
                lambda: mirror.write(state.note_request, NOW.timestamp()),
                lambda: mirror.write(runs.put, run.run),
            ):
                with pytest.raises(StoreError, match=r"database is locked|lock timeout"):
                    write()
            assert mirror.query(rows.present_events).keys() == {"9"}
            assert len(mirror.query(runs.latest, 10, None)) == 2
        run.event(event(name="new"))
    assert run.kinds == {"9": "updated"}


def test_a_reader_in_mid_query_keeps_the_mirror_from_writing(mirror: Mirror, database_kind: str) -> None:
    """Another program's long query sees the old rows, and the new ones are written meanwhile."""
    mirror.take(event(name="old"))
    with connected(mirror.url) as other:
        other.execute("BEGIN" if database_kind == "sqlite" else "BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert other.execute("SELECT name FROM billetweb_events").fetchall() == [("old",)]
        mirror.take(event(name="new"))
        assert other.execute("SELECT name FROM billetweb_events").fetchall() == [("old",)]
    assert mirror.sql("SELECT name FROM billetweb_events") == [("new",)]


# --- when figures were read


def list_events(mirror: Mirror, *events: Event) -> None:
    with mirror.run() as run:
        for each in events:
            run.event_of_list(each)


def test_events_in_which_nothing_changed_are_taken_for_stale(mirror: Mirror) -> None:
    """A read that changes something notes with that when it was; else the end of the run notes it."""
    list_events(mirror, event("1"), event("2"))
    assert mirror.query(rows.present_events) == {"1": None, "2": None}
    mirror.clock.at = LATER
    with mirror.run() as run:
        assert not run.event(event("1")).writes
        assert run.event(event("2"), ticket("1", "2")).writes
        assert mirror.query(rows.present_events) == {"1": None, "2": LATER}
    assert mirror.query(rows.present_events) == {"1": LATER, "2": LATER}


def test_an_odd_read_makes_figures_fresh(mirror: Mirror) -> None:
    """They keep their age while most gauges are lacking, until those vanish: then they were right."""
    gauges = [gauge(name, places_left=1) for name in "abcd"]
    with mirror.run() as run:
        run.event(event(), *gauges)
        run.event(event("8"), *(gauge(name, event_id="8", places_left=1) for name in "abcdefgh"))
    for number in (1, 2):
        mirror.clock.at = NOW + number * QUARTER
        assert mirror.take(event(), *gauges[:1]).plan.is_odd
        assert mirror.query(rows.present_events)["9"] == NOW
    with mirror.run(accept=True) as run:
        run.event(event(), *gauges[:1])
    assert run.run.counts.vanished == 3
    assert mirror.query(rows.present_events)["9"] == NOW + 2 * QUARTER


def test_an_event_is_due_for_ever(mirror: Mirror) -> None:
    """A read settles why it was due, also where nothing changed; one that lacks most settles nothing."""
    gauges = [gauge(name, places_left=1) for name in "abcd"]
    mirror.take(event(), *gauges)
    for shown, due in (((), True), (gauges, False)):
        mirror.write(state.mark_due, ["9", "8"], NOW)
        mirror.take(event(), *shown)
        reads = mirror.query(state.reads)
        assert (reads["9"].due_at is not None, reads["8"].due_at) == (due, NOW)


def test_an_end_on_record_late_sets_figures_back(mirror: Mirror) -> None:
    """A run whose end comes to record after a later run's leaves the later instant."""
    list_events(mirror, event())
    for at in (NOW + 2 * MINUTE, NOW + MINUTE):
        mirror.write(rows.set_read_at, {"9": at}, NOW + 3 * MINUTE)
    assert mirror.query(rows.present_events) == {"9": NOW + 2 * MINUTE}


def test_a_clock_that_was_ahead_keeps_figures_fresh_for_years(mirror: Mirror) -> None:
    """An instant of a read that is yet to come gives way to that of any read."""
    list_events(mirror, event())
    for at in (NOW + timedelta(days=3650), NOW + MINUTE):
        mirror.write(rows.set_read_at, {"9": at}, at)
    assert mirror.query(rows.present_events) == {"9": NOW + MINUTE}


# --- events as status shows them


def shown(mirror: Mirror, since: datetime | None, now: datetime = NOW) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mirror.query(rows.shown_events, since, now)
    return found


def test_events_shown_are_those_that_are_over(mirror: Mirror) -> None:
    """An event is live until it has ended before the instant; one that does not say when stays live."""
    ends = {"1": NOW - MINUTE, "2": NOW + MINUTE, "3": None, "4": NOW}
    for event_id, ends_at in ends.items():
        starts_at = ends_at and NOW - 5 * MINUTE
        list_events(mirror, event(event_id, starts_at=starts_at, ends_at=ends_at, is_full=event_id in "12"))
    for event_id, starts_at in {"5": NOW + MINUTE, "6": NOW - MINUTE}.items():
        list_events(mirror, event(event_id, starts_at=starts_at))
    assert [one["id"] for one in shown(mirror, NOW)] == ["3", "2", "5"]
    assert [one["id"] for one in shown(mirror, None)] == ["3", "1", "2", "4", "6", "5"]
    figures = mirror.query(rows.figures, NOW)
    assert (figures.events, figures.full, figures.read, figures.oldest_at) == (3, 1, 0, None)
    mirror.write(rows.set_read_at, {"1": NOW - MINUTE, "2": NOW, "5": LATER}, LATER)
    figures = mirror.query(rows.figures, NOW)
    assert (figures.read, figures.oldest_at) == (2, NOW)
    figures = mirror.query(rows.figures, NOW, ["2"])
    assert (figures.events, figures.full, figures.read, figures.oldest_at) == (2, 0, 1, LATER)


def test_the_age_of_a_figure_is_not_that_of_its_read(mirror: Mirror) -> None:
    """The age counts from the last good read, is unknown without one, and never negative."""
    list_events(mirror, event("1"), event("2"))
    mirror.write(rows.set_read_at, {"1": NOW}, NOW)
    assert [one["age_s"] for one in shown(mirror, None, NOW + MINUTE)] == [60.0, None]
    assert shown(mirror, None, NOW - MINUTE)[0]["age_s"] == 0.0


def test_an_instant_is_shown_without_its_zone(mirror: Mirror) -> None:
    """Instants of events that are shown are aware, in UTC."""
    list_events(mirror, event(starts_at=NOW))
    assert shown(mirror, None)[0]["starts_at"].tzinfo is UTC


@pytest.mark.parametrize(
    ("left", "total", "nearly"),
    [(0, 50, 0), (1, 50, 1), (5, 50, 1), (6, 50, 0), (None, 50, 0), (3, None, 0), (1, 9, 0)],
)
def test_the_last_places_go_unnoticed(
    mirror: Mirror, left: int | None, total: int | None, nearly: int
) -> None:
    """An event is nearly full while some place is left, and a tenth of them or less."""
    later = NOW + timedelta(days=1)
    list_events(mirror, event("1", ends_at=later, places_left=left, places_total=total, is_full=left == 0))
    with mirror.database.begin() as connection:
        assert rows.figures(connection, NOW).nearly_full == nearly
