"""Guarantees "never two runs at once", and run-now's promise: the returned run begins after the request.

At most one run is in progress, and at most one is queued. A request while one is queued gets that one. Only
`Runner` changes a run's `state` and `outcome`. Everything here happens on the event loop.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta

from loguru import logger

from syncd.clock import Clock
from syncd.errors import RunCancelled, SyncdError
from syncd.model import Outcome, Peer, Progress, Run, RunError, Trigger
from syncd.text import count, plain, run_name
from syncd.threads import to_the_end

MOST_EVENTS = 300
"""A run can read this many in its ten minutes, at sixty requests a minute and two for each event."""
CONCLUDING_S = 1.0
"""How long a stop lets a run's tables and files of the site be written: a third of the time it has."""
LATE_S = 5.0
"""A run that is cut so long before its end hung at something: a statement waits 3 s for a lock."""
RECENT = 50
"""How many runs are remembered for those who wait for one: half a day of runs at the usual interval."""


class Stopping(SyncdError):
    """No more runs are accepted: syncd is stopping."""

    kind = "stopping"


class TooManyEvents(SyncdError):
    """More events are named than one run takes."""

    kind = "too_many_events"


class RunTimeout(SyncdError):
    """A run that took longer than it may."""

    kind = "timeout"


class _Entry:
    """A run that somebody may wait for. `ids` are all that it has had, unrecorded or in a lost record too."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ids = {run.id}
        self.ended = asyncio.Event()
        self.watchers: list[asyncio.Queue[Progress | None]] = []


class Runner:
    """Executes runs, one after the other, with `work`.

    Each ended run is passed to `record`, with its failure, then to `on_end`; neither may raise. It is in
    progress until `record` has returned: whoever sees that it is over finds it recorded, if that was
    possible.

    `work` updates the run's figures and errors; an exception that it raises is the run's failure. A run has
    a negative id, valid in this process only, until `work` or somebody else records it.
    Start it with `serve`, end it with `stop`.
    """

    def __init__(
        self,
        work: Callable[[Run], Awaitable[None]],
        *,
        timeout: timedelta,
        record: Callable[[Run, RunError | None], Awaitable[None]],
        on_end: Callable[[Run], Awaitable[None]],
        redact: Callable[[str], str],
        clock: Clock | None = None,
    ) -> None:
        self.timeout = timeout
        self.current: Run | None = None
        self.queued: Run | None = None
        self.is_stopping = False
        self._work = work
        self._record = record
        self._on_end = on_end
        self._redact = redact
        self._clock = clock or Clock()
        self._asked = asyncio.Event()
        self._deadline_s: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._requested = 0
        self._recent: deque[_Entry] = deque(maxlen=RECENT)

    def request(
        self,
        trigger: Trigger,
        *,
        full: bool = False,
        accept: bool = False,
        events: Sequence[str] = (),
        join: bool = False,
        requested_by: Peer | None = None,
    ) -> Run:
        """Return a run that begins after this call, or with `join` the one in progress.

        Raises Stopping, and TooManyEvents for more than MOST_EVENTS. A run of all events would be no
        substitute: it would not read the named events that ended long ago.
        """
        if self.is_stopping:
            raise Stopping("syncd is stopping; no run is started any more")
        if join and self.current and self.current.state == "running":  # not one that is being recorded
            return self.current
        self._check_number(set(events))
        if self.queued is None:
            self._requested += 1
            self.queued = Run(id=-self._requested, trigger=trigger, whole=False, requested_by=requested_by)
            self._recent.append(_Entry(self.queued))
            self._asked.set()
        _widen(self.queued, trigger, full=full, accept=accept, events=events, requested_by=requested_by)
        return self.queued

    def _check_number(self, named: set[str]) -> None:
        queued = set(self.queued.events if self.queued else ())
        if len(named) > MOST_EVENTS:
            raise TooManyEvents(
                f"{len(named)} events are named, and a run takes {MOST_EVENTS}:"
                " name fewer, or none to have all read"
            )
        if len(named | queued) > MOST_EVENTS:
            raise TooManyEvents(
                f"the queued run has {count(len(queued), 'event')} to read, and a run takes {MOST_EVENTS}:"
                " ask again once it has begun, or name none to have all read"
            )

    def find(self, run_id: int) -> Run | None:
        """Return a run that is queued, in progress or recently ended, by any of its ids.

        It is the latest with that id: a run whose record is lost may have had it before.
        """
        entries = [*reversed(self._recent)]
        found = [entry for entry in entries if entry.run.id == run_id]
        found += [entry for entry in entries if run_id in entry.ids]
        return found[0].run if found else None

    def renumber(self, run: Run) -> None:
        """Give a run a negative id again: the record that gave it one is lost."""
        if entry := self._entry(run):
            entry.ids.add(run.id)
        self._requested += 1
        run.id = -self._requested

    async def wait(self, run: Run, seconds: float | None = None) -> None:
        """Return when the run has ended, or after `seconds`; None: no limit."""
        entry = self._entry(run)
        if entry:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(entry.ended.wait(), seconds)

    async def watch(self, run: Run, keep_alive_s: float) -> AsyncIterator[Progress | None]:
        """Yield each step of a run until it ends; None whenever nothing happened for `keep_alive_s`."""
        entry = self._entry(run)
        if entry is None or entry.ended.is_set():
            return
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        entry.watchers.append(steps)
        try:
            if run.progress:
                yield run.progress
            while True:  # until the end marker: steps may still be queued here when the run has ended
                try:
                    step = await asyncio.wait_for(steps.get(), keep_alive_s)
                except TimeoutError:
                    yield None
                    continue
                if step is None:
                    return
                yield step
        finally:
            entry.watchers.remove(steps)

    def advance(self, run: Run) -> None:
        """Pass the run's step to those who watch it."""
        entry = self._entry(run)
        for steps in entry.watchers if entry else ():
            steps.put_nowait(run.progress)

    def _entry(self, run: Run) -> _Entry | None:
        return next((entry for entry in self._recent if entry.run is run), None)

    def serve(self) -> None:
        """Start accepting runs."""
        self._task = asyncio.create_task(self._serve(), name="runner")
        self._task.add_done_callback(self._drop_queued)  # also of a task that is cancelled before it begins

    @property
    def task(self) -> "asyncio.Task[None]":
        """The task that `serve` started; it ends only by `stop`, or by a bug."""
        assert self._task is not None
        return self._task

    def overdue_s(self) -> float:
        """Return how long the run in progress is overdue, at most 0 while in time. Thread-safe."""
        deadline_s = self._deadline_s
        return 0.0 if deadline_s is None else self._clock.running_s() - deadline_s

    async def stop(self, grace_s: float) -> bool:
        """Cancel the run in progress and the queued one; return whether both ended within `grace_s`."""
        self.is_stopping = True
        self.task.cancel()
        done, _ = await asyncio.wait([self.task], timeout=grace_s)
        return bool(done)

    async def _serve(self) -> None:
        while not self.is_stopping:  # a run that fails just then keeps the cancellation to itself
            await self._asked.wait()
            self._asked.clear()
            run, self.queued = self.queued, None
            if run:
                self.current = run
                await self._carry_out(run)

    def _drop_queued(self, _task: object) -> None:
        if self.queued:
            _close(self.queued, "cancelled")
            self._tell_end(self.queued)
            self.queued = None

    async def _carry_out(self, run: Run) -> None:
        run.state = "running"
        run.started_at = self._clock.now()
        began = self._clock.running_s()
        self._deadline_s = began + self.timeout.total_seconds()
        error: RunError | None = None
        try:
            error = await self._bounded(run)
        except asyncio.CancelledError:
            self.is_stopping, run.outcome = True, "cancelled"
            run.add_error(RunError("run", "cancelled", "syncd was stopped; what was synced before stays"))
            raise
        finally:
            run.duration_s = round(self._clock.running_s() - began, 3)
            run.finished_at = self._clock.now()
            _close(run, run.outcome or _outcome(run, error))
            try:
                await to_the_end(self._record(run, error))
            finally:
                run.progress = self.current = None
                await self._conclude(run)

    async def _conclude(self, run: Run) -> None:
        """Call `on_end`, which may wait for others; a stop waits for it only CONCLUDING_S."""
        work = asyncio.ensure_future(self._on_end(run))
        if self.is_stopping:  # the cancellation was used up by the run, nothing else would end this
            asyncio.get_running_loop().call_later(CONCLUDING_S, work.cancel)
        try:
            await to_the_end(work, CONCLUDING_S)
        finally:
            self._deadline_s = None
            self._tell_end(run)

    async def _bounded(self, run: Run) -> RunError | None:
        """Do the work within the time-out; return its failure, which is added to the run's errors."""
        deadline = asyncio.timeout(self.timeout.total_seconds())
        try:
            async with deadline:
                await self._work(run)
        except SyncdError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001  # a bug in one run must not end the daemon
            if isinstance(failure, TimeoutError) and deadline.expired():
                error = RunTimeout(
                    f"not done within sync.run_timeout ({self.timeout.total_seconds():g} s){self._overrun()};"
                    " what was synced stays, the rest comes first in the next run"
                )
            else:
                bug = logger.bind(event="error.internal", run=run.id).opt(exception=failure)
                bug.error("{}: unexpected {}", run_name(run.id), type(failure).__name__)
                error = SyncdError(f"unexpected {type(failure).__name__}: {failure}")
        else:
            return None
        told = RunError("run", error.kind, plain(self._redact(str(error))), error.status)
        run.add_error(told)
        return told

    def _overrun(self) -> str:
        """Return what is said of a run that was cut and ended late: all but the database ends at once."""
        late_s = self.overdue_s()
        if late_s < LATE_S:
            return ""
        why = "the database did not answer sooner, or the whole process stood still"
        return f", and its end took {late_s:.0f} s more: {why}"

    def _tell_end(self, run: Run) -> None:
        entry = self._entry(run)
        if entry:
            entry.ended.set()
            for steps in entry.watchers:
                steps.put_nowait(None)


def _close(run: Run, outcome: Outcome) -> None:
    run.outcome = outcome
    run.state = "done"


def _outcome(run: Run, error: RunError | None) -> Outcome:
    if error and error.kind == RunCancelled.kind:
        return "cancelled"
    failures = run.errors_total - bool(run.unreadable)  # unreadable values are reported, but fail nothing
    if error or (failures and not run.synced):
        return "failed"
    return "partial" if failures else "ok"


def _widen(
    run: Run,
    trigger: Trigger,
    *,
    full: bool,
    accept: bool,
    events: Sequence[str],
    requested_by: Peer | None,
) -> None:
    """Make a queued run serve one more request: full, or accepting, if any is; of all if any names none.

    Only the events of the accepting requests are accepted.
    """
    run.full = run.full or full
    if accept:
        is_all = not events or (run.accept and not run.accepted)
        run.accepted = [] if is_all else list(dict.fromkeys([*run.accepted, *events]))
        run.accept = True
    run.events = list(dict.fromkeys([*run.events, *events]))
    run.whole = run.whole or not events
    if trigger == "manual" and run.trigger != "manual":
        run.trigger = trigger
        run.requested_by = requested_by
