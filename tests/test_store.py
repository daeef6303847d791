"""The mirror's tables: what is written comes back, all or nothing, and no value leaves in an error."""

import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec import structs
from real_databases import Rows, allow, connected, locked, query, refuse, url_at

from syncd import schema
from syncd.database import Database
from syncd.errors import StoreError
from syncd.model import Event, Gauge, Session, Ticket
from syncd.reconcile import (
    EventPlan,
    Evidence,
    Fetched,
    Suspicion,
    Verdict,
    plan_absent,
    plan_event,
    plan_listed,
    row_id,
)
from syncd.store import Store

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
LATER = datetime(2027, 3, 1, 12, 15, tzinfo=UTC)
EVENTS, TICKETS = "billetweb_events", "billetweb_tickets"
CANARY = "canary-8f3a"


@pytest.fixture
def url(tmp_path: Path, database_kind: str) -> str:
    return url_at(tmp_path / "mirror.db")


@pytest.fixture
def store(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Give a store whose statements wait only a moment for another program's lock."""
    monkeypatch.setattr("syncd.sqlite.BUSY_TIMEOUT_MS", 20)
    monkeypatch.setattr("syncd.postgresql.LOCK_TIMEOUT_S", 0.02)
    store = Store(Database(url))
    yield store
    store.close()


def dump(url: str) -> list[Rows]:
    return [sorted(query(url, f"SELECT * FROM {table}"), key=repr) for table in schema.metadata.tables]


def event(event_id: str = "9", **fields: Any) -> Event:
    return Event(id=event_id, account="1", **fields)


def ticket(ticket_id: str = "1", event_id: str = "9", **fields: Any) -> Ticket:
    return Ticket(id=ticket_id, event_id=event_id, position=1, **fields)


def gauge(name: str, kind: str = "category", **fields: Any) -> Gauge:
    return Gauge(event_id="9", session_id="", type=kind, gauge_id=name, name=name, **fields)


def take(
    store: Store, of: Event, *rows: Gauge | Ticket | Session, full: bool = False, at: datetime = NOW
) -> EventPlan:
    """Have a run read these rows of an event, and write what follows."""
    fetched = Fetched(
        gauges={row_id(row): row for row in rows if isinstance(row, Gauge)},
        tickets={row.id: row for row in rows if isinstance(row, Ticket)},
        sessions={row.id: row for row in rows if isinstance(row, Session)},
        read_at=at,
    )
    plan = plan_event(of, store.event_rows(of.id), fetched, Evidence(full=full))
    if plan.writes:
        store.apply(1, plan, at)
    return plan


def kinds(plan: EventPlan) -> dict[str, str]:
    return {change.row_id: change.kind for change in plan.changes}


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
def test_an_instant_is_not_moved_by_being_stored(store: Store, url: str, at: datetime) -> None:
    """An instant comes back as the same one, in UTC, on both sides of a change of clocks."""
    take(store, event(starts_at=at))
    [stored] = store.event_rows("9").rows[EVENTS].values()
    assert stored.values["starts_at"] == at.astimezone(UTC)
    assert stored.values["starts_at"].tzinfo is UTC
    text = at.astimezone(UTC).strftime("%m-%d %H:%M:%S")
    assert query(url, "SELECT starts_at FROM billetweb_events")[0][0][5:19] == text
    assert not take(store, event(starts_at=at.astimezone(UTC))).writes


def test_an_instant_without_a_zone_is_not_guessed(store: Store, url: str) -> None:
    """A naive instant is refused, and nothing of its event is written."""
    with pytest.raises(StoreError, match="naive instant"):
        take(store, event(starts_at=NOW.replace(tzinfo=None)))
    assert query(url, "SELECT * FROM billetweb_events") == []


@pytest.mark.parametrize("amount", ["12.50", "0.1", "0", "-3.3333", "99999999.9999", "1000"])
def test_money_does_not_change_in_the_database(
    store: Store, url: str, amount: str, database_kind: str
) -> None:
    """A price comes back as the same Decimal, and other programs can add prices up."""
    prices = [ticket("1", price=Decimal(amount)), ticket("2", price=Decimal(amount))]
    take(store, event(), *prices)
    for stored in store.event_rows("9").rows[TICKETS].values():
        assert stored.values["price"] == Decimal(amount)
    assert not take(store, event(), *prices).writes
    type_of = "typeof" if database_kind == "sqlite" else "pg_typeof"
    rows = query(url, f"SELECT price, CAST({type_of}(price) AS text) FROM billetweb_tickets")
    assert float(sum(price for price, _ in rows)) == pytest.approx(2 * float(amount))
    assert {kind for _, kind in rows} < {"integer", "real", "numeric"}


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
def test_unknown_fields_are_not_updated_for_ever(store: Store, extra: dict[str, object]) -> None:
    """JSON comes back as it was, and the same answer plans nothing."""
    rows = (ticket(extra=extra), Session(id="1", event_id="9", tickets=extra, extra=extra))
    take(store, event(extra=extra, tags=[*extra]), *rows)
    [stored] = store.event_rows("9").rows[TICKETS].values()
    assert repr(stored.values["extra"]) == repr(extra)
    assert not take(store, event(extra=extra, tags=[*extra]), *rows).writes


def test_a_huge_number_is_not_updated_for_ever(store: Store) -> None:
    """A number that PostgreSQL writes in another way, in digits or without its sign, plans nothing either."""
    extra = {"y": -0.0, "z": 1e300}
    take(store, event(extra=extra))
    assert not take(store, event(extra=extra)).writes


def test_accents_in_json_can_be_searched_for(store: Store, url: str) -> None:
    """JSON is stored as it reads, without escapes."""
    take(store, event(tags=["été"]))
    assert query(url, "SELECT tags FROM billetweb_events") == [('["été"]',)]


def test_a_flag_that_becomes_a_number_is_written_once(store: Store) -> None:
    """Between true and 1 an unknown field changes, one time."""
    take(store, event(extra={"x": True}))
    assert kinds(take(store, event(extra={"x": 1}))) == {"9": "updated"}
    assert not take(store, event(extra={"x": 1})).writes


ODD_NAMES = ["", " ", "A/B", "/", "//x//", "🎸 fosse", "é", "e\u0301", "A\nB", "%_'\"", "a", "A"]


def test_an_odd_name_does_not_lead_to_another_row(store: Store, url: str) -> None:
    """Gauges are told apart and found again by their name alone, whatever it holds; their type too."""
    gauges = [gauge(name, kind) for kind in ("category", "seat/row") for name in ODD_NAMES]
    take(store, event(), *gauges)
    assert not take(store, event(), *gauges).writes
    for n, old in enumerate(gauges):
        new = [structs.replace(row, places_left=n) if row is old else row for row in gauges]
        plan = take(store, event(), *new)
        assert kinds(plan) | {"9": ""} == {row_id(old): "updated", "9": ""}
        assert not take(store, event(), *new).writes
        take(store, event(), *gauges)
    remaining = gauges[1:]
    take(store, event(), *remaining)
    assert kinds(take(store, event(), *remaining)) == {row_id(gauges[0]): "vanished"}
    assert query(url, "SELECT type, gauge_id FROM billetweb_gauges WHERE vanished_at IS NOT NULL") == [
        ("category", "")
    ]


# --- rows and their marks


def test_a_suspicion_is_forgotten_when_the_row_is_shown_again(store: Store) -> None:
    """A row that is lacking in every second run stays."""
    rows = [ticket(str(n)) for n in range(3)]
    take(store, event(), *rows)
    for shown in (rows[1:], rows, rows[1:], rows):
        assert take(store, event(), *shown).changes == []
    assert store.event_rows("9").suspects[TICKETS] == {}


def test_a_row_that_did_not_change_keeps_its_instants(store: Store, url: str) -> None:
    """`changed_at` moves with the row that changed alone; `first_seen_at` never does."""
    take(store, event(), ticket("1", name="old"), ticket("2"))
    take(store, event(), ticket("1", name="new"), ticket("2"), at=LATER)
    statement = "SELECT id, first_seen_at < changed_at FROM billetweb_tickets ORDER BY id"
    assert query(url, statement) == [("1", 1), ("2", 0)]


def test_a_vanished_row_is_marked_and_not_deleted(store: Store, url: str) -> None:
    """The row stays with its values, is marked with the instant, and its return takes the mark away."""
    rows = [ticket(str(n), name=f"tariff {n}") for n in range(1, 4)]
    take(store, event(), *rows)
    take(store, event(), *rows[:2])
    assert kinds(take(store, event(), *rows[:2], at=LATER)) == {"3": "vanished"}
    statement = "SELECT name, vanished_at = changed_at, vanished_at FROM billetweb_tickets WHERE id = '3'"
    assert query(url, statement) == [("tariff 3", 1, "2027-03-01 12:15:00.000000")]
    assert kinds(take(store, event(), *rows)) == {"3": "returned"}
    assert query(url, "SELECT COUNT(*) FROM billetweb_tickets WHERE vanished_at IS NULL") == [(3,)]
    feed = query(url, "SELECT kind, diff FROM syncd_changes WHERE row_id = '3' ORDER BY seq")
    assert feed[1:] == [
        ("vanished", '{"vanished_at":[null,"2027-03-01T12:15:00Z"]}'),
        ("returned", '{"vanished_at":["2027-03-01T12:15:00Z",null]}'),
    ]


def test_a_tariff_that_moves_to_another_event_does_not_stop_the_run(store: Store, url: str) -> None:
    """It belongs to the event that shows it, does not vanish with the other's, and keeps its first sight."""
    take(store, event("8"), ticket("1", "8"), ticket("2", "8"), ticket("3", "8"))
    plan = take(store, event("9"), ticket("1", "9"), at=LATER)
    assert kinds(plan) == {"9": "inserted", "1": "inserted"}
    assert not take(store, event("8"), ticket("2", "8"), ticket("3", "8")).writes
    statement = "SELECT event_id, first_seen_at, vanished_at FROM billetweb_tickets WHERE id = '1'"
    assert query(url, statement) == [("9", "2027-03-01 12:00:00.000000", None)]


def test_a_suspicion_left_at_the_old_event_does_not_stop_the_run(store: Store) -> None:
    """A row that was suspected in one event, moved, and is suspected in the other one is suspected once."""
    take(store, event("8"), ticket("1", "8"), ticket("2", "8"), ticket("3", "8"))
    take(store, event("8"), ticket("2", "8"), ticket("3", "8"))
    take(store, event("9"), ticket("1", "9"), ticket("4", "9"))
    take(store, event("9"), ticket("4", "9"))
    assert store.event_rows("8").suspects[TICKETS] == {}
    assert store.event_rows("9").suspects[TICKETS] == {"1": Suspicion()}


def test_a_moved_row_that_had_vanished_is_there_again(store: Store, url: str) -> None:
    """Under its new event the row is no longer marked."""
    rows = [ticket("1", "8"), ticket("2", "8"), ticket("3", "8")]
    for shown in (rows, rows[1:], rows[1:]):
        take(store, event("8"), *shown)
    take(store, event("9"), ticket("1", "9"))
    assert query(url, "SELECT vanished_at FROM billetweb_tickets WHERE id = '1'") == [(None,)]


def test_events_of_the_list_are_stored_suspected_and_marked(store: Store) -> None:
    """The list's verdicts are remembered from run to run, apart from those inside events."""
    for event_id in "123":
        store.apply(1, plan_listed(event(event_id), None), NOW)
    store.apply(1, plan_absent("123", Verdict(suspects={"3": Suspicion()}), {})[0], NOW)
    assert store.event_suspects() == {"3": Suspicion()}
    assert store.doubted_events(NOW) == 0
    [plan] = plan_absent("123", Verdict(frozenset("3")), store.event_suspects())
    store.apply(2, plan, LATER)
    assert store.event_suspects() == {}
    assert store.present_events().keys() == {"1", "2"}
    assert store.stored_events("34")["3"].vanished_at == LATER


def test_a_failed_read_between_two_is_not_overlooked(store: Store) -> None:
    """Suspicions are forgotten for the events named, or for the list: the others stay."""
    for event_id in "89":
        rows = [ticket(f"{event_id}{n}", event_id) for n in range(4)]
        take(store, event(event_id), *rows)
        take(store, event(event_id), full=True)
    store.apply(1, plan_absent("89", Verdict(suspects={"8": Suspicion()}), {})[0], NOW)
    for shown in (["71", "72", "73"], ["71", "72"]):
        take(store, event("7"), *(ticket(row, "7") for row in shown))
    assert store.event_rows("7").suspects[TICKETS] == {"73": Suspicion()}
    assert store.doubted_events(NOW) == 2
    store.forget_suspects(["8"])
    assert store.doubted_events(NOW) == 1
    assert (store.event_rows("8").suspects[TICKETS], len(store.event_rows("9").suspects[TICKETS])) == ({}, 4)
    assert store.event_suspects() == {"8": Suspicion()}
    store.forget_absent()
    assert store.event_suspects() == {}
    assert store.doubted_events(NOW) == 1


# --- all or nothing


@pytest.mark.parametrize("table", ["billetweb_tickets", "syncd_changes", "syncd_suspects"])
def test_half_a_plan_is_never_left_in_the_mirror(store: Store, url: str, table: str) -> None:
    """Where one statement of many fails, old rows, changes and suspicions all stand; later it works."""
    take(store, event(name="old"), *(ticket(str(n)) for n in range(4)))
    refuse(url, f"INSERT ON {table}")
    before = dump(url)
    new = [*(ticket(str(n), name="new") for n in range(3)), ticket("5", name=CANARY)]
    with pytest.raises(StoreError, match="refused"):
        take(store, event(name="new"), *new, at=LATER)
    assert dump(url) == before
    allow(url, f"INSERT ON {table}")
    take(store, event(name="new"), *new, at=LATER)
    assert store.event_rows("9").rows[TICKETS]["5"].values["name"] == CANARY
    assert store.event_rows("9").suspects[TICKETS] == {"3": Suspicion()}
    assert store.present_events() == {"9": LATER}


def test_no_value_of_a_row_gets_into_an_error(store: Store, database_kind: str) -> None:
    """A statement that fails is told in the driver's words: no value in the message nor in the traceback."""
    broken = structs.replace(event(name=CANARY, description=CANARY), account=None)
    with pytest.raises(StoreError) as caught:
        take(store, broken)
    said = {
        "sqlite": "NOT NULL constraint failed: billetweb_events.account",
        "postgresql": 'null value in column "account" of relation "billetweb_events" violates'
        " not-null constraint",
    }
    assert str(caught.value) == f"the database did not do as asked: {said[database_kind]}"
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_a_locked_database_is_an_error_in_time_and_can_still_be_read(store: Store, url: str) -> None:
    """While another program holds the file, writing fails soon and reading goes on; then writing works."""
    take(store, event())
    with locked(url):
        for write in (
            lambda: take(store, event(name="new")),
            lambda: store.set_paused(True),
            lambda: store.note_request(60.0),
        ):
            with pytest.raises(StoreError, match=r"database is locked|lock timeout"):
                write()
        assert store.present_events().keys() == {"9"}
        assert store.runs(10, None) == []
    assert kinds(take(store, event(name="new"))) == {"9": "updated"}


def test_a_reader_in_mid_query_does_not_keep_the_mirror_from_writing(
    store: Store, url: str, database_kind: str
) -> None:
    """Another program's long query sees the old rows, and the new ones are written meanwhile."""
    take(store, event(name="old"))
    with connected(url) as other:
        other.execute("BEGIN" if database_kind == "sqlite" else "BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert other.execute("SELECT name FROM billetweb_events").fetchall() == [("old",)]
        take(store, event(name="new"))
        assert other.execute("SELECT name FROM billetweb_events").fetchall() == [("old",)]
    assert query(url, "SELECT name FROM billetweb_events") == [("new",)]


def test_a_session_is_not_forgotten_when_its_event_leaves_session_mode(store: Store) -> None:
    """Events with dates still standing are known by them, and no longer when these have vanished."""
    dates = [Session(id=str(n), event_id="9") for n in range(3)]
    take(store, event(), *dates)
    take(store, event("8"))
    assert store.events_with_sessions() == {"9"}
    for _ in range(2):
        take(store, event(), full=True)
    assert store.events_with_sessions() == set()
