"""What the tests of the runner stand on: a runner whose work does as the test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

from syncd.clock import Clock
from syncd.log.redact import Redactor
from syncd.model import Progress, Run, RunError
from syncd.run.runner import Runner

LONG_S = 10.0
KEY = "canary-0123456789"


class Bench:
    """A runner whose work waits until `let` allows it, and which notes what overlaps; `instead` is done then.

    A run gets its lasting id, from 1 on, when its work begins.
    """

    def __init__(self, timeout: timedelta, clock: Clock | None = None) -> None:
        self.runner = Runner(
            self.work,
            timeout=timeout,
            record=self.record,
            on_end=self.on_end,
            redact=Redactor([KEY]),
            clock=clock,
        )
        self.at_work = 0
        self.most_at_work = 0
        self.began: list[int] = []
        self.ended: list[tuple[int, str | None, RunError | None]] = []
        self.steps = 0
        self.trouble: Exception | None = None
        self.instead: Callable[[Run], Awaitable[None]] | None = None
        self.let = asyncio.Event()
        self.let.set()
        self.may_record = asyncio.Event()
        self.may_record.set()
        self.conclude: Callable[[], Awaitable[None]] | None = None

    async def work(self, run: Run) -> None:
        with self.busy_with_it():
            run.id = len(self.began) + 1
            self.began.append(run.id)
            for done in range(self.steps):
                run.progress = Progress("events", done + 1, self.steps)
                self.runner.advance(run)
            await self.let.wait()
            if self.instead:
                await self.instead(run)
            if self.trouble:
                raise self.trouble

    # Whoever puts the end on record, and sees to what the run left, is still busy with it.

    async def record(self, run: Run, error: RunError | None) -> None:
        with self.busy_with_it():
            assert self.runner.current is run
            await self.may_record.wait()
        self.ended.append((run.id, run.outcome, error))

    async def on_end(self, run: Run) -> None:
        with self.busy_with_it():
            assert self.runner.current is not run
            if self.conclude:
                await self.conclude()
            await asyncio.sleep(0)

    @contextmanager
    def busy_with_it(self) -> Iterator[None]:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            yield
        finally:
            self.at_work -= 1

    async def begun(self, run: Run) -> Run:
        while run.id < 0:  # noqa: ASYNC110  # as an outsider would see it
            await asyncio.sleep(0)
        return run

    async def done(self, run: Run) -> Run:
        await self.runner.wait(run, LONG_S)
        assert run.state == "done"
        return run

    async def busy(self) -> Run:
        """Return a run that stays in progress until `let` is set."""
        self.let.clear()
        return await self.begun(self.runner.request("interval"))


@asynccontextmanager
async def bench(
    at_most: timedelta = timedelta(seconds=LONG_S), clock: Clock | None = None
) -> AsyncIterator[Bench]:
    bench = Bench(at_most, clock)
    bench.runner.serve()
    try:
        yield bench
        assert bench.most_at_work <= 1, "two runs at once"
    finally:
        bench.let.set()
        await bench.runner.stop(LONG_S)
