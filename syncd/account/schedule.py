"""When scheduled runs start: an APScheduler interval job, and a ticker that corrects it.

Only this module knows APScheduler. Its scheduler reads the wall clock, which may be stepped, and waits on a
clock that stops during a suspend; the ticker compares the machine's three clocks every few seconds and plans
the job again when they drift apart, so that the next run is never more than one interval away.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_SUBMITTED, JobSubmissionEvent
from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.base import STATE_RUNNING
from apscheduler.triggers.interval import IntervalTrigger
from loguru import logger
from msgspec import Struct

TICK_S = 5.0
"""How often the clocks are compared: seldom enough to cost nothing; a run is late by at most that."""
JUMP_S = 10.0
"""If clocks drift apart by more than this between two ticks, one was stepped, or the machine slept."""
DRIFT_S = 1.0
"""Less than a jump, and more than the slow correction of a clock."""


class Clocks(Struct, frozen=True):
    """A reading of the machine's clocks: wall time; seconds that count a suspend; seconds that do not."""

    wall: datetime
    boot_s: float
    running_s: float


def read_clocks() -> Clocks:
    """Return the current clocks."""
    return Clocks(datetime.now(UTC), time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic())


def first_slot(now: datetime, interval: timedelta, in_step_with: datetime | None) -> datetime:
    """Return the first scheduled instant after `now`: an interval later, or in step with an earlier one."""
    if in_step_with is None:
        return now + interval
    return in_step_with + interval * ((now - in_step_with) // interval + 1)


class SlotTrigger(IntervalTrigger):  # type: ignore[misc]  # APScheduler publishes no types
    """Fires at `anchor` + n × interval, each time up to `jitter` later; counts the missed slots.

    Its base class lists every missed instant before coalescing (millions after a clock step) and adds each
    jitter to the last; this one computes the first slot after now.
    """

    def __init__(self, interval: timedelta, anchor: datetime, jitter: timedelta) -> None:
        super().__init__(seconds=interval.total_seconds(), start_date=anchor, timezone=UTC)
        self._step = interval
        self._anchor = anchor
        self._spread = jitter
        self._counted = 0
        self.missed = 0

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Return the first slot after now and after the last one fired; may be called twice for each."""
        slot = self._slot(now)
        if previous_fire_time is not None:
            fired = self._slot(previous_fire_time)
            self.missed += max(slot - max(fired, self._counted), 0)
            self._counted = slot = max(slot, fired)
        jitter_s = random.uniform(0, self._spread.total_seconds())  # noqa: S311  # spreads load, hides nothing
        return self._anchor + self._step * (slot + 1) + timedelta(seconds=jitter_s)

    def _slot(self, at: datetime) -> int:
        return (at - self._anchor) // self._step


class Schedule:
    """Calls `fire` in each slot; skips a slot while the call of an earlier one is still in progress.

    `skipped` counts the slots that were not used, by reason; `missed` those that passed while the machine
    slept or the process was stopped. `is_alive` is the ticker's latest result: whether APScheduler runs and
    a timer is set to wake it. Call `start` and `stop` in the event loop's thread.
    """

    def __init__(
        self, fire: Callable[[], Awaitable[None]], *, clocks: Callable[[], Clocks] = read_clocks
    ) -> None:
        self.skipped: Counter[str] = Counter()
        self.clock_jumps = 0
        self._fire = fire
        self._clocks = clocks
        self._missed_before = self._missed_seen = 0
        self._slot_at_s: float | None = None
        self._seen = clocks()
        self._left_s = 0.0
        self._trigger: SlotTrigger | None = None
        self._job: Job | None = None
        quiet = logging.getLogger("apscheduler.slots")
        quiet.setLevel(logging.ERROR)  # its warnings are logged below, once
        self._scheduler = AsyncIOScheduler(timezone=UTC, logger=quiet)
        self._scheduler.add_listener(self._on_slot, EVENT_JOB_SUBMITTED | EVENT_JOB_MAX_INSTANCES)
        self._ticker: asyncio.Task[None] | None = None
        self.is_alive = True

    def start(self, interval: timedelta, jitter: timedelta, first: datetime) -> None:
        """Start, with the first slot at `first`, an aware instant."""
        self._interval, self._jitter = interval, jitter
        self._scheduler.start()
        self._plan(first)
        self._ticker = asyncio.create_task(self._tick_for_ever(), name="ticker")

    def change(self, interval: timedelta, jitter: timedelta) -> None:
        """Apply new settings once started; if they differ, the next slot is a whole interval away."""
        if self._ticker and (interval, jitter) != (self._interval, self._jitter):
            self._interval, self._jitter = interval, jitter
            self._plan(self._clocks().wall + interval)

    def stop(self) -> None:
        """Stop firing."""
        if self._ticker:
            self._ticker.cancel()
            self._ticker = self._job = None
            self._scheduler.remove_all_jobs()
            # Waiting here deadlocks or cancels, depending on the scheduler; the run has its own deadline.
            self._scheduler.shutdown(wait=False)

    @property
    def task(self) -> "asyncio.Task[None]":
        """The ticker that `start` started; it ends only by `stop`, or by a bug."""
        assert self._ticker is not None
        return self._ticker

    @property
    def next_at(self) -> datetime | None:
        """When the next slot is; None before `start` and after `stop`."""
        return self._job.next_run_time if self._job else None

    def overdue_s(self) -> float:
        """Return how long the next slot has been due, at most 0 while it is ahead. Thread-safe.

        Uses the clock that stops in a suspend: neither a step nor a sleep makes a live schedule late.
        """
        left_s, seen = self._left_s, self._seen  # in this order: a tick meanwhile can only make it less
        if self._job is None or (self._slot_at_s is not None and self._slot_at_s >= seen.boot_s):
            return 0.0
        return self._clocks().running_s - seen.running_s - left_s

    @property
    def missed(self) -> int:
        """How many slots passed while the machine slept or the process was stopped."""
        return self._missed_before + (self._trigger.missed if self._trigger else 0)

    def tick(self) -> None:
        """Compare the clocks; plan again if one was stepped or the machine slept since the last tick."""
        seen, self._seen = self._seen, self._clocks()
        missed, self._missed_seen = self._missed_seen, self.missed
        passed_s = self._seen.boot_s - seen.boot_s
        stepped_s = (self._seen.wall - seen.wall).total_seconds() - passed_s
        slept_s = passed_s - (self._seen.running_s - seen.running_s)
        if abs(stepped_s) <= JUMP_S and slept_s <= JUMP_S:
            self._left_s = (self.next_at - self._seen.wall).total_seconds() if self.next_at else 0.0
            if max(abs(stepped_s), slept_s) > DRIFT_S:
                self._scheduler.wakeup()  # it restarts its wait; many such drifts would add up
            return
        if abs(stepped_s) > JUMP_S:
            self.clock_jumps += 1
            logger.bind(event="clock.stepped").warning("the clock was stepped by {:+.0f} s", stepped_s)
        if slept_s > JUMP_S:
            logger.bind(event="clock.slept").info("the machine slept for {:.0f} s", slept_s)
        if self._slot_at_s is not None and self._slot_at_s >= seen.boot_s:
            left_s = self._interval.total_seconds() - (self._seen.boot_s - self._slot_at_s)
        else:
            left_s = self._left_s - passed_s
        interval_s = self._interval.total_seconds()
        overdue = int(max(-left_s, 0.0) // interval_s)
        self._plan(self._seen.wall + timedelta(seconds=min(max(left_s, 0.0), interval_s)))
        # By a stepped clock APScheduler, if it looked first, saw slots go by that did not.
        self._missed_before = min(self._missed_before, missed + int(passed_s // interval_s)) + overdue
        self._missed_seen = self.missed

    def _plan(self, first: datetime) -> None:
        self._missed_before = self.missed
        self._seen = self._clocks()
        self._left_s = (first - self._seen.wall).total_seconds()
        self._trigger = SlotTrigger(self._interval, first, self._jitter)
        self._job = self._scheduler.add_job(
            self._slot,
            self._trigger,
            id="interval",
            replace_existing=True,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,  # late is better than never; the default of one second drops slots
            next_run_time=first,
        )

    async def _slot(self) -> None:
        try:
            await self._fire()
        except asyncio.CancelledError:
            logger.debug("the schedule was stopped while its run was in progress")
        except Exception as error:  # noqa: BLE001  # one slot must not cost those after it
            logger.bind(event="error.internal").opt(exception=error).error(
                "a scheduled run could not be started: unexpected {}; the next scheduled run tries again",
                type(error).__name__,
            )

    def _on_slot(self, event: JobSubmissionEvent) -> None:
        self._slot_at_s = self._clocks().boot_s  # at once: the ticker may look before the call begins
        if event.code == EVENT_JOB_MAX_INSTANCES:
            self.skip("overrun")

    def skip(self, reason: str) -> None:
        """Count a slot that was not used, and say so."""
        self.skipped[reason] += 1
        logger.bind(event="slot.skipped", kind=reason).info("scheduled run skipped: {}", REASONS[reason])

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.is_alive = self._is_armed()
            self.tick()

    def _is_armed(self) -> bool:
        """Whether a timer is set to wake it; each wake-up sets the next within one step of the loop."""
        timer = self._scheduler._timeout  # noqa: SLF001  # it shows this only here
        return self._scheduler.state == STATE_RUNNING and timer is not None and not timer.cancelled()


REASONS = {
    "overrun": "the one before is still in progress",
    "busy": "another run is in progress or queued",
    "paused": "runs are paused (`syncctl resume`)",
    "credentials": "Billetweb refused the user or the key; see its last error",
}
