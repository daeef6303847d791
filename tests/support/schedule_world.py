"""What the tests of the schedule stand on: an event loop whose clocks are the test's, so no test waits.

The loop of `World` takes its time from a clock of its own and, instead of sleeping, moves that clock on; the
wall clock (frozen) and the clock that counts a suspend move with it, or on their own where a test says so.
"""

import asyncio
import selectors
from bisect import insort
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from freezegun import freeze_time
from freezegun.api import FrozenDateTimeFactory

from syncd.account.schedule import Clocks, Schedule

START = datetime(2027, 5, 8, 10, 0, tzinfo=UTC)
INTERVAL = timedelta(minutes=15)
INTERVAL_S = INTERVAL.total_seconds()
NONE = timedelta(0)
Fire = Callable[[], Awaitable[None]]


class World(selectors.DefaultSelector):
    """A machine's three clocks, moved on by an event loop that would otherwise wait."""

    def __init__(self, frozen: FrozenDateTimeFactory, wall: datetime) -> None:
        super().__init__()
        self._frozen = frozen
        self._plans: list[tuple[float, Callable[[], None]]] = []
        self.wall, self.boot_s, self.running_s = wall, 0.0, 0.0
        self.fired: list[Clocks] = []

    def clocks(self) -> Clocks:
        return Clocks(self.wall, self.boot_s, self.running_s)

    def run_on(self, seconds: float) -> None:
        self.running_s += seconds
        self.suspend(seconds)

    def suspend(self, seconds: float) -> None:
        self.boot_s += seconds
        self.step(seconds)

    def step(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self._frozen.move_to(self.wall)

    def at(self, running_s: float, action: Callable[[], None]) -> None:
        insort(self._plans, (running_s, action), key=lambda plan: plan[0])

    async def note(self) -> None:
        self.fired.append(self.clocks())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        assert timeout is not None, "the loop would wait for ever"
        if self._plans and self._plans[0][0] <= self.running_s + timeout:
            due_s, action = self._plans.pop(0)
            self.run_on(due_s - self.running_s)
            action()
        else:
            self.run_on(timeout)
        return []


@contextmanager
def world(wall: datetime = START) -> Iterator[World]:
    with freeze_time(wall, real_asyncio=True) as frozen:
        assert isinstance(frozen, FrozenDateTimeFactory)
        yield World(frozen, wall)


def live(
    there: World,
    seconds: float,
    fire: Fire | None = None,
    *,
    jitter: timedelta = NONE,
    meanwhile: Callable[[Schedule], None] = lambda _: None,
) -> Schedule:
    """Run a schedule for so many seconds of running time, its first slot one interval away."""

    class Loop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return there.running_s

    async def main() -> Schedule:
        schedule = Schedule(fire or there.note, clocks=there.clocks)
        schedule.start(INTERVAL, jitter, there.wall + INTERVAL)
        meanwhile(schedule)
        await asyncio.sleep(seconds)
        schedule.stop()
        await asyncio.sleep(1)
        assert schedule._scheduler.get_jobs() == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return schedule

    with asyncio.Runner(loop_factory=lambda: Loop(there)) as runner:
        return runner.run(main())
