"""Work beside the loop, or beside its caller, that is not lost on the way. Imports nothing of syncd."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any, Generic, ParamSpec, TypeVar

K = TypeVar("K")
P = ParamSpec("P")
T = TypeVar("T")


class Background:
    """Tasks that nobody waits for. They are held here until they end: the loop itself keeps no task alive."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many have not ended."""
        return len(self._tasks)

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Begin with it; return its task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self) -> None:
        """Cancel those that have not ended; what they do in a thread is done before this returns."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait({*self._tasks})


class Attempts:
    """Attempts at one thing, one after the other; hold `alone` to keep any from being made."""

    def __init__(self) -> None:
        self.alone = asyncio.Lock()
        self._failure: Exception | None = None

    @asynccontextmanager
    async def shared(self, *, anew: bool) -> AsyncIterator[None]:
        """Make an attempt. One that failed while this waited for its turn will do, unless it must be `anew`.

        Each may take seconds: many who ask at once would wait for one attempt each, one after the other.
        """
        before = self._failure
        async with self.alone:
            if self._failure and self._failure is not before and not anew:
                raise self._failure.with_traceback(None)
            try:
                yield
            except Exception as failure:
                self._failure = failure
                raise
            self._failure = None


class Latest(Generic[K]):
    """What may hang, done beside all else: of each thing what was wanted last, after what is under way."""

    def __init__(self) -> None:
        self._wanted: dict[K, Callable[[], Awaitable[None]]] = {}
        self._tasks: dict[K, asyncio.Task[None]] = {}

    async def carry_out(self, wanted: Mapping[K, Callable[[], Awaitable[None]]], wait_s: float) -> list[K]:
        """Have this done; return of what that takes longer. It goes on meanwhile."""
        self._wanted |= wanted
        for key in wanted:
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._serve(key))
        if wanted:
            await asyncio.wait({self._tasks[key] for key in wanted}, timeout=wait_s)
        return [key for key in wanted if key in self._tasks]

    async def finish(self, wait_s: float) -> None:
        """Return when all is done, or after so long."""
        if self._tasks:
            await asyncio.wait({*self._tasks.values()}, timeout=wait_s)

    async def cancel(self) -> None:
        """Have nothing more done; what has a thread of its own is left behind."""
        self._wanted.clear()
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait({*self._tasks.values()})

    async def _serve(self, key: K) -> None:
        try:
            while work := self._wanted.pop(key, None):
                await work()
        finally:
            del self._tasks[key]


def run(work: Coroutine[None, None, T]) -> T:
    """Return what the work gives, as `asyncio.run` does, with name servers asked in threads of their own.

    A silent one takes half a minute. Of the loop's threads, which work for runs, none would be left, and the
    end of the process would wait for them.
    """

    async def with_names_apart() -> T:
        loop: Any = asyncio.get_running_loop()
        loop.getaddrinfo = getaddrinfo
        return await work

    return asyncio.run(with_names_apart())


async def getaddrinfo(*host: Any, **how: Any) -> list[Any]:
    """Return what `socket.getaddrinfo` does, which may hang: from a thread of its own."""
    return await in_own_thread(socket.getaddrinfo, *host, **how)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the function's result from a worker thread, so that the loop goes on answering meanwhile.

    A cancellation, and any further one, waits for the function's end first: a transaction is finished or
    rolled back, never left to run beside what follows.
    """
    call = partial(copy_context().run, function, *args, **kwargs)
    return await to_the_end(asyncio.get_running_loop().run_in_executor(None, call))


async def to_the_end(work: Awaitable[T], grace_s: float | None = None) -> T:
    """Return what the work gives; a cancellation, and any further one, waits for its end first.

    With `grace_s` it waits so long, and then cancels the work.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=grace_s)
                task.cancel()  # if it has not ended
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would report it as lost
        raise


async def in_own_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the function's result from a thread of its own, which whoever gives up waiting leaves behind.

    For what may hang: it takes none of the threads that work for runs, and keeps no process that ends.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # or a result that comes too late would be an error

    def work() -> None:
        try:
            outcome.set_result(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised to whoever waits
            outcome.set_exception(error)

    Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(outcome)
