"""The record of an account's runs: what its database knows of the past, and what a run's end adds to that."""

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime

from msgspec import Struct, structs
from sqlalchemy import Connection

from syncd.account import upkeep
from syncd.billetweb import limiter
from syncd.clock import Clock
from syncd.config import Config
from syncd.database import absences, rows, runs, state
from syncd.database.engine import Database
from syncd.database.rows import Figures, Places
from syncd.database.runs import History
from syncd.database.state import Pause, Readings
from syncd.errors import ValueRefused
from syncd.mirror.agenda import Pace
from syncd.model import Quiet, Run
from syncd.run.report import Report
from syncd.threads import to_the_end

UNRECORDED_AT_MOST = 100
"""At most this many ended runs wait for a database that does not answer: a day of runs, little memory."""
GOOD = ("ok", "partial")
Tell = Callable[[Connection, Run, str | None, datetime], None]
"""A callback with an ended run, and the outcome of the run before it."""


class Stock(Struct, frozen=True):
    """What the database holds now.

    `figures`: of live events; `places`: theirs, for the metrics; `doubts`: the number of scopes with one.
    """

    figures: Figures
    places: list[Places]
    doubts: int
    size_bytes: int


class Past(Struct, frozen=True):
    """What a newly opened database knows of the past."""

    history: History
    stock: Stock
    paused: Pause | None
    readings: Readings | None
    pace: Pace | None
    quiet: Quiet | None
    request_ages_s: list[float]

    @property
    def last_full_at(self) -> datetime | None:
        """When all live events had been read; of a database that never noted it, when a full run ended."""
        return self.readings.ended_at if self.readings else self.history.last_full_at


class Ended(Struct, frozen=True):
    """A run whose end is not recorded yet, and what is recorded with it."""

    run: Run
    report: Report | None = None

    @property
    def pace(self) -> Pace | None:
        """How the run shared out its requests, if it got that far."""
        return self.report.pace if self.report else None


class Recorder:
    """Puts the runs of one account on record: each gets its id there, and their ends come in order.

    An end that the database does not take is kept until it does. `tell` is that of `finish`. `last_full_at`
    is when all live events had been read, in a full run those without a date as far as they fit.
    """

    def __init__(self, database: Database, clock: Clock, *, tell: Tell) -> None:
        self.last_full_at: datetime | None = None
        self.lock = asyncio.Lock()  # held also while the database is opened, or given up for another
        self._database = database
        self._clock = clock
        self._tell = tell
        self._unrecorded: deque[Ended] = deque(maxlen=UNRECORDED_AT_MOST)

    @property
    def unrecorded(self) -> list[Run]:
        """The runs whose ends are not on record yet."""
        return [ended.run for ended in self._unrecorded]

    async def look_back(self, config: Config) -> Past:
        """Return what a newly opened database knows, as the function does. Raises StoreError."""
        now = self._clock.now()
        given = now, now - config.sync.keep_past, config.metrics.events
        past = await self._database.write(look_back, *given, tell=self._tell)
        self.last_full_at = past.last_full_at
        return past

    def keep(self, ended: Ended) -> None:
        """Keep a run's end until `catch_up` records it."""
        self._unrecorded.append(ended)

    async def put(self, run: Run) -> None:
        """Put a run on record, which gives it its id. Raises StoreError."""
        async with self.lock:
            await to_the_end(self._put(run))  # when cancelled too: it has an id then

    async def catch_up(self, config: Config) -> None:
        """Record the ends of runs in order, and prune after a whole reading. Raises StoreError."""
        while self._unrecorded:
            before_at = self.last_full_at
            async with self.lock:
                if self._unrecorded:  # another task may have done it meanwhile
                    await to_the_end(self._put_end(config))  # when cancelled too: else it is recorded twice
            if before_at and self.last_full_at != before_at:
                await upkeep.prune(self._database, self._clock, config.sync.keep_changes, before_at)

    def outlive(self) -> list[Run]:
        """Forget ends that went with a lost database; return the runs whose ends the next one gets.

        A run that wrote into the lost one is not among them.
        """
        kept = [run for run in self.unrecorded if run.outcome not in GOOD]
        self._unrecorded = deque(map(Ended, kept), maxlen=UNRECORDED_AT_MOST)
        return kept

    async def _put(self, run: Run) -> None:
        run.id = await self._database.write(runs.put, run)

    async def _put_end(self, config: Config) -> None:
        ended, now = self._unrecorded[0], self._clock.now()
        given = ended, now, now - config.sync.keep_past, self.last_full_at
        try:
            ended.run.id, readings = await self._database.write(finish, *given, tell=self._tell)
        except ValueRefused:  # a database that is not UTF-8 lacks a letter; it would block all later runs
            ended.run.errors = [error.spelled_out() for error in ended.run.errors]
            ended.run.id, readings = await self._database.write(finish, *given, tell=self._tell)
        self._unrecorded.popleft()
        self.last_full_at = readings.ended_at


def look_back(
    connection: Connection, now: datetime, live_since: datetime, places_at_most: int, *, tell: Tell
) -> Past:
    """Return what is recorded; close the runs that an earlier process left unfinished, and `tell` of them."""
    for run in runs.close_interrupted(connection, now):
        _, before = runs.latest_outcome(connection, but=run.id)
        tell(connection, run, before, now)
    state.forget_requests(connection, now.timestamp(), limiter.WINDOW_S)
    return Past(
        history=runs.history(connection, now),
        stock=stock(connection, live_since, places_at_most),
        paused=state.pause(connection),
        readings=state.get(connection, state.READINGS, Readings),
        pace=state.get(connection, state.PACE, Pace),
        quiet=_quiet(connection, now),
        request_ages_s=state.request_ages_s(connection, now.timestamp(), limiter.WINDOW_S),
    )


def _quiet(connection: Connection, now: datetime) -> Quiet | None:
    """Return the recorded time of rest; one that begins in the future came from a clock that was ahead."""
    quiet = state.get(connection, state.QUIET, Quiet)
    if quiet and quiet.since > now:  # otherwise it would last longer, again at each start
        quiet = structs.replace(quiet, since=now, until=now + (quiet.until - quiet.since))
        state.put(connection, state.QUIET, quiet)
    return quiet


def stock(connection: Connection, live_since: datetime, places_at_most: int) -> Stock:
    """Return what the database holds now; no places if there are more live events than `places_at_most`."""
    return Stock(
        figures=rows.figures(connection, live_since),
        places=rows.places(connection, live_since, places_at_most),
        doubts=absences.count_doubts(connection),
        size_bytes=state.size_bytes(connection),
    )


def finish(
    connection: Connection,
    ended: Ended,
    now: datetime,
    live_since: datetime,
    last_full_at: datetime | None,
    *,
    tell: Tell,
) -> tuple[int, Readings]:
    """Record a run's end; return its id, and the state of the readings of the whole account.

    `tell` records, in the same transaction, the deliveries that follow.
    """
    report, pace = ended.report, ended.pace
    run = structs.replace(ended.run, id=runs.id_of(connection, ended.run))
    if not runs.has_ended(connection, run):  # else the answer to that commit was lost
        latest_id, before = runs.latest_outcome(connection)  # of this very run, if another syncd closed it
        is_past = 0 < run.id < latest_id
        run.id = runs.put(connection, run)
        if not is_past:  # else the later one was told
            tell(connection, run, before, now)
    state.forget_requests(connection, now.timestamp(), limiter.WINDOW_S)
    if report:
        rows.set_read_at(connection, report.read_at, now)
        state.note_tries(connection, report.tries)
    if run.whole:
        absences.forget_unread(connection, live_since)
    if pace:
        state.put(connection, state.PACE, pace)
    held = state.get(connection, state.READINGS, Readings)
    readings = held or Readings(run.started_at or now, ended_at=last_full_at)
    if ended_at := _reading_ended_at(connection, ended, readings, now, live_since):
        readings = Readings(ended_at, ended_at=ended_at)
    if readings != held:
        state.put(connection, state.READINGS, readings)
    return run.id, readings


def _reading_ended_at(
    connection: Connection, ended: Ended, readings: Readings, now: datetime, live_since: datetime
) -> datetime | None:
    """Return when all live events were read, in this run or a rotation that ends with it; else None."""
    run, pace = ended.run, ended.pace
    if run.whole and run.full and run.outcome in GOOD:
        return run.finished_at
    if not pace or not pace.exceeds_a_run or pace.waiting:
        return None
    since = readings.began_at
    failing = [
        key for key, reads in state.reads(connection).items() if reads.tried_at and reads.tried_at > since
    ]
    figures = rows.figures(connection, live_since, failing)
    was_whole = figures.oldest_at and figures.oldest_at > since and figures.read == figures.events
    return now if was_whole else None
