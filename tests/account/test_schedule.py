"""The schedule, by its real scheduler on a real event loop whose clocks are the test's: no test waits."""

import asyncio
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import loguru
import pytest
from loguru import logger
from support.schedule_world import INTERVAL, INTERVAL_S, NONE, START, World, live, world
from support.variants import mostly_slow

from syncd.account.schedule import TICK_S, Clocks, Schedule, SlotTrigger

PARIS, NEW_YORK, LORD_HOWE = (
    ZoneInfo("Europe/Paris"),
    ZoneInfo("America/New_York"),
    ZoneInfo("Australia/Lord_Howe"),
)
STEPS_S = [sign * 10.0**power for power in range(2, 9) for sign in (1, -1)]


@pytest.fixture
def told() -> Iterator[list["loguru.Record"]]:
    """Everything that the log was given, quiet chatter excepted."""
    records: list[loguru.Record] = []
    sink = logger.add(lambda message: records.append(message.record), level="INFO", format="{message}")
    yield records
    logger.remove(sink)


def at_s(fired: list[Clocks]) -> list[float]:
    return [round(seen.running_s, 3) for seen in fired]


# --- the trigger by itself


@pytest.mark.parametrize("late_s", [0, 0.001, 1, 450, 899.999])
def test_a_late_run_does_not_shift_those_after_it(late_s: float) -> None:
    """However late a slot is used, the next one is on the grid that the first one began."""
    trigger = SlotTrigger(INTERVAL, START, NONE)
    slot = START + INTERVAL * 7
    assert trigger.get_next_fire_time(slot, slot + timedelta(seconds=late_s)) == START + INTERVAL * 8
    assert trigger.missed == 0


@pytest.mark.parametrize(
    ("previous", "now", "expected"),
    [
        (None, 0.5, 1),
        (None, 4.0, 5),
        (2, 2.5, 3),
        (2, 7.5, 8),
        (7, 2.5, 8),
        (7, -100.0, 8),
    ],
)
def test_a_slot_is_neither_in_the_past_nor_used_twice(
    previous: int | None, now: float, expected: int
) -> None:
    """The next slot is the first after now, and after the one fired last: also when the clock went back."""
    trigger = SlotTrigger(INTERVAL, START, NONE)
    fired = None if previous is None else START + INTERVAL * previous
    assert trigger.get_next_fire_time(fired, START + INTERVAL * now) == START + INTERVAL * expected


def test_a_leap_of_the_clock_costs_neither_time_nor_memory() -> None:
    """A clock set forward by 1e8 s gives one instant, not a list of those missed, which are counted once."""
    trigger = SlotTrigger(INTERVAL, START, NONE)
    now = START + timedelta(seconds=1e8)
    tracemalloc.start()
    upcoming = [trigger.get_next_fire_time(START, now) for _ in range(2)]  # APScheduler asks twice
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert upcoming == [START + INTERVAL * 111_112] * 2
    assert trigger.missed == 111_111
    assert peak_bytes < 100_000


def test_a_clock_that_goes_to_and_fro_counts_no_slot_twice() -> None:
    """Slots that were counted as missed before the clock went back are not missed again."""
    trigger = SlotTrigger(INTERVAL, START, NONE)
    for previous, now in ((0, 10), (0, 10), (11, 5), (12, 12), (13, 15)):
        trigger.get_next_fire_time(START + INTERVAL * previous, START + INTERVAL * now)
    assert trigger.missed == 12


def test_jitter_neither_adds_up_nor_exceeds_its_bound() -> None:
    """Over a week every slot is at most the jitter late, measured from the grid, not from the last slot."""
    jitter = timedelta(minutes=7, seconds=30)
    trigger = SlotTrigger(INTERVAL, START, jitter)
    fired, delays = START, []
    for number in range(1, 673):
        fired = trigger.get_next_fire_time(fired, fired)
        delays.append(fired - (START + INTERVAL * number))
    assert all(NONE <= delay <= jitter for delay in delays)
    assert max(delays) - min(delays) > jitter / 2
    assert trigger.missed == 0


# --- the schedule at work


def test_the_interval_is_the_configured_one_however_long_runs_take() -> None:
    """Runs of two to fourteen minutes begin every fifteen minutes, on the first slot's phase."""
    with world() as there:
        durations = iter([120, 840, 0, 300, 600])

        async def fire() -> None:
            await there.note()
            await asyncio.sleep(next(durations))

        schedule = live(there, 5.5 * INTERVAL_S, fire)
    assert at_s(there.fired) == [900, 1800, 2700, 3600, 4500]
    assert (schedule.missed, schedule.skipped, schedule.clock_jumps) == (0, {}, 0)


def test_jitter_leaves_the_number_of_runs_alone() -> None:
    """With jitter a day has its 96 runs, each at most the jitter after its slot."""
    with world() as there:
        live(there, 96.9 * INTERVAL_S, jitter=timedelta(seconds=60))
    delays = [seen.running_s - INTERVAL_S * number for number, seen in enumerate(there.fired, 1)]
    assert len(delays) == 96
    assert all(-0.001 <= delay <= 60.1 for delay in delays)
    assert delays[0] < 0.1 < max(delays)


@pytest.mark.parametrize(
    "midnight",
    mostly_slow(
        [
            datetime(2027, 3, 28, tzinfo=PARIS),
            datetime(2027, 10, 31, tzinfo=PARIS),
            datetime(2027, 3, 14, tzinfo=NEW_YORK),
            datetime(2027, 11, 7, tzinfo=NEW_YORK),
            datetime(2027, 4, 4, tzinfo=LORD_HOWE),
            datetime(2027, 10, 3, tzinfo=LORD_HOWE),
        ],
        "each is a day",
        always=2,
    ),
    ids=str,
)
def test_a_night_of_changing_clocks_has_its_runs_and_no_more(midnight: datetime) -> None:
    """Over 24 hours there are 96 runs, 15 minutes apart, whatever local clocks are put to meanwhile."""
    before, after = midnight.utcoffset(), (midnight + timedelta(hours=12)).utcoffset()
    assert before != after
    with world(midnight.astimezone(UTC)) as there:
        schedule = live(there, 24 * 3600 + 1)
    assert at_s(there.fired) == [INTERVAL_S * number for number in range(1, 97)]
    assert (schedule.missed, schedule.clock_jumps) == (0, 0)


def test_one_run_at_a_time_and_late_rather_than_never() -> None:
    """The job that APScheduler holds does not have its defaults, of which one drops slots a second late."""
    with world() as there:
        seen = []

        def look(schedule: Schedule) -> None:
            job = schedule._scheduler.get_job("interval")
            seen.append((job.max_instances, job.coalesce, job.misfire_grace_time))
            there.at(890, lambda: there.run_on(100))  # the process is held up, as by a debugger or by swap

        schedule = live(there, 2.5 * INTERVAL_S, meanwhile=look)
    assert seen == [(1, True, None)]
    assert at_s(there.fired) == [990, 1800]
    assert (schedule.missed, schedule.skipped) == (0, {})


def test_a_run_that_overruns_its_slot_is_not_joined_by_another(told: list["loguru.Record"]) -> None:
    """A slot that comes while a run is under way is left out, counted and told; the next free one is used."""
    with world() as there:

        async def fire() -> None:
            await there.note()
            await asyncio.sleep(2000)

        schedule = live(there, 3700, fire)
    assert at_s(there.fired) == [900, 3600]
    assert (schedule.skipped, schedule.missed) == ({"overrun": 2}, 0)
    lines = [(record["extra"]["kind"], record["message"]) for record in told]
    assert lines == [("overrun", "scheduled run skipped: the one before is still in progress")] * 2


def test_a_bug_in_one_run_does_not_end_the_schedule(told: list["loguru.Record"]) -> None:
    """An exception out of a slot is told once with its traceback, and the next slot still comes."""
    with world() as there:

        async def fire() -> None:
            await there.note()
            if len(there.fired) == 1:
                raise ZeroDivisionError

        live(there, 2.5 * INTERVAL_S, fire)
    assert at_s(there.fired) == [900, 1800]
    (record,) = told
    assert (record["level"].name, record["extra"]["event"]) == ("ERROR", "error.internal")
    assert "unexpected ZeroDivisionError" in record["message"]
    assert record["exception"] is not None


def test_a_stop_in_the_middle_of_a_run_looks_like_no_error(
    caplog: pytest.LogCaptureFixture, told: list["loguru.Record"]
) -> None:
    """Stopping leaves no job, no task and no next slot, and tells of no error, while a run is under way."""
    with world() as there:

        async def fire() -> None:
            await there.note()
            await asyncio.sleep(600)

        schedule = live(there, INTERVAL_S + 100, fire)
        assert at_s(there.fired) == [900]
    assert schedule.next_at is None
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
    assert told == []


def test_a_stop_at_the_instant_of_a_slot_starts_no_run() -> None:
    """A slot that falls due in the same turn of the loop as the stop is not used; two stops are one."""
    with world() as there:

        def plan(schedule: Schedule) -> None:
            asyncio.get_running_loop().call_at(902, schedule.stop)
            there.at(895, lambda: there.run_on(10))

        live(there, 2000, meanwhile=plan)
    assert there.fired == []


def test_a_schedule_that_never_began_can_be_stopped() -> None:
    """A daemon whose start fails stops what it has: a schedule without a first slot."""
    schedule = Schedule(World.note)  # type: ignore[arg-type]  # is never called
    schedule.stop()
    assert schedule.next_at is None
    assert schedule.missed == 0


def test_a_new_interval_holds_at_once_and_the_same_one_moves_nothing() -> None:
    """After a reload the next run is one new interval away; one that changes nothing leaves the phase."""
    with world() as there:

        def plan(schedule: Schedule) -> None:
            there.at(1000, lambda: schedule.change(INTERVAL, NONE))
            there.at(2000, lambda: schedule.change(timedelta(minutes=1), NONE))
            there.at(2130, lambda: schedule.change(timedelta(hours=1), NONE))

        schedule = live(there, 6000, meanwhile=plan)
    assert at_s(there.fired) == [900, 1800, 2060, 2120, 5730]
    assert (schedule.missed, schedule.clock_jumps) == (0, 0)


def test_missed_slots_stay_counted_when_the_schedule_is_planned_anew() -> None:
    """Slots missed while the process was held up are still counted after a reload with a new interval."""
    with world() as there:

        def plan(schedule: Schedule) -> None:
            there.at(890, lambda: there.run_on(3 * INTERVAL_S))
            there.at(4000, lambda: schedule.change(timedelta(minutes=20), NONE))

        schedule = live(there, 5300, meanwhile=plan)
    assert at_s(there.fired) == [3590, 3600, 5200]
    assert schedule.missed == 2


# --- clocks that are stepped, machines that sleep


def check_gaps(there: World) -> None:
    """No two runs are further apart than an interval of running time, and at most one is one too many."""
    times = [0.0, *at_s(there.fired)]
    assert max(later - earlier for earlier, later in pairwise(times)) <= INTERVAL_S + TICK_S
    assert 6 <= len(there.fired) <= 7


@pytest.mark.parametrize("at", [452.0, 899.0, 901.0], ids=["between", "before a slot", "after a slot"])
@pytest.mark.parametrize("step_s", mostly_slow(STEPS_S, "each passes over hours", always=6))
def test_a_step_of_the_clock_neither_silences_syncd_nor_sets_it_off(step_s: float, at: float) -> None:
    """Wherever the wall clock is put, runs go on one interval of real time apart, and the step is counted."""
    with world() as there:
        schedule = live(there, 6.5 * INTERVAL_S, meanwhile=lambda _: there.at(at, lambda: there.step(step_s)))
    check_gaps(there)
    assert (schedule.clock_jumps, schedule.missed) == (1, 0)


def test_every_step_of_a_restless_clock_is_survived(told: list["loguru.Record"]) -> None:
    """A clock that is stepped every 500 s, to and fro, leaves the rhythm of the runs as it was."""
    with world() as there:

        def plan(_: Schedule) -> None:
            for number, step_s in enumerate(STEPS_S[:10], 1):
                there.at(500.0 * number, lambda step_s=step_s: there.step(step_s))  # type: ignore[misc]

        schedule = live(there, 6.5 * INTERVAL_S, meanwhile=plan)
    check_gaps(there)
    assert schedule.clock_jumps == 10
    steps = [record["message"] for record in told if record["extra"]["event"] == "clock.stepped"]
    assert steps[:2] == ["the clock was stepped by +100 s", "the clock was stepped by -100 s"]


@pytest.mark.parametrize("at", [452.0, 899.0, 901.0], ids=["between", "before a slot", "after a slot"])
@pytest.mark.parametrize(
    "slept_s",
    mostly_slow([9.0, 3600.0, 86400.0, 1.0, 60.0, 1200.0, 30 * 86400.0], "each passes over hours", always=3),
)
def test_a_machine_that_wakes_up_soon_has_fresh_data(slept_s: float, at: float) -> None:
    """After a suspend an overdue run begins within a tick, once; the slots slept through are counted."""
    with world() as there:
        schedule = live(
            there, 6.5 * INTERVAL_S, meanwhile=lambda _: there.at(at, lambda: there.suspend(slept_s))
        )
    check_gaps(there)
    assert schedule.clock_jumps == 0
    gaps_s = [
        later.boot_s - earlier.boot_s for earlier, later in pairwise([Clocks(START, 0, 0), *there.fired])
    ]
    assert schedule.missed == sum(max(int(gap_s / INTERVAL_S + 0.001) - 1, 0) for gap_s in gaps_s)
    first_after = next(seen for seen in there.fired if seen.running_s > at)
    if slept_s >= INTERVAL_S:
        assert first_after.running_s <= at + TICK_S
    assert max(gaps_s) <= max(INTERVAL_S + 10, slept_s + INTERVAL_S)


def test_a_step_soon_after_a_reload_takes_nothing_off_the_wait() -> None:
    """What is left until the next run counts from the reload, not from the look at the clocks before it."""
    with world() as there:

        def plan(schedule: Schedule) -> None:
            there.at(103, lambda: schedule.change(timedelta(minutes=5), NONE))
            there.at(104, lambda: there.step(3600))

        live(there, 500, meanwhile=plan)
    assert at_s(there.fired) == [403]


def test_many_short_sleeps_put_no_run_off() -> None:
    """Where a machine sleeps for some seconds again and again, a run is late by the last of them at most."""
    with world() as there:

        def plan(_: Schedule) -> None:
            for number in range(100):
                there.at(TICK_S * number + 4, lambda: there.suspend(9))

        schedule = live(there, 500, meanwhile=plan)
    (seen,) = there.fired
    assert INTERVAL_S <= seen.boot_s <= INTERVAL_S + TICK_S + 9
    assert (schedule.missed, schedule.clock_jumps) == (0, 0)


def test_a_step_after_many_small_ones_puts_no_run_off() -> None:
    """However far steps too small to count moved the next run, after one that does it is an interval away."""
    with world() as there:

        def plan(_: Schedule) -> None:
            for number in range(60):
                there.at(TICK_S * number + 4, lambda: there.step(-9))
            there.at(304, lambda: there.step(3600))

        schedule = live(there, 1250, meanwhile=plan)
    assert at_s(there.fired) == [305 + INTERVAL_S]
    assert (schedule.missed, schedule.clock_jumps) == (0, 1)


def test_a_suspend_is_told_and_is_no_step_of_the_clock(told: list["loguru.Record"]) -> None:
    """The log says for how long the machine slept, so that a hole in the history explains itself."""
    with world() as there:
        live(there, 1000, meanwhile=lambda _: there.at(100, lambda: there.suspend(3600)))
    assert [record["message"] for record in told] == ["the machine slept for 3600 s"]


def test_the_clocks_of_this_machine_can_be_read() -> None:
    """The real clocks are read as they are: aware wall time, and a boot clock not behind the running one."""
    from syncd.account.schedule import read_clocks

    seen = read_clocks()
    assert seen.wall.utcoffset() == NONE
    assert abs((datetime.now(UTC) - seen.wall).total_seconds()) < 60
    assert seen.boot_s >= seen.running_s - 1
