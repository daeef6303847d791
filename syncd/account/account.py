"""One account as one object: the client, the database and the facts that runs and status need.

The daemon and `syncd once` both use it. The database is opened as soon as possible: until then runs fail and
say so, and are recorded as soon as it answers.
"""

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Unpack

from loguru import logger

from syncd.account import record, upkeep
from syncd.account.record import Ended, Recorder
from syncd.account.schedule import Schedule, first_slot
from syncd.account.status import Facts, State, Status, budget_status
from syncd.billetweb.client import Billetweb
from syncd.billetweb.limiter import RateLimiter
from syncd.clock import Clock
from syncd.config import Config
from syncd.database import absences, deliveries, rows, state
from syncd.database import runs as runs_on_record
from syncd.database.deliveries import Delivery
from syncd.database.engine import Database, masked
from syncd.database.state import Pause
from syncd.errors import RunCancelled, StoreError
from syncd.feed.outputs import Outputs
from syncd.model import Doubt, Json, Peer, Quiet, Run, RunError, Wish
from syncd.run.report import Report, RunLog
from syncd.run.run import execute
from syncd.run.runner import Runner
from syncd.run.work import Work
from syncd.text import run_name
from syncd.threads import Attempts, Background, in_thread, to_the_end

EVER = datetime.fromtimestamp(0, UTC)
ANSWER_WITHIN_S = 2.0
"""How long an answer waits: a run's for its lasting id, a reload's for the check of the site's tables."""


class Account:
    """Executes the runs of one account, one after the other; opens its database as soon as possible.

    `serve` starts its `runner` and `stop` ends it; `schedule` asks for runs from `start` on. The callbacks
    are called at each run's beginning, steps and end.
    """

    def __init__(
        self,
        config: Config,
        redact: Callable[[str], str],
        *,
        clock: Clock | None = None,
        on_begin: Callable[[Run], None] = lambda _: None,
        on_progress: Callable[[Run], None] = lambda _: None,
        on_end: Callable[[Run], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.clock = clock or Clock()
        self.database = Database(config.database.url)
        self.facts = Facts(started_at=self.clock.now(), now=self.clock.now)
        self.outputs = Outputs(config, self.database, self.clock, redact)
        self.paused: Pause | None = None
        self.runner = Runner(
            self._work,
            timeout=config.sync.run_timeout,
            record=self._record_end,
            on_end=self._conclude,
            redact=redact,
            clock=self.clock,
        )
        self.schedule = Schedule(self._fire)
        self._began_s = self.clock.running_s()
        self._outlived = False  # whether the database that this process learned from is gone
        self._redact = redact
        self._on_begin = on_begin
        self._on_progress = on_progress
        self._on_end = on_end
        self._limiter = RateLimiter(
            config.billetweb.requests_per_minute,
            note=self._note_request,
            clock=self.clock.running_s,
            sleep=self.clock.sleep,
            on_wait=lambda: self._at_work.report.step(0) if self._at_work else None,
        )
        self.client = self._new_client(config)
        self._log = RunLog(self.clock.running_s)
        self.recorder = Recorder(self.database, self.clock, tell=self.outputs.webhooks.outbox.ended)
        self._at_work: Work | None = None
        self._opening = Attempts()
        self._noting = asyncio.Lock()
        self._background = Background()

    # --- life

    async def open(self, *, anew: bool = False) -> None:
        """Open the database if it is not open; `anew` as in Attempts. Raises StoreError, AlreadyRunning."""
        async with self._opening.shared(anew=anew):  # a run and a command may both come first
            if not self.database.is_open:
                async with self.recorder.lock:  # an end recorded meanwhile would count twice
                    await to_the_end(self._open())  # when cancelled too: what is open holds the lock
                self._deliver_held()

    async def _open(self) -> None:
        await in_thread(self.database.open)
        try:
            past = await self.recorder.look_back(self.config)
            if self._outlived and self.paused != past.paused:  # what was asked of this process is later
                await self.database.write(state.put, state.PAUSED, self.paused)
        except BaseException:
            await in_thread(self.database.close)
            raise
        self.facts.load(past)
        if not self._outlived:  # else this process has later facts
            self.paused = past.paused
            self._limiter.remember(past.request_ages_s)
            self.client.breaker.restore(past.quiet)
        self._outlived = False

    async def _reopen(self) -> None:
        """Open the database again if it is no longer this process's. Raises as `open`.

        Only a run may do so, as it begins: a run in progress relies on what it read before.
        """
        if not (how := await in_thread(self.database.lost)):
            return
        logger.bind(event="database.displaced").error("{}; what is there now is opened instead", how)
        async with self._opening.alone, self.recorder.lock:
            if not self.database.was_taken:
                self._outlive()
            await in_thread(self.database.close)
            unrecorded = self.recorder.unrecorded
            self.facts = self.facts.anew(run for run in unrecorded if self._outlived or run.id < 0)
            self.outputs.feeds.forget()

    def _outlive(self) -> None:
        """Forget what a lost database held: what earlier runs left, and the runs' own ids."""
        self._outlived = True
        for run in filter(None, (self.runner.current, self.runner.queued, *self.recorder.outlive())):
            self.runner.renumber(run)

    def start(self) -> None:
        """Start the schedule: a run now if configured, and one in each slot."""
        sync, now = self.config.sync, self.clock.now()
        in_step_with = None if sync.run_on_start else self.facts.last_success_at
        self.schedule.start(sync.interval, sync.jitter, first_slot(now, sync.interval, in_step_with))
        runs_now = sync.run_on_start and not self.paused and not self.runner.is_stopping
        self._background.start(self.outputs.publishing.examine())
        if not runs_now:
            self._tidy()
        self.outputs.hold(EVER)  # what an interrupted run left unwritten is written before it is told
        self.outputs.webhooks.start()
        self._background.start(self.outputs.webhooks.refresh() if runs_now else self._deliver())
        if runs_now:
            self.runner.request("startup")

    async def close(self) -> None:
        """Close the connections and the database."""
        await asyncio.gather(self._background.cancel(), self.outputs.close())
        await self.client.aclose()
        await in_thread(self.database.close)

    async def configure(self, config: Config) -> None:
        """Apply new settings: the client's now, or with the next run if one is in progress.

        Raises ConfigError, with nothing changed, if the client cannot be made.
        """
        client = self._new_client(config)
        self.config = config
        self.outputs.configure(config)
        examining = self._background.start(self.outputs.publishing.examine())
        self._tidy()
        self._background.start(self._update_facts())
        self._background.start(self.outputs.webhooks.refresh())
        self.runner.timeout = config.sync.run_timeout
        self.schedule.change(config.sync.interval, config.sync.jitter)
        self._limiter.per_minute = config.billetweb.requests_per_minute
        before, self.client = self.client, client
        self.client.succeed(before)
        if self._at_work is None or self._at_work.client is not before:
            await before.aclose()
        await asyncio.wait({examining}, timeout=ANSWER_WITHIN_S)

    def _tidy(self) -> None:
        """Erase what may no longer be kept; during a run, which keeps its old settings, after its end."""
        if self._at_work is None:
            self._background.start(upkeep.tidy(self.database, self.config, self.clock.now()))

    async def _fire(self) -> None:
        """Start the run of a scheduled slot, or skip it; return when it has ended."""
        waiting = [run for run in (self.runner.current, self.runner.queued) if run and run.whole]
        if self.paused and not self.database.displacement():  # else another syncd may have resumed them
            self.schedule.skip("paused")
        elif self.client.breaker.refused:
            self.schedule.skip("credentials")
        elif waiting:
            self.schedule.skip("busy")
        elif not self.runner.is_stopping:
            await self.runner.wait(self.runner.request("interval"))

    # --- requests

    async def request(self, **wish: Unpack[Wish]) -> Run:
        """Return the run that serves a manual request. Raises Stopping and TooManyEvents."""
        run = self.runner.request("manual", **wish)
        recording = self._background.start(self._try_to_record(run))
        await asyncio.wait({recording}, timeout=ANSWER_WITHIN_S)
        return run

    async def find_run(self, run_id: int) -> Run | None:
        """Return a run of this process, or a recorded one. Raises StoreError."""
        return self.runner.find(run_id) or await self.database.read(runs_on_record.find, run_id)

    async def runs(self, limit: int, before: int | None) -> list[Run]:
        """Return the latest runs that began, newest first. Raises StoreError, as do all methods below."""
        await self.open()
        current = self.runner.current  # its progress so far is not recorded yet
        found = await self.database.read(runs_on_record.latest, limit, before)
        return [current if current and current.id == run.id else run for run in found]

    async def events(self, *, ended_too: bool) -> list[Json]:
        """Return the events with their availability."""
        await self.open()
        since = None if ended_too else self._live_since()
        return await self.database.read(rows.shown_events, since, self.clock.now())

    async def doubts(self) -> list[Doubt]:
        """Return what is absent upstream and not believed gone yet."""
        await self.open()
        return await self.database.read(absences.doubts, self.clock.now(), self.config.sync.full_every)

    async def deliveries(self, limit: int, *, delivered_too: bool) -> list[Delivery]:
        """Return the latest waiting and parked webhook deliveries, newest first; or the latest of all."""
        await self.open()
        return await self.database.read(deliveries.latest, limit, delivered_too=delivered_too)

    async def pause(self, *, paused: bool, requested_by: Peer | None = None) -> bool:
        """Pause or resume scheduled runs; return whether that changed. Raises if it cannot be stored."""
        await self.open()
        if paused is (self.paused is not None):
            return False
        user = requested_by.user if requested_by else None
        pause = Pause(self.clock.now(), user) if paused else None
        await self.database.write(state.put, state.PAUSED, pause)
        self.paused = pause
        if paused:  # no run will come that does this
            self._deliver_held()
        what, by = "paused" if paused else "on again", f" (by {user})" if user else ""
        logger.bind(event="paused" if paused else "resumed").info("scheduled runs are {}{}", what, by)
        return True

    def status(self) -> Status:
        """Return the status, from memory."""
        facts, interval, refused = self.facts, self.config.sync.interval, self.client.breaker.refused
        health, reason = facts.health(interval, refused=refused, displaced=self.database.displacement())
        return Status(
            **facts.told(),
            pid=os.getpid(),
            uptime_s=round(self.clock.running_s() - self._began_s, 1),
            state=self._state(),
            health=health,
            health_reason=reason,
            is_running=not self.paused and not self.runner.is_stopping,
            interval_s=interval.total_seconds(),
            next_run_at=None if self.paused else self.schedule.next_at,
            current_run=self.runner.current,
            queued_runs=1 if self.runner.queued else 0,
            database=masked(self.database.url),
            publish=self.outputs.publishing.status(),
            webhooks=self.outputs.webhooks.status(),
            feeds=self.outputs.feeds.status(),
            budget=budget_status(facts.pace, interval),
            slots_skipped=dict(self.schedule.skipped),
            slots_missed=self.schedule.missed,
            paused_since=self.paused.since if self.paused else None,
            paused_by=self.paused.by if self.paused else None,
            skipping="paused" if self.paused else "credentials" if refused else None,
        )

    def _state(self) -> State:
        if self.runner.is_stopping:
            return "stopping"
        return "running" if self.runner.current else "paused" if self.paused else "idle"

    # --- runs

    async def _try_to_record(self, run: Run) -> None:
        current = self.runner.current
        if current and current is not run and current.id < 0:
            return  # that run began earlier, and gets its id first
        try:
            await self.recorder.catch_up(self.config)
            await self.recorder.put(run)
        except StoreError as error:  # it has no lasting id yet, and gets one when it begins
            logger.debug("{} is not on record yet: {}", run_name(run.id), error)

    async def _work(self, run: Run) -> None:
        """Execute a run. Raises the SyncdError that made it impossible."""
        full_asked = run.full
        try:
            await self._reopen()
            await self.open(anew=True)
            await self.recorder.catch_up(self.config)  # this run relies on them too
            if run.trigger != "manual" and run.whole:
                run.full = run.full or self._full_is_due()
            # A pause may only be known once the database is open.
            is_paused = self.paused is not None and run.trigger in ("startup", "interval")
            if not is_paused:
                await self.recorder.put(run)
        finally:
            self._log.started(run)
            self._on_begin(run)
        if is_paused:
            raise RunCancelled("scheduled runs are paused; resume them with `syncctl resume`")
        if run.trigger == "manual" or full_asked:  # a person vouches for the credentials
            self.client.breaker.reset()
        client, config = self.client, self.config  # a reload meanwhile affects the next run only
        self._at_work = Work(
            config=config,
            client=client,
            database=self.database,
            clock=self.clock,
            report=Report(
                run,
                redact=self._redact,
                requests=lambda: client.requests,
                on_progress=self._advanced,
                waits=lambda: self._limiter.waits(self.clock.now()),
            ),
            full_asked=full_asked,
            follow=self.outputs.follow,
            doubted=self.outputs.webhooks.outbox.doubted,
        )
        self.outputs.hold(self.clock.now())
        await upkeep.retain(self.database, config, self.clock.now())
        await execute(self._at_work)
        self.database.prove()  # it may be gone since the last thing was written

    def _advanced(self, run: Run) -> None:
        self.runner.advance(run)
        self.outputs.webhooks.wake()
        self._on_progress(run)

    async def _record_end(self, run: Run, error: RunError | None) -> None:
        """Log a run's end, and record it or log why it is not recorded. Raises nothing."""
        report = self._at_work.report if self._at_work else None
        failures = list(report.failures) if report else []
        # Not taken from the run's own errors, which are limited in number.
        self._log.finished(run, [*failures, error] if error else failures)
        self.recorder.keep(Ended(run, report))
        try:
            if self.database.is_open:
                await self.recorder.catch_up(self.config)
        except StoreError as trouble:
            logger.bind(event="error.database").error(
                "{} is not on record yet: {}; tried again with the next run", run_name(run.id), trouble
            )

    async def _conclude(self, run: Run) -> None:
        """Count a run that ended, and do what follows. Raises nothing."""
        work, self._at_work = self._at_work, None
        self.facts.count(run, work.report.pace if work else None)
        try:
            await self._update_facts()
            if work and work.client is not self.client:
                self.client.breaker.restore(work.client.breaker.quiet)
                await work.client.aclose()
            if work and work.config.sync.attendees != self.config.sync.attendees:
                self._tidy()
            await self._deliver(run.started_at or EVER)
        finally:
            self._on_end(run)

    def _deliver_held(self) -> None:
        if self.outputs.webhooks.is_held and self.runner.current is None:  # else the run's end does it
            self._background.start(self._deliver())

    async def _deliver(self, since: datetime = EVER) -> None:
        """Write the site's tables elsewhere, unless syncd stops, and its files; then call the endpoints."""
        latest, now = self.facts.last_run, self.clock.now()
        can_write = self.database.is_open and not self.runner.is_stopping
        was_written = await self.outputs.write(now, self.facts.events_unread, tables=can_write)
        no_run_comes = self.database.is_open and bool(self.paused or self.client.breaker.refused)
        # What a run brought meanwhile, or brings, its own end writes; what a stop leaves, the next start.
        is_latest = self.runner.current is None and self.facts.last_run is latest
        if is_latest and not self.runner.is_stopping and (was_written or no_run_comes):
            self.outputs.release(since, whatever_fails=no_run_comes)
        await self.outputs.webhooks.refresh()

    async def _update_facts(self) -> None:
        """Update the facts from what a run left. Raises nothing."""
        try:
            if self.database.is_open:
                since, places_at_most = self._live_since(), self.config.metrics.events
                self.facts.update(await self.database.read(record.stock, since, places_at_most))
                await in_thread(self.database.checkpoint)  # readers may have kept the log from being emptied
        except StoreError as error:
            logger.bind(event="error.database").error("the mirror's figures cannot be read: {}", error)

    def _live_since(self) -> datetime:
        return self.clock.now() - self.config.sync.keep_past

    def _full_is_due(self) -> bool:
        takes_turns = self.facts.pace and self.facts.pace.exceeds_a_run  # the rotation is as good
        every, now = self.config.sync.full_every, self.clock.now()
        return not takes_turns and not state.is_recent(self.recorder.last_full_at, now, every)

    # --- callbacks of the client

    async def _note_request(self) -> bool:
        return await self._note("a request", state.note_request, self.clock.now().timestamp())

    async def _note_quiet(self, quiet: Quiet | None) -> None:
        async with self._noting:  # the latest must win
            await self._note("a time of rest", state.put, state.QUIET, quiet)

    async def _note(self, what: str, note: Callable[..., None], *given: object) -> bool:
        """Store a fact for the next start; if that fails, it still holds within this process."""
        try:
            await self.database.write(note, *given)
        except StoreError as error:
            logger.debug("{} could not be noted: {}", what, error)
            return False
        return True

    def _new_client(self, config: Config) -> Billetweb:
        return Billetweb(
            config.billetweb,
            config.key,
            self._limiter,
            count_carts=config.sync.count_carts,
            clock=self.clock,
            on_quiet=self._note_quiet,
        )
