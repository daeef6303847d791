"""What syncd remembers of its runs, and the health that follows from it."""

from datetime import UTC, datetime, timedelta

import pytest
from conftest import MakeConfig, WaitedFor, rig_on

from syncd.account.record import Past, Stock
from syncd.account.status import Facts, Health, budget_status, last_error
from syncd.database.rows import Figures
from syncd.database.runs import LATEST, History
from syncd.database.state import Readings
from syncd.mirror.agenda import Budget, Pace
from syncd.model import Counts, Outcome, Run, RunError

START = datetime(2027, 5, 8, 10, 0, tzinfo=UTC)
INTERVAL = timedelta(minutes=15)
MOMENT = timedelta(microseconds=1)


class Clock:
    """The time of day, moved on by the test."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at


def fresh(clock: Clock) -> Facts:
    return Facts(started_at=START, now=clock)


def past(
    history: History | None = None,
    *,
    figures: Figures | None = None,
    doubts: int = 0,
    readings: Readings | None = None,
    pace: Pace | None = None,
) -> Past:
    """Return what a database says that knows no more than this."""
    return Past(
        history=history or History(),
        stock=Stock(figures or Figures(0, 0, 0, None), [], doubts, 0),
        paused=None,
        readings=readings,
        pace=pace,
        quiet=None,
        request_ages_s=[],
    )


def ended(outcome: Outcome, at: datetime = START, **more: object) -> Run:
    fields = {"id": 1, "trigger": "interval", "state": "done", "outcome": outcome, "finished_at": at} | more
    return Run(**fields)  # type: ignore[arg-type]


def after(*outcomes: Outcome, age: timedelta = timedelta(0), refused: bool = False) -> tuple[Health, str]:
    """Return the health when these runs have ended, the last one so long ago."""
    clock = Clock()
    facts = fresh(clock)
    for outcome in outcomes:
        facts.count(ended(outcome, clock.at))
    clock.at += age
    return facts.health(INTERVAL, refused=refused)


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
        (["ok"], 4 * INTERVAL, ("degraded", "the data are 1 h old, over 2 intervals")),
        (["ok"], 4 * INTERVAL + MOMENT, ("failing", "the data are 1 h old, over 4 intervals")),
        (["ok"], timedelta(days=30), ("failing", "the data are 30 d old, over 4 intervals")),
        (["ok", "failed"], 5 * INTERVAL, ("failing", "the data are 1 h 15 min old, over 4 intervals")),
        (["partial"], 5 * INTERVAL, ("failing", "the data are 1 h 15 min old, over 4 intervals")),
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
    facts = fresh(clock)
    facts.count(ended("ok"))
    clock.at += timedelta(hours=1)
    healths = [facts.health(timedelta(minutes=each), refused=False)[0] for each in (1440, 25, 10)]
    assert healths == ["ok", "degraded", "failing"]


def test_a_failed_run_does_not_make_old_data_young() -> None:
    """The age of the data counts from the last run that brought any, not from the last attempt."""
    clock = Clock()
    facts = fresh(clock)
    facts.count(ended("ok"))
    for _ in range(2):
        clock.at += 2.5 * INTERVAL
        facts.count(ended("failed", clock.at))
    assert facts.health(INTERVAL, refused=False) == (
        "failing",
        "the data are 1 h 15 min old, over 4 intervals",
    )
    facts.count(ended("partial", clock.at))
    assert facts.health(INTERVAL, refused=False) == ("degraded", "the last run ended partial")
    assert facts.last_success_at == START


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
    facts = fresh(Clock())
    for outcome in before:
        facts.count(ended(outcome))

    def judged() -> tuple[object, ...]:
        return (
            facts.health(INTERVAL, refused=False),
            facts.consecutive_failures,
            facts.last_success_at,
            facts.synced_at,
        )

    was = judged()
    facts.count(aside)
    assert judged() == was
    assert facts.last_run is aside
    assert facts.run_count == len(before) + 1


def test_what_runs_did_is_added_up() -> None:
    """Runs are counted by trigger and outcome, rows by what became of them."""
    facts = fresh(Clock())
    facts.count(ended("ok", counts=Counts(inserted=3, unchanged=1), full=True))
    facts.count(ended("ok", START + INTERVAL, counts=Counts(updated=2, unchanged=4)))
    facts.count(ended("failed", trigger="manual", whole=False))
    assert facts.totals == {("interval", "ok"): 2, ("manual", "failed"): 1}
    assert facts.rows == {"inserted": 3, "updated": 2, "unchanged": 5, "vanished": 0, "returned": 0}
    assert facts.last_success_at == START + INTERVAL


def test_a_partial_run_is_a_success_or_brings_nothing() -> None:
    """A run that left some events behind brought the others up to date, and is not a success."""
    facts = fresh(Clock())
    facts.count(ended("partial", full=True))
    assert (facts.synced_at, facts.last_success_at) == (START, None)


def test_a_run_that_came_to_no_pace_hides_the_last_one() -> None:
    """The budget shown is that of the latest run that made one; a failed run leaves it."""
    pace, other = (Pace(budget=Budget(capacity=480, share=share), live=9, cost=30) for share in (48, 20))
    facts = fresh(Clock())
    assert budget_status(facts.pace, INTERVAL) is None
    facts.count(ended("ok"), pace)
    facts.count(ended("failed"))
    assert facts.pace == pace
    facts.count(ended("ok"), other)
    assert facts.pace == other


def test_a_restart_forgets_no_failure() -> None:
    """The third failure in a row is the third also where syncd was started anew between them."""
    facts = fresh(Clock())
    last = ended("failed", id=7)
    history = History(
        run_count=7,
        last_run=last,
        last_success_at=START - 2 * INTERVAL,
        last_synced_at=START - INTERVAL,
        whole_outcome="failed",
        consecutive_failures=2,
    )
    facts.load(past(history))
    assert facts.health(INTERVAL, refused=False) == ("degraded", "the last run ended failed")
    assert (facts.run_count, facts.last_run) == (7, last)
    assert (facts.last_success_at, facts.synced_at) == (START - 2 * INTERVAL, START - INTERVAL)
    assert facts.totals == {}
    facts.count(ended("failed", id=8))
    assert facts.health(INTERVAL, refused=False) == ("failing", "3 runs in a row failed")


def test_a_restart_shows_no_budget_and_no_doubt() -> None:
    """What the run before the restart shared out, and left in doubt, is shown before the next one ends."""
    pace = Pace(budget=Budget(capacity=480, share=48), live=400, cost=1000, waiting=3)
    facts = fresh(Clock())
    facts.load(past(figures=Figures(398, 5, 390, START - INTERVAL), doubts=2, pace=pace))
    budget = budget_status(facts.pace, INTERVAL)
    assert budget
    assert (budget.requests, budget.full_requests, budget.waiting) == (48, 1000, 3)
    assert (facts.events_live, facts.events_full, facts.events_unread, facts.doubts) == (398, 5, 10, 2)
    assert facts.told()["oldest_figure_age_s"] == INTERVAL.total_seconds()


def test_readings_by_turns_are_taken_for_none() -> None:
    """When all was read last is what the readings on record say; without these, the last full run does."""
    history = History(last_full_at=START - 3 * INTERVAL)
    assert past(history).last_full_at == START - 3 * INTERVAL
    readings = Readings(START - INTERVAL, ended_at=START - INTERVAL)
    assert past(history, readings=readings).last_full_at == START - INTERVAL


def test_runs_before_the_database_could_be_opened_are_kept() -> None:
    """Failures of this process come on top of those on record, and its last run stays the last."""
    facts = fresh(Clock())
    own = ended("failed", id=-5)
    facts.count(own)
    history = History(run_count=4, last_run=ended("ok"), last_success_at=START, whole_outcome="ok")
    facts.load(past(history))
    assert (facts.run_count, facts.consecutive_failures, facts.last_run) == (5, 1, own)
    assert facts.health(INTERVAL, refused=False) == ("degraded", "the last run ended failed")


def test_a_database_that_opens_late_hides_the_latest_outcomes() -> None:
    """Those of this process stand first, and of the older ones as many as there is room for."""
    facts = fresh(Clock())
    own: list[Outcome] = ["failed", "partial", "partial"]
    older: list[Outcome] = ["ok"] * LATEST
    for outcome in reversed(own):
        facts.count(ended(outcome, started_at=START))
    facts.load(past(History(latest_outcomes=tuple(older))))
    assert [*facts.latest_outcomes] == [*own, *older[3:]]


def test_an_empty_history_is_taken_over() -> None:
    """The first start of all shows no run and no success."""
    facts = fresh(Clock())
    facts.load(past())
    assert facts.health(INTERVAL, refused=False) == ("degraded", "no successful run yet")
    assert (facts.run_count, facts.last_run, facts.synced_at) == (0, None, None)


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


@pytest.mark.sqlite_only("about the clock")
@pytest.mark.parametrize("stepped", [timedelta(days=-400), timedelta(seconds=-61), timedelta(days=400)])
def test_a_clock_that_is_set_makes_a_process_younger(make_config: MakeConfig, stepped: timedelta) -> None:
    """How long the daemon has been up is counted by a clock that only ever grows."""
    clock = WaitedFor(START)
    with rig_on(make_config(), clock) as rig:
        rig.run()
        clock.now_s += 60
        clock._at = START + stepped
        status = rig.account.status()
        assert status.uptime_s == 60.0
        assert status.started_at == START
        assert (status.oldest_figure_age_s or 0) >= 0
