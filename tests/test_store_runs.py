"""What outlives a restart besides the mirror: runs, the pause, the requests sent; and what status shows."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from real_databases import query, url_at

from syncd.database import Database
from syncd.errors import StoreError
from syncd.model import Counts, Event, Outcome, Peer, Run, RunError
from syncd.reconcile import plan_listed
from syncd.status import Record
from syncd.store import History, Store

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, database_kind: str) -> str:
    return url_at(tmp_path_factory.mktemp("runs") / "mirror.db")


@pytest.fixture(scope="module")
def opened(url: str) -> Iterator[Store]:
    store = Store(Database(url))
    yield store
    store.close()


@pytest.fixture
def store(opened: Store, url: str) -> Store:
    """Give the store with empty tables."""
    clear(url)
    return opened


def clear(url: str) -> None:
    for table in ("syncd_runs", "syncd_state", "syncd_requests", "billetweb_events"):
        query(url, f"DELETE FROM {table}")


def run(run_id: int, outcome: Outcome | None = "ok", **fields: Any) -> Run:
    """Give a run that ended so many minutes after NOW as its id says, unless said otherwise."""
    values: dict[str, Any] = {"trigger": "interval", "state": "done", "outcome": outcome}
    values |= {"started_at": NOW, "finished_at": NOW + max(run_id, 0) * MINUTE}
    return Run(id=run_id, **(values | fields))


def history_of(store: Store, *runs: Run) -> History:
    for each in runs:
        store.finish_run(each, {})
    return store.open_history(NOW + timedelta(days=1))


# --- runs


def test_a_run_is_read_back_as_it_ended(store: Store) -> None:
    """Every field of a run is on record, from its start to its end; only progress is not kept."""
    ended = run(
        3,
        "partial",
        trigger="manual",
        requested_by=Peer(0, "root", 1),
        full=True,
        events=["1", "2"],
        duration_s=1.25,
        requests=4,
        synced=5,
        failed=6,
        counts=Counts(1, 2, 3, 4, 5),
        errors=[RunError("event 1", "transport", "no answer")],
        errors_total=30,
    )
    started = structs.replace(
        ended, state="running", outcome=None, finished_at=None, errors=[], errors_total=0
    )
    store.start_run(started)
    assert store.run(3) == started
    store.finish_run(ended, {})
    assert store.run(3) == ended
    assert store.runs(10, None) == [ended]
    assert store.run(4) is None


def test_a_run_whose_start_was_not_recorded_is_on_record_in_the_end(store: Store) -> None:
    """Its end suffices, twice told or not."""
    for _ in range(2):
        store.finish_run(run(-5, "failed"), {})
    assert [each.id for each in store.runs(10, None)] == [-5]


def test_an_id_is_not_given_to_two_runs(store: Store) -> None:
    """Starting a run with an id on record is refused, and the earlier run stays."""
    store.finish_run(run(1), {})
    with pytest.raises(StoreError, match=r"UNIQUE constraint failed: syncd_runs\.id|syncd_runs_pkey"):
        store.start_run(run(1, trigger="manual"))
    assert store.run(1) == run(1)


def test_history_pages_do_not_overlap(store: Store) -> None:
    """Runs come newest first, so many as asked for, from before an id."""
    for number in range(1, 6):
        store.finish_run(run(number), {})
    assert [each.id for each in store.runs(2, None)] == [5, 4]
    assert [each.id for each in store.runs(2, 4)] == [3, 2]
    assert [each.id for each in store.runs(10, 2)] == [1]


def test_a_run_that_a_crash_ended_does_not_run_for_ever(store: Store) -> None:
    """What is found running at the start is closed as failed and interrupted; what had ended stays."""
    store.finish_run(run(1), {})
    store.start_run(run(2, state="running", outcome=None, finished_at=None))
    history = store.open_history(NOW + 5 * MINUTE)
    closed = store.run(2)
    assert closed
    assert (closed.state, closed.outcome, closed.finished_at) == ("done", "failed", NOW + 5 * MINUTE)
    assert [error.kind for error in closed.errors] == ["interrupted"]
    assert closed.errors_total == 1
    assert (history.last_run, history.run_count, history.consecutive_failures) == (closed, 2, 1)
    assert store.run(1) == run(1)


def test_of_runs_that_one_crash_ended_the_last_is_the_latest(store: Store) -> None:
    """Runs closed at one instant are told apart by their ids."""
    for number in (7, 9, 8):
        store.start_run(run(number, state="running", outcome=None, finished_at=None))
    assert (last := store.open_history(NOW).last_run)
    assert last.id == 9


def test_an_empty_record_is_a_start_from_nothing(store: Store) -> None:
    """Without a run on record nothing is claimed."""
    assert history_of(store) == History()


def test_a_run_without_a_database_does_not_spoil_the_numbers(store: Store) -> None:
    """Negative ids count as runs and as failures, but ids go on from the greatest, and never from below 0."""
    history = history_of(store, run(-1_800_000_000, "failed", finished_at=NOW))
    assert (history.last_id, history.run_count, history.consecutive_failures) == (0, 1, 1)
    history = history_of(store, run(4), run(-1_800_000_001, "failed", finished_at=NOW + 9 * MINUTE))
    assert (history.last_id, history.run_count, history.consecutive_failures) == (4, 3, 1)
    assert history.last_run
    assert history.last_run.id == -1_800_000_001


def test_a_run_of_named_events_does_not_pass_for_the_whole_account(store: Store) -> None:
    """It is the last run, and in nothing else: no success, no freshness, no failure."""
    named = [run(2, whole=False, full=True), run(3, "failed", whole=False)]
    history = history_of(store, run(1, "partial"), *named)
    assert history.last_run == named[-1]
    assert history == History(
        last_id=3,
        run_count=3,
        last_run=named[-1],
        last_synced_at=NOW + MINUTE,
        whole_outcome="partial",
    )


runs = st.lists(
    st.tuples(
        st.sampled_from(["ok", "partial", "failed", "cancelled"]),
        st.booleans(),
        st.sampled_from([[], [], ["1"]]),
    ),
    max_size=8,
)


@given(runs)
@settings(max_examples=40, deadline=None)
def test_a_restart_does_not_change_what_status_says(
    opened: Store, url: str, found: list[tuple[Outcome, bool, list[str]]]
) -> None:
    """The record read from the database is the one that was counted in memory, whatever ran."""
    clear(url)
    counted, read = Record(started_at=NOW), Record(started_at=NOW)
    ended = [
        run(number, outcome, full=full, events=events)
        for number, (outcome, full, events) in enumerate(found, 1)
    ]
    for each in ended:
        counted.take(each)
    history = history_of(opened, *ended)
    read.take_over(history)
    remembered = [name for name in Record.__struct_fields__ if name not in ("now", "totals", "rows")]
    assert {name: getattr(read, name) for name in remembered} == {
        name: getattr(counted, name) for name in remembered
    }
    assert history.last_id == len(found)


def test_events_in_which_nothing_changed_are_not_taken_for_stale(store: Store) -> None:
    """The end of a run notes when they were read, together with the run or not at all."""
    for event_id in "12":
        store.apply(1, plan_listed(Event(id=event_id, account="1"), None), NOW)
    store.finish_run(run(1), {"1": NOW + MINUTE})
    assert store.present_events() == {"1": NOW + MINUTE, "2": None}
    with pytest.raises(StoreError):
        store.finish_run(run(2, started_at=NOW.replace(tzinfo=None)), {"2": NOW})
    assert store.present_events()["2"] is None


# --- the pause and the requests


def test_an_end_on_record_late_sets_figures_back(store: Store) -> None:
    """A run whose end comes to record after a later run's leaves the later instant."""
    store.apply(1, plan_listed(Event(id="9", account="1"), None), NOW)
    with freeze_time(NOW + 3 * MINUTE):
        for at in (NOW + 2 * MINUTE, NOW + MINUTE):
            store.finish_run(run(1), {"9": at})
    assert store.present_events() == {"9": NOW + 2 * MINUTE}


def test_a_clock_that_was_ahead_keeps_figures_fresh_for_years(store: Store) -> None:
    """An instant of a read that is yet to come gives way to that of any read."""
    store.apply(1, plan_listed(Event(id="9", account="1"), None), NOW)
    for at in (NOW + timedelta(days=3650), NOW + MINUTE):
        with freeze_time(at):
            store.finish_run(run(1), {"9": at})
    assert store.present_events() == {"9": NOW + MINUTE}


def test_a_clock_that_was_ahead_hides_what_came_after(store: Store) -> None:
    """Runs that ended in the future are on record, and neither the latest nor a success until then."""
    far = NOW + timedelta(days=3650)
    ahead = run(1, full=True, started_at=far, finished_at=far)
    history = history_of(store, ahead, run(2, "partial"), run(3, "failed"))
    assert (history.last_id, history.run_count) == (3, 3)
    assert history.last_run
    assert (history.last_run.id, history.whole_outcome, history.consecutive_failures) == (3, "failed", 1)
    assert (history.last_success_at, history.last_full_at) == (None, None)
    assert history.last_synced_at == NOW + 2 * MINUTE


def test_a_pause_survives_a_restart(tmp_path: Path, database_kind: str) -> None:
    """The flag is in the database, set and unset any number of times."""
    url = url_at(tmp_path / "mirror.db")
    for wanted in (True, True, False, False, True):
        store = Store(Database(url))
        store.set_paused(wanted)
        store.close()
        store = Store(Database(url))
        assert store.paused() is wanted
        store.close()


def test_a_new_database_is_not_paused(store: Store) -> None:
    """Nothing on record means that scheduled runs go on."""
    assert store.paused() is False


def test_a_restart_does_not_forget_the_requests_of_the_last_minute(store: Store, url: str) -> None:
    """Requests are given with their age, those beyond the window are not, and their notes go away."""
    with freeze_time(NOW) as clock:
        for _ in range(3):
            store.note_request(60.0)
            clock.tick(25)
        assert sorted(store.request_ages_s(60.0)) == [25.0, 50.0]
        clock.tick(15)
        store.note_request(60.0)
        assert sorted(store.request_ages_s(60.0)) == [0.0, 40.0]
    assert query(url, "SELECT COUNT(*) FROM syncd_requests") == [(2,)]


def test_two_requests_at_one_instant_do_not_fail(store: Store) -> None:
    """The clock may stand still between two of them."""
    with freeze_time(NOW):
        store.note_request(60.0)
        store.note_request(60.0)
        assert store.request_ages_s(60.0) == [0.0]


def test_a_clock_set_back_makes_no_request_younger_than_now(store: Store) -> None:
    """A request of the future counts as sent now; one of a far future is forgotten with the next request."""
    with freeze_time(NOW + timedelta(days=365)):
        store.note_request(60.0)
    with freeze_time(NOW + timedelta(seconds=30)):
        store.note_request(60.0)
    with freeze_time(NOW):
        assert store.request_ages_s(60.0) == [0.0]


# --- events as status shows them


def test_events_shown_are_those_that_are_live(store: Store) -> None:
    """An event is live until it has ended before the instant; one that does not say when stays live."""
    ends = {"1": NOW - MINUTE, "2": NOW + MINUTE, "3": None, "4": NOW}
    for event_id, ends_at in ends.items():
        event = Event(id=event_id, account="1", starts_at=ends_at and NOW - 5 * MINUTE, ends_at=ends_at)
        store.apply(1, plan_listed(structs.replace(event, is_full=event_id in "12"), None), NOW)
    for event_id, starts_at in {"5": NOW + MINUTE, "6": NOW - MINUTE}.items():
        without_end = Event(id=event_id, account="1", starts_at=starts_at)
        store.apply(1, plan_listed(without_end, None), NOW)
    assert [shown["id"] for shown in store.events(NOW)] == ["3", "2", "5"]
    assert [shown["id"] for shown in store.events(None)] == ["3", "1", "2", "4", "6", "5"]
    figures = store.figures(NOW)
    assert (figures.events, figures.full) == (3, 1)


def test_the_age_of_a_figure_is_that_of_its_read(store: Store) -> None:
    """The age counts from the last good read, is unknown without one, and never negative."""
    for event_id in "12":
        store.apply(1, plan_listed(Event(id=event_id, account="1"), None), NOW)
    store.finish_run(run(1), {"1": NOW})
    with freeze_time(NOW + MINUTE):
        assert [shown["age_s"] for shown in store.events(None)] == [60.0, None]
    with freeze_time(NOW - MINUTE):
        assert store.events(None)[0]["age_s"] == 0.0
