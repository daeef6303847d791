"""How late the schedule and the run in progress are, which the watchdog asks: never late while they live."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from support.runner_bench import Bench, bench
from support.schedule_world import INTERVAL, INTERVAL_S, NONE, World, live, world
from support.variants import mostly_slow

from syncd.account.schedule import TICK_S, Schedule
from syncd.daemon.watchdog import LATE_S

SHORT = timedelta(seconds=0.05)
LOOKS = 6.5 * INTERVAL_S


def looked_at(
    there: World,
    seconds: float,
    meanwhile: Callable[[Schedule], None] = lambda _: None,
    *,
    dies: bool = False,
) -> list[tuple[float, float]]:
    """Run a schedule; return running time and lateness at each look from outside, between any two steps.

    It must be alive at each look, unless `dies`.
    """
    seen: list[tuple[float, float]] = []

    def plan(schedule: Schedule) -> None:
        assert schedule.overdue_s() == -INTERVAL_S
        meanwhile(schedule)
        for half in range(1, int(seconds * 2), 3):
            there.at(half / 2, lambda: look(schedule))

    def look(schedule: Schedule) -> None:
        assert dies or schedule.is_alive
        seen.append((there.running_s, schedule.overdue_s()))

    schedule = live(there, seconds, meanwhile=plan)
    assert schedule.overdue_s() == 0, "a stopped schedule has no slot"
    return seen


# --- the schedule


def test_unstarted_schedule_is_late() -> None:
    """Before its start a schedule owes nothing."""

    async def scene() -> None:
        with world() as there:
            schedule = Schedule(there.note, clocks=there.clocks)
            there.run_on(10 * INTERVAL_S)
            assert schedule.overdue_s() == 0

    asyncio.run(scene())


def test_slot_that_fired_is_overdue() -> None:
    """The lateness counts towards the next slot, at most 0; over a slot that fires it begins anew."""
    with world() as there:
        seen = looked_at(there, 3 * INTERVAL_S)
    for running_s, late_s in seen:
        since_slot_s = running_s % INTERVAL_S
        assert late_s == pytest.approx(since_slot_s - INTERVAL_S) or (late_s == 0 and since_slot_s <= TICK_S)


def test_slot_between_two_looks_at_the_clocks_is_overdue() -> None:
    """What fired is owed no more, though the next look, which counts anew, is still to come."""
    between = INTERVAL + timedelta(seconds=TICK_S / 2)
    with world() as there:
        seen = looked_at(there, 3 * INTERVAL_S, lambda schedule: schedule.change(between, NONE))
    assert len(there.fired) == 2
    assert max(late_s for _, late_s in seen) == 0


@pytest.mark.parametrize("at", [452.0, 898.0, 899.9, 900.1], ids=["between", "before", "at", "after"])
@pytest.mark.parametrize(
    "step_s", mostly_slow([-3600.0, 3600.0, -100.0, 100.0, -1e8, 1e8], "each passes over hours")
)
def test_stepped_clock_restarts_daemon(step_s: float, at: float) -> None:
    """Wherever the wall clock is put, a live schedule is not late by what the watchdog acts upon."""
    with world() as there:
        seen = looked_at(there, LOOKS, lambda _: there.at(at, lambda: there.step(step_s)))
    assert max(late_s for _, late_s in seen) <= LATE_S
    assert min(late_s for _, late_s in seen) >= -INTERVAL_S


@pytest.mark.parametrize("at", [452.0, 898.0, 899.9, 900.1], ids=["between", "before", "at", "after"])
@pytest.mark.parametrize("slept_s", mostly_slow([3600.0, 60.0, 9.0, 30 * 86400.0], "each passes over hours"))
def test_suspend_restarts_daemon(slept_s: float, at: float) -> None:
    """However long the machine slept, a live schedule is not late by what the watchdog acts upon."""
    with world() as there:
        seen = looked_at(there, LOOKS, lambda _: there.at(at, lambda: there.suspend(slept_s)))
    assert max(late_s for _, late_s in seen) <= LATE_S
    assert min(late_s for _, late_s in seen) >= -INTERVAL_S


def test_short_sleeps_add_up() -> None:
    """Many suspends, each too short to be told, make no slot late either."""
    with world() as there:

        def plan(_: Schedule) -> None:
            for number in range(1, 9):
                there.at(100.0 * number, lambda: there.suspend(9.0))

        seen = looked_at(there, LOOKS, plan)
    assert max(late_s for _, late_s in seen) <= LATE_S


@pytest.mark.parametrize("at", [103.0, 899.9, 900.1, 901.0])
@pytest.mark.parametrize("minutes", mostly_slow([5, 1, 60], "each passes over hours"))
def test_reload_restarts_daemon(at: float, minutes: int) -> None:
    """With a new interval the lateness counts towards the new slot, right away."""
    interval = timedelta(minutes=minutes)
    after: list[float] = []
    with world() as there:

        def change(schedule: Schedule) -> None:
            schedule.change(interval, NONE)
            after.append(schedule.overdue_s())

        seen = looked_at(there, LOOKS, lambda schedule: there.at(at, lambda: change(schedule)))
    assert after == [-interval.total_seconds()]
    assert max(late_s for _, late_s in seen) <= LATE_S


def test_dead_scheduler_is_not_late() -> None:
    """When slots no longer fire the lateness is that of the first one missed, by running time, and grows."""
    with world() as there:

        def plan(schedule: Schedule) -> None:
            there.at(INTERVAL_S + 100, schedule._scheduler.pause)

        seen = looked_at(there, 4 * INTERVAL_S, plan, dies=True)
    assert len(there.fired) == 1
    dead = [(running_s, late_s) for running_s, late_s in seen if running_s > INTERVAL_S + TICK_S]
    assert dead
    for running_s, late_s in dead:
        assert late_s == pytest.approx(running_s - 2 * INTERVAL_S)


def ended_by_a_bug(schedule: Schedule) -> None:
    """Let the scheduler's next wake-up fail in its middle, as a bug there would."""
    schedule._scheduler._process_jobs = None
    schedule._scheduler.wakeup()


@pytest.mark.parametrize(
    "die",
    [
        pytest.param(lambda schedule: schedule._scheduler._stop_timer(), id="timer"),
        pytest.param(lambda schedule: schedule._scheduler._timeout.cancel(), id="cancelled"),
        pytest.param(lambda schedule: schedule._scheduler.pause(), id="paused"),
        pytest.param(ended_by_a_bug, id="bug"),
    ],
)
def test_death_is_found_out_by_the_next_slot_only(die: Callable[[Schedule], None]) -> None:
    """However the scheduler dies between two slots, it counts as dead from the next tick on."""
    found: list[bool] = []
    with world() as there:

        def plan(schedule: Schedule) -> None:
            there.at(102, lambda: die(schedule))
            for at in (101, 102 + TICK_S + 1, INTERVAL_S - 1):
                there.at(at, lambda: found.append(schedule.is_alive))

        live(there, INTERVAL_S, meanwhile=plan)
    assert found == [True, False, False]


def test_sleep_hides_dead_scheduler() -> None:
    """A scheduler that is dead stays found out: after a step or a suspend its lateness grows again."""
    with world() as there:

        def plan(schedule: Schedule) -> None:
            there.at(100, schedule._scheduler.pause)
            there.at(1000, lambda: there.suspend(3600))
            there.at(1200, lambda: there.step(-3600))

        seen = dict(looked_at(there, 2 * INTERVAL_S, plan, dies=True))
    assert there.fired == []
    assert seen[998.0] == pytest.approx(98)
    assert 1190 - 1005 <= seen[1190.0] <= 290
    assert seen[1700.0] >= 1700 - 1205


# --- the runner


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.001)


def test_run_in_time_is_overdue() -> None:
    """Without a run nothing is late; a run in time is late by less than nothing, from its own start on."""

    async def scene(it: Bench) -> None:
        for _ in range(2):
            assert it.runner.overdue_s() == 0
            run = await it.busy()
            assert -INTERVAL_S <= it.runner.overdue_s() < -INTERVAL_S + 10
            await asyncio.sleep(0.02)
            assert it.runner.overdue_s() >= -INTERVAL_S + 0.02
            it.let.set()
            await it.done(run)
        assert it.runner.overdue_s() == 0
        await it.busy()
        await it.runner.stop(10)
        assert it.runner.overdue_s() == 0

    async def main() -> None:
        async with bench(INTERVAL) as it:
            await scene(it)

    asyncio.run(main())


@pytest.mark.parametrize("place", ["work", "end"])
def test_hanging_run_is_in_time(place: str) -> None:
    """A run that cannot be ended, or put on record, is late from its deadline on, until it has ended."""

    async def main() -> None:
        async with bench(SHORT) as it:
            release = asyncio.Event()

            async def stubborn() -> None:
                await asyncio.shield(asyncio.ensure_future(release.wait()))

            async def deaf(_: object) -> None:
                while not release.is_set():
                    try:
                        await release.wait()
                    except asyncio.CancelledError:
                        continue

            if place == "work":
                it.runner._work = deaf
            else:
                it.conclude = stubborn
                it.let.clear()
            run = it.runner.request("interval")
            await until(lambda: it.runner.overdue_s() > 0)
            before_s = it.runner.overdue_s()
            await asyncio.sleep(0.02)
            assert it.runner.overdue_s() >= before_s + 0.02
            release.set()
            it.let.set()
            await it.done(run)
            await until(lambda: it.runner.overdue_s() == 0)

    asyncio.run(main())
