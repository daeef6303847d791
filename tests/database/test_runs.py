"""Runs on record: ids that the database gives, runs that a crash ended, and what they say of the past."""

import itertools
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from sqlalchemy import Connection, Engine
from support.reading import event, past_the_lock
from support.real_databases import allow, query, refuse

from syncd.account import record
from syncd.account.record import Ended, Stock
from syncd.account.status import Facts
from syncd.database import rows, runs, state
from syncd.database.engine import Database
from syncd.database.runs import History
from syncd.database.state import Reads, Try
from syncd.errors import StoreError
from syncd.feed.outbox import Outbox
from syncd.mirror.diff import plan_listed
from syncd.model import Counts, Outcome, Peer, Run, RunError
from syncd.run.report import Report

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LATE = NOW + timedelta(days=1)
KEEP_PAST = timedelta(days=30)
TELL = Outbox().ended


@pytest.fixture
def database(opened: Database, url: str) -> Database:
    """Give the database with empty tables."""
    clear(url)
    return opened


def clear(url: str) -> None:
    for table in ("syncd_runs", "syncd_state", "syncd_reads", "billetweb_events"):
        query(url, f"DELETE FROM {table}")


asked = itertools.count(1)


def run(number: int = 0, outcome: Outcome | None = "ok", **fields: Any) -> Run:
    """Give a run not yet on record that ended so many minutes after NOW."""
    given: dict[str, Any] = {"trigger": "interval", "state": "done", "outcome": outcome}
    given |= {"started_at": NOW, "finished_at": NOW + number * MINUTE}
    return Run(id=-next(asked), **(given | fields))


def running(**fields: Any) -> Run:
    return run(outcome=None, state="running", finished_at=None, **fields)


def put(database: Database, *some: Run) -> list[int]:
    """Put runs on record; give them the ids that the database gave."""
    for each in some:
        with database.begin(write=True) as connection:
            each.id = runs.put(connection, each)
    return [each.id for each in some]


def find(database: Database, run_id: int) -> Run | None:
    with database.begin() as connection:
        return runs.find(connection, run_id)


def latest(database: Database, limit: int = 100, before: int | None = None) -> list[Run]:
    with database.begin() as connection:
        return runs.latest(connection, limit, before)


def history_of(database: Database, *some: Run, at: datetime = LATE) -> History:
    put(database, *some)
    with database.begin() as connection:
        return runs.history(connection, at)


def of_a_time_without_a_database(url: str, run_id: int, finished_at: datetime) -> None:
    """Put a failed run on record as 0.3 did where it could open no database: with an id of its own."""
    names = (
        *("id", "trigger", "full", "events", "whole", "accept", "state", "outcome", "started_at"),
        *("finished_at", "requests", "synced", "failed", "inserted", "updated", "unchanged", "vanished"),
        *("returned", "errors", "errors_total"),
    )
    at = finished_at.strftime("%Y-%m-%d %H:%M:%S.%f")
    given = (run_id, "interval", False, "[]", True, False, "done", "failed", at, at, *[0] * 8, "[]", 0)
    columns, marks = ", ".join(f'"{name}"' for name in names), ", ".join("?" for _ in names)
    query(url, f"INSERT INTO syncd_runs ({columns}) VALUES ({marks})", *given)


# --- what is put on record


def test_a_run_is_read_back_as_it_did_not_end(database: Database) -> None:
    """Every field of a run is on record, from its start to its end; only progress is not kept."""
    ended = run(
        3,
        "partial",
        trigger="manual",
        requested_by=Peer(0, "root", 1),
        full=True,
        events=["1", "2"],
        whole=False,
        accept=True,
        duration_s=1.25,
        requests=4,
        synced=5,
        failed=6,
        counts=Counts(1, 2, 3, 4, 5),
        errors=[RunError("event 1", "transport", "no answer", 503), RunError("run", "timeout", "late")],
        errors_total=30,
    )
    started = structs.replace(
        ended, state="running", outcome=None, finished_at=None, errors=[], errors_total=0
    )
    (run_id,) = put(database, started)
    assert find(database, run_id) == started
    ended.id = run_id
    assert put(database, ended) == [run_id]
    assert find(database, run_id) == ended
    assert latest(database) == [ended]
    assert find(database, run_id + 1) is None


def test_a_run_whose_start_was_not_recorded_is_not_on_record_in_the_end(database: Database) -> None:
    """Its end suffices, twice told or not."""
    ended = run(outcome="failed")
    first, again = put(database, ended), put(database, ended)
    assert first == again == [each.id for each in latest(database)]


# --- ids


def test_an_id_is_given_to_two_runs(database: Database) -> None:
    """Each run gets a number of its own, greater than all before it, and keeps it to its end."""
    some = [running(), running(), run(1), running()]
    ids = put(database, *some)
    assert ids == sorted(set(ids))
    assert ids[0] > 0
    ended = [structs.replace(each, state="done", outcome="ok") for each in some]
    assert put(database, *ended) == ids
    assert len(latest(database)) == 4


def test_a_run_that_never_got_on_record_is_found(database: Database) -> None:
    """The number is given in the transaction that writes the run: where that fails, both are gone."""

    def fail(connection: Connection) -> None:
        runs.put(connection, running(trigger="manual"))
        raise StoreError("no")

    for _ in range(2):
        with pytest.raises(StoreError, match="no"), database.begin(write=True) as connection:
            fail(connection)
    (run_id,) = put(database, run(outcome="failed"))
    (found,) = latest(database)
    assert (found.id, found.trigger, found.outcome) == (run_id, "interval", "failed")


def test_runs_of_a_time_without_a_database_spoil_the_numbers(database: Database, url: str) -> None:
    """Numbers go on from the greatest, and never from below 0, whatever 0.3 left there."""
    of_a_time_without_a_database(url, -1_800_000_000, NOW)
    (run_id,) = put(database, run(1))
    assert run_id > 0
    of_a_time_without_a_database(url, -1_800_000_001, NOW)
    assert put(database, run(2), run(3)) == [run_id + 1, run_id + 2]
    assert {each.id for each in latest(database)} == {
        *(-1_800_000_000, -1_800_000_001),
        *range(run_id, run_id + 3),
    }


def test_two_processes_overwrite_each_others_runs(database: Database, url: str) -> None:
    """However their runs begin and end beside each other, each has its own number and its own record."""
    each_has, ids = 20, dict[str, list[int]]()

    def live(user: str, engine: Engine) -> None:
        ids[user] = []
        for number in range(each_has):
            mine = running(requested_by=Peer(number, user, 1))
            with engine.begin() as connection:
                mine.id = runs.put(connection, mine)
            ids[user].append(mine.id)
            mine.state, mine.outcome, mine.finished_at = "done", "ok", NOW
            with engine.begin() as connection:
                assert runs.put(connection, mine) == mine.id

    with past_the_lock(url) as one, past_the_lock(url) as other:
        both = [threading.Thread(target=live, args=of) for of in (("one", one), ("other", other))]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert len({*ids["one"], *ids["other"]}) == 2 * each_has
    for user, own in ids.items():
        for number, run_id in enumerate(own):
            found = find(database, run_id)
            assert found
            assert (found.requested_by, found.outcome) == (Peer(number, user, 1), "ok")


@pytest.mark.postgresql_only
def test_two_transactions_give_one_number(database: Database, url: str) -> None:
    """Runs put on record by transactions that are both under way get different numbers."""
    with past_the_lock(url) as engine, engine.begin() as one, engine.begin() as other:
        ids = [runs.put(connection, running()) for connection in (one, other, one)]
    assert len({*ids}) == 3
    assert {each.id for each in latest(database)} == {*ids}


# --- pages


def test_history_pages_overlap(database: Database) -> None:
    """Runs come newest first, so many as asked for, from before an id."""
    ids = put(database, *(run(number, started_at=NOW + number * MINUTE) for number in range(5)))
    newest = ids[::-1]
    assert [each.id for each in latest(database, 2)] == newest[:2]
    assert [each.id for each in latest(database, 2, newest[1])] == newest[2:4]
    assert [each.id for each in latest(database, 10, newest[3])] == newest[4:]


def test_a_page_ends_between_two_runs_of_one_instant(database: Database) -> None:
    """Runs that began at one instant are told apart by their ids."""
    ids = put(database, *(run(number) for number in range(4)))
    assert [each.id for each in latest(database, 2)] == ids[:1:-1]
    assert [each.id for each in latest(database, 2, ids[2])] == ids[1::-1]


def test_a_run_that_waits_is_history(database: Database) -> None:
    """One that has not begun is found by its id, and is not among the latest."""
    (run_id,) = put(database, run(outcome=None, state="queued", started_at=None, finished_at=None))
    assert (found := find(database, run_id))
    assert found.state == "queued"
    assert latest(database) == []


def test_a_clock_that_was_ahead_heads_every_page(database: Database) -> None:
    """A run of another year stands where it was carried out, and so do those before and after it."""
    ids = put(database, *(run(started_at=NOW + timedelta(days=days)) for days in (0, 900, -900, 1)))
    assert [each.id for each in latest(database)] == ids[::-1]
    assert [each.id for each in latest(database, 9, ids[1])] == ids[:1]


# --- what a crash left


def test_a_run_that_a_crash_ended_runs_for_ever(database: Database) -> None:
    """What is found running is closed as failed and interrupted, what waits as cancelled; the rest stays."""
    waiting = run(outcome=None, state="queued", started_at=None, finished_at=None)
    ids = put(database, run(1), running(), waiting, run(2, "cancelled"))
    before = {run_id: find(database, run_id) for run_id in ids}
    with database.begin(write=True) as connection:
        runs.close_interrupted(connection, NOW + 5 * MINUTE)
    good, closed, cancelled, stopped = (find(database, run_id) for run_id in ids)
    assert closed
    assert (closed.state, closed.outcome, closed.finished_at) == ("done", "failed", NOW + 5 * MINUTE)
    assert [error.kind for error in closed.errors] == ["interrupted"]
    assert closed.errors_total == 1
    assert cancelled
    assert (cancelled.state, cancelled.outcome, cancelled.errors_total) == ("done", "cancelled", 0)
    assert (good, stopped) == (before[ids[0]], before[ids[3]])
    history = history_of(database)
    assert (history.last_run, history.run_count, history.consecutive_failures) == (closed, 3, 1)


def test_of_runs_that_one_crash_ended_the_first_is_the_latest(database: Database) -> None:
    """Runs closed at one instant are told apart by their ids."""
    ids = put(database, running(), running(), running())
    with database.begin(write=True) as connection:
        runs.close_interrupted(connection, NOW)
        last = runs.history(connection, NOW).last_run
    assert last
    assert last.id == ids[-1]


# --- what they say


def test_an_empty_record_claims_something(database: Database) -> None:
    """Without a run on record nothing is claimed."""
    assert history_of(database) == History()


def test_a_run_without_a_database_counts_for_nothing(database: Database, url: str) -> None:
    """Runs that 0.3 put on record with ids below 0 count as runs and as failures."""
    of_a_time_without_a_database(url, -1_800_000_000, NOW)
    history = history_of(database)
    assert (history.run_count, history.consecutive_failures) == (1, 1)
    put(database, run(4))
    of_a_time_without_a_database(url, -1_800_000_001, NOW + 9 * MINUTE)
    history = history_of(database)
    assert (history.run_count, history.consecutive_failures) == (3, 1)
    assert history.last_run
    assert history.last_run.id == -1_800_000_001


def test_a_run_of_named_events_passes_for_the_whole_account(database: Database) -> None:
    """It is the last run, and in nothing else: no success, no freshness, no failure."""
    named = [run(2, whole=False, full=True), run(3, "failed", whole=False)]
    history = history_of(database, run(1, "partial"), *named)
    assert history.last_run == named[-1]
    assert history == History(
        run_count=3,
        last_run=named[-1],
        last_synced_at=NOW + MINUTE,
        whole_outcome="partial",
        latest_outcomes=("failed", "ok", "partial"),
    )


def test_a_clock_that_was_ahead_hides_what_came_after(database: Database) -> None:
    """Runs that ended in the future are on record, and neither the latest nor a success until then."""
    far = NOW + timedelta(days=3650)
    ahead = run(1, full=True, started_at=far, finished_at=far)
    second, third = run(2, "partial"), run(3, "failed")
    history = history_of(database, ahead, second, third)
    assert (history.run_count, history.last_run) == (3, third)
    assert (history.whole_outcome, history.consecutive_failures) == ("failed", 1)
    assert (history.last_success_at, history.last_full_at) == (None, None)
    assert history.last_synced_at == NOW + 2 * MINUTE


def test_a_full_run_that_failed_read_everything(database: Database) -> None:
    """All was read last in the latest full run that was good."""
    history = history_of(database, run(1, "partial", full=True), run(2), run(3, "failed", full=True))
    assert history.last_full_at == NOW + 1 * MINUTE


def test_a_clock_that_was_ahead_makes_each_run_a_recovery(database: Database) -> None:
    """The first good run after a failed one recovers, whatever its clock said, and no other does."""
    far = NOW + timedelta(days=900)
    put(database, run(1), run(outcome="failed", started_at=far, finished_at=far))
    before = []
    for each in (run(2), run(3), run(4)):
        with database.begin() as connection:
            before.append(runs.latest_outcome(connection, but=each.id)[1])
        put(database, each)
    assert before == ["failed", "ok", "ok"]


some_runs = st.lists(
    st.tuples(
        st.sampled_from(["ok", "partial", "failed", "cancelled"]),
        st.booleans(),
        st.sampled_from([[], [], ["1"]]),
    ),
    max_size=8,
)


@given(some_runs)
@settings(max_examples=40, deadline=None)
def test_a_restart_changes_what_status_says(
    opened: Database, url: str, found: list[tuple[Outcome, bool, list[str]]]
) -> None:
    """What is read from the database is what was counted in memory, whatever ran."""
    clear(url)
    counted, read, last_full_at = Facts(started_at=NOW), Facts(started_at=NOW), None
    for number, (outcome, full, events) in enumerate(found, 1):
        ended = run(number, outcome, full=full, events=events, whole=not events)
        counted.count(ended)
        with opened.begin(write=True) as connection:
            ended.id, readings = record.finish(
                connection, Ended(ended), LATE, LATE - KEEP_PAST, last_full_at, tell=TELL
            )
            last_full_at = readings.ended_at
            counted.update(record.stock(connection, LATE - KEEP_PAST, 500))
    with opened.begin(write=True) as connection:
        past = record.look_back(connection, LATE, LATE - KEEP_PAST, 500, tell=TELL)
    read.load(past)
    if not found:
        counted.update(Stock(read_figures(opened), [], 0, 0))
    remembered = [name for name in Facts.__struct_fields__ if name not in GROWN]
    assert {name: getattr(read, name) for name in remembered} == {
        name: getattr(counted, name) for name in remembered
    }
    whole = [NOW + number * MINUTE for number, one in enumerate(found, 1) if one[1] and not one[2]]
    good = [at for at in whole if found[int((at - NOW) / MINUTE) - 1][0] in ("ok", "partial")]
    assert past.last_full_at == last_full_at == (good[-1] if good else None)


GROWN = ("now", "totals", "rows", "database_bytes")
"""What is this process's own, or grows by itself."""


def read_figures(database: Database) -> rows.Figures:
    with database.begin() as connection:
        return rows.figures(connection, LATE - KEEP_PAST)


def test_half_of_a_runs_end_is_on_record(database: Database, url: str) -> None:
    """The run, the reads of unchanged events and the tries are put there together, or not at all."""
    with database.begin(write=True) as connection:
        rows.write_plan(connection, rows.Writing(1, NOW), plan_listed(event("1"), None, NOW))

    def finish(ended: Run) -> None:
        report = Report(ended, redact=str, requests=lambda: 0)
        report.read_at = {"1": NOW + MINUTE}
        report.tries = {"1": Try(NOW, 2)}
        with database.begin(write=True) as connection:
            record.finish(connection, Ended(ended, report), LATE, NOW, None, tell=TELL)

    def on_record() -> tuple[object, ...]:
        with database.begin() as connection:
            tries = state.reads(connection).get("1", Reads())
            return rows.present_events(connection)["1"], tries.failures, len(runs.latest(connection, 9, None))

    before = on_record()
    for written in (
        "INSERT ON syncd_runs",
        "UPDATE ON billetweb_events",
        "INSERT ON syncd_reads",
        "INSERT ON syncd_state",
    ):
        refuse(url, written)
        with pytest.raises(StoreError, match="refused"):
            finish(run(2))
        assert on_record() == before == (None, 0, 0)
        allow(url, written)
    finish(run(2))
    assert on_record() == (NOW + MINUTE, 2, 1)
