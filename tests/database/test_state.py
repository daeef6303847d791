"""What one run tells the next, over any restart: named values, the requests sent, the reads of events."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.real_databases import query, url_at

from syncd.database import state
from syncd.database.engine import Database
from syncd.database.state import Limited, Pause, Readings, Reads, Try
from syncd.mirror.agenda import Pace, budget
from syncd.model import Quiet

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
WINDOW_S = 60.0


@pytest.fixture
def database(opened: Database, url: str) -> Database:
    """Give the database with empty tables."""
    for table in ("syncd_state", "syncd_requests", "syncd_reads"):
        query(url, f"DELETE FROM {table}")
    return opened


def get(database: Database, name: str, kind: Any) -> Any:
    with database.begin() as connection:
        return state.get(connection, name, kind)


def put(database: Database, name: str, value: object) -> None:
    with database.begin(write=True) as connection:
        state.put(connection, name, value)


def reads(database: Database) -> dict[str, Reads]:
    with database.begin() as connection:
        return state.reads(connection)


# --- named values

BUDGET = budget(
    100,
    per_minute=60,
    interval=timedelta(minutes=15),
    run_timeout=timedelta(minutes=10),
    full_every=timedelta(days=1),
)
VALUES = {
    state.PAUSED: True,
    state.QUIET: Quiet(
        kind="credentials", since=NOW, until=NOW + timedelta(days=36500), status=401, key="00$ff"
    ),
    state.LIMITED: Limited(NOW + timedelta(microseconds=1), "00$ff"),
    state.SEEN: [-(2**63), 0, 2**63 - 1],
    state.PACE: Pace(budget=BUDGET, live=9, cost=21, waiting=3, increment="failed"),
    state.READINGS: Readings(NOW, ended_at=NOW - MINUTE),
    state.KEPT: "minimal",
    state.TRACES: True,
}


def test_a_value_changes_on_its_way_to_the_next_run(database: Database) -> None:
    """Every kind of value comes back as it was, by its name alone."""
    for name, value in VALUES.items():
        put(database, name, value)
    for name, value in VALUES.items():
        kind = list[int] if name == state.SEEN else type(value)
        assert get(database, name, kind) == value


def test_a_value_is_remembered_beside_the_one_before(database: Database) -> None:
    """The latest value of a name counts, and none where it was forgotten; others stay."""
    put(database, state.KEPT, "full")
    for name, value in (("a", 1), ("a", 2), ("a", None), ("a", None), ("b", 3)):
        put(database, name, value)
        assert get(database, name, int) == value
    with database.begin() as connection:
        assert state.get(connection, state.KEPT, str) == "full"
        assert state.get(connection, "a", int) is None


def test_nothing_on_record_is_taken_for_something(database: Database) -> None:
    """A new database is not paused, and remembers nothing."""
    for name, value in VALUES.items():
        assert get(database, name, type(value)) is None


def test_false_is_taken_for_nothing(database: Database) -> None:
    """No, nought and nothing at all are told apart: an earlier version wrote down that it was not paused."""
    falses: tuple[object, ...] = (False, 0, "", [])
    for value in falses:
        put(database, "a", value)
        assert get(database, "a", type(value)) == value
        assert get(database, "a", type(value)) is not None


def test_a_database_takes_no_room(database: Database) -> None:
    """The size counts the file, or on PostgreSQL syncd's tables with their indexes."""
    with database.begin() as connection:
        size = state.size_bytes(connection)
    assert 50_000 < size < 5_000_000


@pytest.mark.parametrize(
    ("noted", "pause"),
    [
        (None, None),
        (False, None),
        (True, Pause()),  # as an earlier version did
        (Pause(NOW, "alice"), Pause(NOW, "alice")),
    ],
)
def test_an_earlier_versions_pause_is_lost(database: Database, noted: object, pause: Pause | None) -> None:
    """A pause is read as it was noted, by an earlier version too."""
    put(database, state.PAUSED, noted)
    with database.begin() as connection:
        assert state.pause(connection) == pause


def test_a_pause_ends_with_a_restart(tmp_path: Path, database_kind: str) -> None:
    """The flag is in the database, set and unset any number of times."""
    url = url_at(tmp_path / "mirror.db")
    for wanted in (True, True, None, None, True):
        database = Database(url)
        database.open()
        put(database, state.PAUSED, wanted)
        database.close()
        database = Database(url)
        database.open()
        assert get(database, state.PAUSED, bool) is wanted
        database.close()


# --- requests


def note(database: Database, *at: float) -> None:
    """Note requests, so many seconds after NOW."""
    for seconds in at:
        with database.begin(write=True) as connection:
            state.note_request(connection, NOW.timestamp() + seconds)


def ages(database: Database, at: float) -> list[float]:
    with database.begin() as connection:
        return sorted(state.request_ages_s(connection, NOW.timestamp() + at, WINDOW_S))


def forget(database: Database, at: float) -> None:
    with database.begin(write=True) as connection:
        state.forget_requests(connection, NOW.timestamp() + at, WINDOW_S)


def test_a_restart_forgets_the_requests_of_the_last_minute(database: Database, url: str) -> None:
    """Requests are given with their age, those beyond the window are not, and their notes go away."""
    note(database, 0, 25, 50)
    assert ages(database, 75) == [25.0, 50.0]
    note(database, 90)
    assert ages(database, 90) == [0.0, 40.0]
    forget(database, 90)
    assert query(url, "SELECT COUNT(*) FROM syncd_requests") == [(2,)]


def test_two_requests_at_one_instant_fail(database: Database) -> None:
    """The clock may stand still between two of them."""
    note(database, 0, 0)
    assert ages(database, 0) == [0.0]


def test_a_clock_set_back_makes_a_request_younger_than_now(database: Database) -> None:
    """A request of the future counts as sent now; one of a far future is forgotten with the next run."""
    note(database, 365 * 86400, 30)
    forget(database, 0)
    assert ages(database, 0) == [0.0]


# --- reads of events


def mark_due(database: Database, at: datetime, *ids: str) -> None:
    with database.begin(write=True) as connection:
        state.mark_due(connection, ids, at)


def note_tries(database: Database, **tries: Try) -> None:
    with database.begin(write=True) as connection:
        state.note_tries(connection, tries)


def test_what_made_an_event_due_is_lost(database: Database) -> None:
    """It is remembered until the event was read, for each event by itself; the latest instant counts."""
    mark_due(database, NOW, "b", "a", "b")
    mark_due(database, NOW + MINUTE, "b")
    assert reads(database) == {"a": Reads(due_at=NOW), "b": Reads(due_at=NOW + MINUTE)}
    with database.begin(write=True) as connection:
        state.mark_read(connection, "b")
        state.mark_read(connection, "unknown")
    assert reads(database) == {"a": Reads(due_at=NOW), "b": Reads()}
    mark_due(database, NOW)
    assert reads(database)["b"] == Reads()


def test_tries_of_an_event_are_lost(database: Database) -> None:
    """When it was tried, and how often in a row it failed, is remembered until it ends well."""
    note_tries(database, a=Try(NOW, 1), b=Try(NOW, 3))
    note_tries(database, a=Try(NOW + MINUTE, 2))
    assert reads(database) == {
        "a": Reads(tried_at=NOW + MINUTE, failures=2),
        "b": Reads(tried_at=NOW, failures=3),
    }
    note_tries(database, b=Try())
    assert reads(database)["b"] == Reads()
    note_tries(database)
    assert reads(database)["a"].failures == 2


def test_one_thing_remembered_of_an_event_overwrites_another(database: Database, url: str) -> None:
    """Due, tried, and the reads of its attendees are each for themselves."""
    query(
        url,
        "INSERT INTO syncd_reads (event_id, attendees_at, attendees_full_at) VALUES ('a', ?, ?)",
        *("2027-03-01 11:00:00.000000", "2027-03-01 10:00:00.000000"),
    )
    known = Reads(attendees_at=NOW - 60 * MINUTE, attendees_full_at=NOW - 120 * MINUTE)
    assert reads(database) == {"a": known}
    mark_due(database, NOW, "a")
    note_tries(database, a=Try(NOW, 2))
    assert reads(database) == {
        "a": Reads(NOW, known.attendees_at, known.attendees_full_at, tried_at=NOW, failures=2)
    }
    with database.begin(write=True) as connection:
        state.mark_read(connection, "a")
    note_tries(database, a=Try())
    assert reads(database) == {"a": known}


@pytest.mark.parametrize(
    ("at", "recent"),
    [
        (None, False),
        (NOW, True),
        (NOW - MINUTE + timedelta(microseconds=1), True),
        (NOW - MINUTE, False),
        (NOW + timedelta(microseconds=1), False),
    ],
)
def test_a_wrong_clock_makes_something_recent(at: datetime | None, recent: bool) -> None:
    """Recent is what is less than so long ago; an instant yet to come was read off a clock that was wrong."""
    assert state.is_recent(at, NOW, MINUTE) is recent
