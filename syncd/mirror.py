"""One account's mirror: the client and the store as runs need them, and what is remembered between runs.

The daemon and `syncd once` carry out the same work from here. The database is opened when it can be: until
then runs fail and say so, and are put on record as soon as it answers.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta

from loguru import logger
from msgspec import Struct

from syncd import limiter
from syncd.attendee_store import AttendeeStore
from syncd.billetweb import Billetweb
from syncd.config import Config
from syncd.database import Database
from syncd.errors import BilletwebError, RunCancelled, StoreError, SyncdError
from syncd.limiter import RateLimiter
from syncd.model import AttendeeMode, Run, RunError
from syncd.runlog import RunLog
from syncd.status import Record
from syncd.store import Figures, History, Store
from syncd.sync import Failure, Memory, Synchronisation
from syncd.text import format_duration
from syncd.threads import in_thread, to_the_end

UNRECORDED_AT_MOST = 100
PRUNE_S = 1.0
"""So long may old changes be removed after a run; less than a stop may take. The next full run goes on."""


class _Ended(Struct, frozen=True):
    """A run whose end is not on record yet."""

    run: Run
    read_at: Mapping[str, datetime]


class _Opened(Struct, frozen=True):
    """A database just opened, and what it says of the past."""

    store: Store
    attendees: AttendeeStore
    history: History
    paused: bool
    figures: Figures
    ages_s: list[float]


class Mirror:
    """Carries runs out for one account. `store` is None until the database could be opened.

    `clock` is monotonic seconds, for all waits towards Billetweb and in the log; `sleep` waits.
    """

    def __init__(
        self,
        config: Config,
        redact: Callable[[str], str],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.config = config
        self.redact = redact
        self._clock = clock
        self.store: Store | None = None
        self._attendees: AttendeeStore | None = None
        self.memory = Memory()
        self.record = Record(started_at=datetime.now(UTC))
        self.paused = False
        self._limiter = RateLimiter(
            config.billetweb.requests_per_minute, note=self._note_request, clock=clock, sleep=sleep
        )
        self.client = self._new_client(config)
        self._log = RunLog(clock)
        self._last_id = 0
        self._unrecorded: deque[_Ended] = deque(maxlen=UNRECORDED_AT_MOST)
        self._at_work: Synchronisation | None = None
        self._opening = asyncio.Lock()
        self._writers: set[int] = set()

    async def open(self) -> Store:
        """Return the store, opened now where it was not. Raises StoreError, and AlreadyRunning."""
        async with self._opening:  # a run and a command may both come first
            if self.store is None:
                await to_the_end(self._open())  # when cancelled too: what is open holds the lock
        assert self.store
        return self.store

    async def _open(self) -> None:
        opened = await in_thread(_open, self.config.database.url, self._live_since(), self._writers)
        self.store, self._attendees = opened.store, opened.attendees
        self.paused = opened.paused
        self.record.take_over(opened.history)
        self.record.take_figures(opened.figures)
        self._last_id = opened.history.last_id
        self._limiter.remember(opened.ages_s)

    @property
    def is_writing(self) -> bool:
        """Whether a transaction that writes is under way, that of a migration too."""
        return bool(self._writers)

    async def close(self) -> None:
        """Close the connections and the database."""
        await self.client.aclose()
        if self.store:
            await in_thread(self.store.close)

    async def configure(self, config: Config) -> None:
        """Take new settings over: those of the client now, or with the next run where one is in progress."""
        self.config = config
        self._limiter.per_minute = config.billetweb.requests_per_minute
        before, self.client = self.client, self._new_client(config)
        self.memory.attendees.refused_at = None  # the key may be another
        self.client.statuses = before.statuses  # the same counter: the run in progress still counts there
        if self._at_work is None or self._at_work.client is not before:
            await before.aclose()

    def next_id(self) -> int:
        """Return a new run's id: counted on, or negative while no database says where to count from."""
        if self.store is None:
            self._last_id = min(self._last_id - 1, -int(time.time()))
        else:
            self._last_id += 1
        return self._last_id

    async def work(self, run: Run, on_progress: Callable[[Run], None]) -> None:
        """Carry a run out. Raises the SyncdError that made it impossible."""
        self._at_work = None
        full_asked = run.full
        try:
            store = await self.open()
            if run.trigger != "manual" and run.whole:
                run.full = run.full or self._full_is_due()
        finally:
            self._log.started(run)
        if self.paused and run.trigger in ("startup", "interval"):  # only known since the database is open
            raise RunCancelled("scheduled runs are paused; resume them with `syncctl resume`")
        if run.trigger == "manual":
            self.client.reset()
        await in_thread(store.start_run, run)
        assert self._attendees
        config = self.config  # a reload meanwhile is for the next run
        await self._retain(self._attendees, config.sync.attendees)
        self._at_work = Synchronisation(
            run,
            self.client,
            store,
            self._attendees,
            config=config,
            memory=self.memory,
            full_asked=full_asked,
            on_progress=on_progress,
            redact=self.redact,
        )
        await self._at_work.execute()

    async def _retain(self, attendees: AttendeeStore, mode: AttendeeMode) -> None:
        """Erase what `sync.attendees` no longer allows to keep of attendees."""
        erased = await in_thread(attendees.retain, mode, datetime.now(UTC))
        if erased.attendees:
            what = "all that was mirrored" if mode == "none" else "the personal data"
            log = logger.bind(event="attendees.erased", erased=erased.attendees)
            log.warning(
                "{} of {} attendees erased, as sync.attendees is {!r} now", what, erased.attendees, mode
            )
        if erased.has_traces:
            logger.bind(event="attendees.traces").warning(
                "what was erased of attendees is still in the write-ahead log, for another program is reading"
                " the database; the next run tries again"
            )

    async def conclude(self, run: Run, error: SyncdError | None) -> None:
        """Put a run's end on record, count it and tell of it. Raises nothing."""
        synchronisation, self._at_work = self._at_work, None
        failures = list(synchronisation.failures) if synchronisation else []
        if error:
            status = error.status if isinstance(error, BilletwebError) else None
            # Not the last of the run's errors, which are cut off above some number.
            failures.append(Failure(RunError("run", error.kind, self.redact(str(error))), status))
        self._unrecorded.append(_Ended(run, synchronisation.read_at if synchronisation else {}))
        full_before = self.record.last_full_at
        self.record.take(run)
        self._log.finished(run, failures)
        try:
            await self._put_on_record()
        except StoreError as trouble:
            logger.bind(event="error.database").error(
                "run {} is not on record yet: {}; tried again with the next run", run.id, trouble
            )
        else:
            if full_before and self.record.last_full_at != full_before:
                await self._prune(full_before)
        if synchronisation and synchronisation.client is not self.client:
            await synchronisation.client.aclose()

    async def _put_on_record(self) -> None:
        if self.store:
            while self._unrecorded:
                ended = self._unrecorded[0]
                await in_thread(self.store.finish_run, ended.run, ended.read_at)
                self._unrecorded.popleft()
            await self._count(self.store)

    async def _count(self, store: Store) -> None:
        live_since, record, pace = self._live_since(), self.record, self.memory.pace
        figures, live = await in_thread(store.figures, live_since), self.memory.live
        record.take_figures(figures)
        record.events_unread = None if live is None else max(live - figures.read, 0)
        if pace and pace.exceeds_a_run and not pace.waiting:
            since = record.last_full_at or record.started_at
            failing = [key for key, tried in self.memory.tried.items() if tried.at > since]
            figures = await in_thread(store.figures, live_since, failing)
            if figures.oldest_at and figures.oldest_at > since and figures.read == figures.events:
                record.last_full_at = record.now()  # all had their turn since

    async def _prune(self, full_before: datetime) -> None:
        """Remove changes that are too old, after a full run that did not fail and had one before it."""
        assert self.store
        keep, now = self.config.sync.keep_changes, datetime.now(UTC)
        try:
            removed = await in_thread(self.store.prune_changes, keep, now, full_before, PRUNE_S)
        except StoreError as error:
            logger.bind(event="error.database").warning(
                "old changes could not be removed: {}; tried again with the next full run", error
            )
            return
        if removed:
            old = format_duration(keep.total_seconds())
            log = logger.bind(event="changes.pruned", removed=removed)
            log.info("{} changes older than {} removed from the log of changes", removed, old)

    def _live_since(self) -> datetime:
        return datetime.now(UTC) - self.config.sync.keep_past

    def _full_is_due(self) -> bool:
        if self.memory.pace and self.memory.pace.exceeds_a_run:
            return False  # its events take turns, which together are as good
        last = self.record.last_full_at  # which a clock that was ahead may have put into the future
        return last is None or not timedelta(0) <= datetime.now(UTC) - last < self.config.sync.full_every

    async def _note_request(self) -> None:
        if self.store:
            try:
                await in_thread(self.store.note_request, limiter.WINDOW_S)
            except StoreError as error:
                # The ceiling holds within this process all the same; only a restart would not know.
                logger.debug("a request could not be noted: {}", error)

    def _new_client(self, config: Config) -> Billetweb:
        return Billetweb(
            config.billetweb,
            config.key,
            self._limiter,
            count_carts=config.sync.count_carts,
            clock=self._clock,
        )


def _open(url: str, live_since: datetime, writers: set[int]) -> _Opened:
    """Return the database opened and asked for the past: all or nothing."""
    database = Database(url, writers)
    store = Store(database)
    try:
        return _Opened(
            store,
            AttendeeStore(database),
            store.open_history(datetime.now(UTC)),
            store.paused(),
            store.figures(live_since),
            store.request_ages_s(limiter.WINDOW_S),
        )
    except BaseException:
        store.close()
        raise
