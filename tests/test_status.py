"""What syncd remembers of its runs, and the health that follows from it."""

from datetime import UTC, datetime, timedelta

import pytest

from syncd.model import Counts, Outcome, Run, RunError
from syncd.status import Health, Record, last_error
from syncd.store import History

START = datetime(2027, 5, 8, 10, 0, tzinfo=UTC)
INTERVAL = timedelta(minutes=15)
MOMENT = timedelta(microseconds=1)


class Clock:
    """The time of day, moved on by the test."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at


def fresh(clock: Clock) -> Record:
    return Record(started_at=START, now=clock)


def ended(outcome: Outcome, at: datetime = START, **more: object) -> Run:
    fields = {"id": 1, "trigger": "interval", "state": "done", "outcome": outcome, "finished_at": at} | more
    return Run(**fields)  # type: ignore[arg-type]


def after(*outcomes: Outcome, age: timedelta = timedelta(0), refused: bool = False) -> tuple[Health, str]:
    """Return the health when these runs have ended, the last one so long ago."""
    clock = Clock()
    record = fresh(clock)
    for outcome in outcomes:
        record.take(ended(outcome, clock.at))
    clock.at += age
    return record.health(INTERVAL, refused=refused)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], ("degraded", "no successful run yet")),
        (["ok"], ("ok", "")),
        (["partial"], ("degraded", "no successful run yet")),
        (["failed"], ("degraded", "no successful run yet")),
        (["failed"] * 2, ("degraded", "no successful run yet")),
        (["ok", "partial"], ("degraded", "the last run ended partial")),
        (["ok", "failed"], ("degraded", "the last run ended failed")),
        (["ok", "failed", "failed"], ("degraded", "the last run ended failed")),
        (["failed"] * 3, ("failing", "3 runs in a row failed")),
        (["ok", "failed", "failed", "failed"], ("failing", "3 runs in a row failed")),
        (["failed"] * 12, ("failing", "12 runs in a row failed")),
        (["failed", "failed", "partial", "failed"], ("degraded", "no successful run yet")),
        (["ok", "failed", "failed", "partial", "failed"], ("degraded", "the last run ended failed")),
        (["failed", "failed", "failed", "ok"], ("ok", "")),
    ],
)
def test_three_failures_in_a_row_and_not_two_wake_somebody(
    outcomes: list[Outcome], expected: tuple[Health, str]
) -> None:
    """Health is judged by the last run, and fails at the third failure in a row."""
    assert after(*outcomes) == expected


@pytest.mark.parametrize(
    ("outcomes", "age", "expected"),
    [
        (["ok"], 2 * INTERVAL, ("ok", "")),
        (["ok"], 2 * INTERVAL + MOMENT, ("degraded", "the data are 30 min old, over 2 intervals")),
        (["ok"], 4 * INTERVAL, ("degraded", "the data are 60 min old, over 2 intervals")),
        (["ok"], 4 * INTERVAL + MOMENT, ("failing", "the data are 60 min old, over 4 intervals")),
        (["ok"], timedelta(days=30), ("failing", "the data are 43200 min old, over 4 intervals")),
        (["ok", "failed"], 5 * INTERVAL, ("failing", "the data are 75 min old, over 4 intervals")),
        (["partial"], 5 * INTERVAL, ("failing", "the data are 75 min old, over 4 intervals")),
        (["failed"], 5 * INTERVAL, ("degraded", "no successful run yet")),
        (["ok"], -5 * INTERVAL, ("ok", "")),
    ],
)
def test_data_that_grow_old_are_noticed(
    outcomes: list[Outcome], age: timedelta, expected: tuple[Health, str]
) -> None:
    """Data are bad when older than 2 intervals and worse than 4, by the end of the run that brought them."""
    assert after(*outcomes, age=age) == expected


def test_data_age_by_the_interval_that_is_set() -> None:
    """An hour is nothing to a daily run and too long for one every ten minutes."""
    clock = Clock()
    record = fresh(clock)
    record.take(ended("ok"))
    clock.at += timedelta(hours=1)
    healths = [record.health(timedelta(minutes=each), refused=False)[0] for each in (1440, 25, 10)]
    assert healths == ["ok", "degraded", "failing"]


def test_a_failed_run_does_not_make_old_data_young() -> None:
    """The age of the data counts from the last run that brought any, not from the last attempt."""
    clock = Clock()
    record = fresh(clock)
    record.take(ended("ok"))
    for _ in range(2):
        clock.at += 2.5 * INTERVAL
        record.take(ended("failed", clock.at))
    assert record.health(INTERVAL, refused=False) == (
        "failing",
        "the data are 75 min old, over 4 intervals",
    )
    record.take(ended("partial", clock.at))
    assert record.health(INTERVAL, refused=False) == ("degraded", "the last run ended partial")
    assert record.last_success_at == START


@pytest.mark.parametrize("outcomes", [[], ["ok"], ["failed"] * 3])
def test_refused_credentials_fail_at_once(outcomes: list[Outcome]) -> None:
    """No number of good runs hides that Billetweb refuses the key."""
    assert after(*outcomes, refused=True) == ("failing", "Billetweb refused the user or the key")


@pytest.mark.parametrize("before", [[], ["ok"], ["ok", "failed", "failed"], ["failed"] * 3])
@pytest.mark.parametrize(
    "aside",
    [
        ended("ok", whole=False, full=True),
        ended("partial", whole=False),
        ended("failed", whole=False),
        ended("cancelled", full=True),
        ended("cancelled", whole=False),
    ],
    ids=["events ok", "events partial", "events failed", "cancelled", "events cancelled"],
)
def test_a_run_aside_tells_nothing_of_the_whole(before: list[Outcome], aside: Run) -> None:
    """A run of named events, and one that was cancelled, is counted and leaves health alone."""
    record = fresh(Clock())
    for outcome in before:
        record.take(ended(outcome))

    def judged() -> tuple[object, ...]:
        return (
            record.health(INTERVAL, refused=False),
            record.consecutive_failures,
            record.last_success_at,
            record.synced_at,
            record.last_full_at,
        )

    was = judged()
    record.take(aside)
    assert judged() == was
    assert record.last_run is aside
    assert record.run_count == len(before) + 1


def test_what_runs_did_is_added_up() -> None:
    """Runs are counted by trigger and outcome, rows by what became of them; a full run is remembered."""
    record = fresh(Clock())
    record.take(ended("ok", counts=Counts(inserted=3, unchanged=1), full=True))
    record.take(ended("ok", START + INTERVAL, counts=Counts(updated=2, unchanged=4)))
    record.take(ended("failed", trigger="manual", whole=False))
    assert record.totals == {("interval", "ok"): 2, ("manual", "failed"): 1}
    assert record.rows == {"inserted": 3, "updated": 2, "unchanged": 5, "vanished": 0, "returned": 0}
    assert record.last_full_at == START
    assert record.last_success_at == START + INTERVAL


def test_a_partial_run_is_full_and_no_success() -> None:
    """A full run that left some events behind was full all the same, and is not a success."""
    record = fresh(Clock())
    record.take(ended("partial", full=True))
    assert (record.last_full_at, record.synced_at, record.last_success_at) == (START, START, None)


def test_a_restart_forgets_no_failure() -> None:
    """The third failure in a row is the third also where syncd was started anew between them."""
    record = fresh(Clock())
    last = ended("failed", id=7)
    record.take_over(
        History(
            last_id=7,
            run_count=7,
            last_run=last,
            last_success_at=START - 2 * INTERVAL,
            last_synced_at=START - INTERVAL,
            last_full_at=START - 3 * INTERVAL,
            whole_outcome="failed",
            consecutive_failures=2,
        )
    )
    assert record.health(INTERVAL, refused=False) == ("degraded", "the last run ended failed")
    assert (record.run_count, record.last_run) == (7, last)
    assert (record.last_success_at, record.synced_at) == (START - 2 * INTERVAL, START - INTERVAL)
    assert record.last_full_at == START - 3 * INTERVAL
    assert record.totals == {}
    record.take(ended("failed", id=8))
    assert record.health(INTERVAL, refused=False) == ("failing", "3 runs in a row failed")


def test_runs_before_the_database_could_be_opened_are_kept() -> None:
    """Failures of this process come on top of those on record, and its last run stays the last."""
    record = fresh(Clock())
    own = ended("failed", id=-5)
    record.take(own)
    record.take_over(History(run_count=4, last_run=ended("ok"), last_success_at=START, whole_outcome="ok"))
    assert (record.run_count, record.consecutive_failures, record.last_run) == (5, 1, own)
    assert record.health(INTERVAL, refused=False) == ("degraded", "the last run ended failed")


def test_an_empty_history_is_taken_over() -> None:
    """The first start of all shows no run and no success."""
    record = fresh(Clock())
    record.take_over(History())
    assert record.health(INTERVAL, refused=False) == ("degraded", "no successful run yet")
    assert (record.run_count, record.last_run, record.synced_at) == (0, None, None)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (None, None),
        ([], None),
        (["no answer"], "event 9: no answer"),
        (["no answer", "too late"], "event 9: no answer (and 1 more)"),
        (["line 1: bad\nline 2: worse\t\r\n"], "event 9: line 1: bad line 2: worse"),
    ],
)
def test_the_last_error_is_one_line_and_goes_with_an_ok_run(
    messages: list[str] | None, expected: str | None
) -> None:
    """The last error is the latest run's first one, on a line; there is none after an ok run."""
    run = None
    if messages is not None:
        run = ended("failed" if messages else "ok")
        for message in messages:
            run.add_error(RunError("event 9", "transport", message))
    assert last_error(run) == expected
