"""Blocking work in real threads, cancelled in the middle."""

import asyncio
import threading
import time
from functools import partial

import pytest

from syncd.threads import Latest, in_thread, run, to_the_end


class Work:
    """A function that blocks its thread until it is allowed to end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.ended = False

    def __call__(self, failure: Exception | None = None) -> str:
        self.begun.set()
        assert self.may_end.wait(10)
        self.ended = True
        if failure:
            raise failure
        return "done"


async def begun(work: Work) -> None:
    deadline = time.monotonic() + 5
    while not work.begun.is_set():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def few_rounds() -> None:
    """Let everything happen that is ready to."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_blocking_work_would_stop_the_daemon_answering() -> None:
    """The loop goes on while the function blocks, and its result and its arguments pass through."""

    async def main() -> None:
        work = Work()
        task = asyncio.create_task(in_thread(work))
        await begun(work)  # returns only if the loop is free
        assert not task.done()
        work.may_end.set()
        assert await task == "done"
        assert await in_thread(int, "11", base=2) == 3

    asyncio.run(main())


def test_a_silent_name_server_stops_all_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask it, work in threads goes on, and who gives up leaves without an answer."""
    silent = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: silent.wait(10))

    async def main() -> int:
        loop = asyncio.get_running_loop()
        asking = [asyncio.create_task(loop.getaddrinfo("host.example", 443)) for _ in range(40)]
        await few_rounds()
        found = await asyncio.wait_for(in_thread(int, "7"), 5)
        for task in asking:
            task.cancel()
        return found

    began = time.monotonic()
    assert run(main()) == 7
    assert time.monotonic() - began < 5
    silent.set()


def test_a_cut_waits_for_what_may_hang() -> None:
    """With a grace the work has so long to come to its end, and is cancelled then."""

    async def main() -> None:
        for work_s, ended in ((0.05, True), (60.0, False)):
            work = asyncio.create_task(asyncio.sleep(work_s, "done"))
            task = asyncio.create_task(to_the_end(work, 0.5))
            await few_rounds()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 5)
            assert work.done()
            assert work.cancelled() is not ended

    asyncio.run(main())


def test_failure_in_a_thread_would_be_lost() -> None:
    """What the function raises reaches its caller."""

    async def main() -> None:
        work = Work()
        work.may_end.set()
        with pytest.raises(LookupError, match="no such row"):
            await in_thread(work, failure=LookupError("no such row"))

    asyncio.run(main())


@pytest.mark.parametrize("cancellations", [1, 3])
def test_transaction_would_run_beside_what_follows_a_stop(cancellations: int) -> None:
    """A cancelled caller, also one cancelled again while it waits, leaves only after the function's end."""

    async def main() -> None:
        work = Work()
        task = asyncio.create_task(in_thread(work))
        await begun(work)
        for _ in range(cancellations):
            task.cancel()
            await few_rounds()
            assert not task.done()
        work.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.ended

    asyncio.run(main())


def test_cancellation_before_the_start_would_abandon_the_function() -> None:
    """A caller cancelled before the thread has begun waits for it all the same."""

    async def main() -> None:
        work = Work()
        task = asyncio.create_task(in_thread(work))
        await asyncio.sleep(0)
        task.cancel()
        await begun(work)
        assert not task.done()
        work.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.ended

    asyncio.run(main())


def test_time_out_would_be_taken_for_a_stop() -> None:
    """A time-out stays one, though it has to wait for the function."""

    async def main() -> None:
        work = Work()

        async def limited() -> None:
            async with asyncio.timeout(0):
                await in_thread(work)

        task = asyncio.create_task(limited())
        await begun(work)
        work.may_end.set()
        with pytest.raises(TimeoutError):
            await task
        assert work.ended

    asyncio.run(main())


def test_failure_after_a_cancellation_would_be_reported_as_a_defect() -> None:
    """A function that fails when nobody waits for its result any more raises no alarm of asyncio."""

    async def main() -> list[object]:
        alarms: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: alarms.append(context))
        work = Work()
        task = asyncio.create_task(in_thread(work, failure=LookupError("rolled back")))
        await begun(work)
        task.cancel()
        await few_rounds()
        work.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        await few_rounds()
        return alarms

    assert asyncio.run(main()) == []


def test_an_older_state_is_written_over_a_newer_one() -> None:
    """Of each thing what was wanted last is done last, and what was wanted between is left out."""

    async def main() -> None:
        done: list[object] = []
        latest = Latest[str]()
        may_end = asyncio.Event()

        async def write(what: str) -> None:
            """Note what is done, the first after a while."""
            if what == "first":
                await may_end.wait()
            done.append(what)

        assert await latest.carry_out({"table": partial(write, "first")}, 0.01) == ["table"]
        assert await latest.carry_out({"table": partial(write, "between")}, 0.01) == ["table"]
        assert await latest.carry_out({"file": partial(write, "file")}, 10.0) == []
        assert await latest.carry_out({"table": partial(write, "last")}, 0.01) == ["table"]
        may_end.set()
        await latest.finish(10.0)
        assert done == ["file", "first", "last"]
        assert await latest.carry_out({}, 10.0) == []
        may_end.clear()
        assert await latest.carry_out({"table": partial(write, "first")}, 0.01) == ["table"]
        await latest.cancel()
        may_end.set()
        assert done == ["file", "first", "last"]

    asyncio.run(main())
