"""One run: read Billetweb, decide, write; where the client and the store meet.

The list of events comes first, then what changed among the attendees of the account. The live events whose
turn it is (`agenda.py`), in a small account all of them, are then read one by one (gauges, tickets and, where
it has any, sessions), planned and written in a transaction of its own, a few at a time: what is held in
memory is the list and the events in work, and an event that fails leaves its old data while the others go on.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from loguru import logger
from msgspec import Struct, field, structs

from syncd import agenda
from syncd.agenda import Increment, Pace, Standing
from syncd.attendee_store import TABLE_NAME as ATTENDEES
from syncd.attendee_store import AttendeeStore, Reads
from syncd.attendees import Attendees, EventAnswer
from syncd.attendees import Memory as AttendeeMemory
from syncd.billetweb import Billetweb
from syncd.config import Config
from syncd.errors import BilletwebError, ChallengeError, RateLimited, StoreError, TransportError
from syncd.model import Event, Progress, Run, RunError
from syncd.reconcile import (
    EventPlan,
    Evidence,
    Fetched,
    Verdict,
    is_most,
    judge,
    plan_absent,
    plan_event,
    plan_listed,
    row_id,
)
from syncd.store import Store
from syncd.text import format_duration
from syncd.threads import in_thread
from syncd.wire import Decoded

LISTED_AT_ONCE = 200
PATIENCE = 3
"""So often in a row an event with a reason is tried before its turn; then it waits for that."""


class Failure(Struct, frozen=True):
    """One error of a run as the log tells it: with the HTTP status, which the run's record does not hold."""

    error: RunError
    status: int | None = None


class Attempt(Struct, frozen=True):
    """When an event was tried last, and how often in a row that failed."""

    at: datetime
    failures: int


PASSING = (ChallengeError, RateLimited, TransportError)
"""What has to do with Billetweb as a whole, unless other events are read meanwhile."""
NEVER = Attempt(datetime.min.replace(tzinfo=UTC), 0)


class Memory(Struct):
    """What one run tells the next, in memory.

    `live`: how many events are live by the latest list. `tried`: the events that failed, or are being read.
    `mostly_lacking`: the tables of which the latest run of the whole account found most rows lacking.
    """

    live: int | None = None
    tried: dict[str, Attempt] = field(default_factory=dict)
    mostly_lacking: frozenset[str] = frozenset()
    attendees: AttendeeMemory = field(default_factory=AttendeeMemory)
    pace: Pace | None = None


class Synchronisation:
    """Carries one run out, keeping its record (`run`) up to date for whoever looks meanwhile.

    `full_asked`: somebody asked for a full run, which is then full however long it takes. `read_at` collects
    when the events in which nothing changed were read; `failures` what went wrong.
    """

    def __init__(
        self,
        run: Run,
        client: Billetweb,
        store: Store,
        attendees: AttendeeStore,
        *,
        config: Config,
        memory: Memory,
        full_asked: bool,
        redact: Callable[[str], str],
        on_progress: Callable[[Run], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.read_at: dict[str, datetime] = {}
        self.failures: list[Failure] = []
        self._run = run
        self.client = client
        self._redact = redact
        self._store = store
        self._attendee_store = attendees
        self._config = config
        self._memory = memory
        self._full_asked = full_asked
        self._on_progress = on_progress
        self._now = now
        self._reads: dict[str, Reads] = {}
        self._suspected: set[str] = set()
        self._present: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._unread: set[str] = set()  # of the suspected, those not read in this run
        self._attendees = Attendees(
            run,
            client,
            attendees,
            mode=config.sync.attendees,
            full_every=config.sync.full_every,
            run_timeout=config.sync.run_timeout,
            memory=memory.attendees,
            on_step=lambda: self._advance("attendees", 0, memory.live or 0),
            now=now,
        )
        self._requests_before = client.requests
        self._evidence = Evidence()
        self._with_sessions: set[str] = set()
        self._stored: dict[str, datetime | None] = {}
        self._writing = asyncio.Lock()

    async def execute(self) -> None:
        """Do it all. Raises BilletwebError where the list of events cannot be read, and StoreError."""
        try:
            await self._execute()
        except BaseException:
            with suppress(StoreError):
                await self._settle()
            raise
        else:
            await self._settle()
        finally:
            self._run.requests = self.client.requests - self._requests_before

    async def _settle(self) -> None:
        """Keep what the next run judges by: what was lacking; of what was not read, no suspicion."""
        if self._run.whole:
            most = [table for table, rows in self._present.items() if is_most(self._missing[table], rows)]
            self._memory.mostly_lacking = frozenset(most)
        if self._unread:
            await in_thread(self._store.forget_suspects, self._unread)

    async def _execute(self) -> None:
        self._advance("listing", 0, 0)
        listed = await self._list()
        self._stored = await in_thread(self._store.present_events)
        self._with_sessions = await in_thread(self._store.events_with_sessions)
        self._suspected = await in_thread(self._store.suspected_events)
        self._unread = set(self._suspected)
        live_since = self._now() - self._config.sync.keep_past
        live = {event.id: event for event in listed.records.values() if _is_live(event, live_since)}
        self._memory.live = len(live)
        pace = self._pace(live.values())
        if pace.exceeds_a_run:
            self._run.full = self._full_asked
        if self._run.full and self._run.whole:
            self._warn_of_length(pace)
        self._evidence = await self._weigh(len(live), live_since)
        wanted = self._named(listed)
        if self._run.whole:
            await self._judge_absent(listed, self._stored.keys())
            wanted |= await self._in_turn(live, pace)
            elsewhere = wanted.keys() | live.keys()
            others = [event for key, event in listed.records.items() if key not in elsewhere]
            await self._write_listed(others)
        else:
            self._unread &= wanted.keys()
            self._reads = await in_thread(self._attendee_store.reads)
            await self._clear(listed.records.keys())
        await self._sync_all([*wanted.values()])

    def _warn_of_length(self, pace: Pace) -> None:
        per_minute, limit = self._config.billetweb.requests_per_minute, self._config.sync.run_timeout
        if pace.cost > per_minute * limit / timedelta(minutes=1):
            log = logger.bind(event="run.long", run=self._run.id, requests=pace.cost)
            log.warning(
                "run {}: {} requests for all events take more than sync.run_timeout ({}) lets through at {} a"
                " minute; what is read by then stays, and a longer time lets it end",
                self._run.id,
                pace.cost,
                format_duration(limit.total_seconds()),
                per_minute,
            )

    def _turn_at(self, event_id: str) -> datetime | None:
        """Return when an event was last read or tried; never, where a clock that was ahead says so."""
        tried = self._memory.tried.get(event_id)
        at = tried.at if tried else self._stored.get(event_id)
        return at if at and at <= self._now() else None

    def _failures(self, event_id: str) -> int:
        return self._memory.tried.get(event_id, NEVER).failures

    def _age_order(self, event_id: str) -> tuple[datetime, str]:
        return self._turn_at(event_id) or NEVER.at, event_id

    async def _list(self) -> Decoded[str, Event]:
        try:
            listed = await self.client.events()
        except BilletwebError:
            await in_thread(self._store.forget_all_suspects)
            raise
        for bad in listed.bad:
            self._run.failed += 1
            self._fail("events", "malformed", bad)
        return listed

    async def _weigh(self, live: int, live_since: datetime) -> Evidence:
        doubted = await in_thread(self._store.doubted_events, live_since)
        by_hand = self._run.full and self._run.trigger == "manual"
        mostly = self._memory.mostly_lacking | await in_thread(self._store.mostly_suspected)
        return Evidence(
            full=self._run.full, by_hand=by_hand, needs_hand=2 * doubted > live, mostly_suspected=mostly
        )

    def _named(self, listed: Decoded[str, Event]) -> dict[str, Event]:
        for event_id in self._run.events:
            if event_id not in listed.records:
                self._run.failed += 1
                message = "Billetweb's list of events does not hold this id; look it up there"
                self._fail(f"event {event_id}", "unknown_event", message)
        return {key: listed.records[key] for key in self._run.events if key in listed.records}

    async def _judge_absent(self, listed: Decoded[str, Event], known: Iterable[str]) -> None:
        """Believe, suspect or doubt that events are gone from the account."""
        if listed.bad:  # one of the absent may be among the bad rows: no evidence
            await in_thread(self._store.forget_absent)
            return
        present = set(known)
        suspects = await in_thread(self._store.event_suspects)
        evidence = Evidence(full=self._evidence.full, by_hand=self._evidence.by_hand, needs_hand=True)
        verdict = judge(present, listed.records.keys(), suspects, evidence)
        if verdict.doubt:
            self._run.failed += len(present - listed.records.keys() - verdict.vanished)
            self._fail("events", "doubted", verdict.doubt)
        for plan in plan_absent(present, verdict, suspects):
            await self._apply(plan)

    async def _clear(self, listed: Collection[str]) -> None:
        """Suspect events no longer that this list, of a run that judges none, holds again."""
        suspects = await in_thread(self._store.event_suspects)
        absent = {key: suspicion for key, suspicion in suspects.items() if key not in listed}
        for plan in plan_absent((), Verdict(suspects=absent), suspects):
            await self._apply(plan)

    def _pace(self, live: Iterable[Event]) -> Pace:
        sync = self._config.sync
        cost = sum(self._cost(event) + (sync.attendees != "none") for event in live)
        allowed = agenda.budget(
            cost,
            per_minute=self._config.billetweb.requests_per_minute,
            interval=sync.interval,
            run_timeout=sync.run_timeout,
            full_every=sync.full_every,
        )
        return Pace(budget=allowed, cost=cost)

    def _cost(self, event: Event) -> int:
        """Return the requests that an event's figures take."""
        return 3 if self._has_sessions(event) else 2

    def _has_sessions(self, event: Event) -> bool:
        # An event not in session mode has no sessions; those it had when it was are read until they are gone.
        return event.multiple or event.id in self._with_sessions

    async def _in_turn(self, live: Mapping[str, Event], pace: Pace) -> dict[str, Event]:
        """Return the live events that are read now, in order: all, or in a large account those in turn.

        Of the others, what the list of events says of them is written.
        """
        pace = structs.replace(pace, increment=await self._ask_who_sold(live, pace))
        self._reads = await in_thread(self._attendee_store.reads)
        self._memory.pace = pace
        if self._run.full or not pace.in_turns:
            return {event_id: live[event_id] for event_id in sorted(live, key=self._age_order)}
        plans = {plan.event_id: plan async for plan in self._listed([*live.values()]) if plan.changes}
        edited = plans.keys() & self._stored.keys()
        chosen = agenda.choose(
            (self._standing(event, edited=event.id in edited) for event in live.values()), pace.budget
        )
        self._memory.pace = structs.replace(pace, waiting=chosen.waiting)
        unread = live.keys() - set(chosen.events)
        # In this order: an edit that is written is seen no more.
        await in_thread(self._attendee_store.mark_due, edited & unread, self._now())
        for event_id in plans.keys() & unread:
            await self._apply(plans[event_id])
        return {event_id: live[event_id] for event_id in chosen.events}

    async def _ask_who_sold(self, live: Mapping[str, Event], pace: Pace) -> Increment:
        if self._config.sync.attendees == "none" and (self._run.full or not pace.in_turns):
            if pace.in_turns:
                await self._attendees.skip(live.keys())
            return "not needed"
        try:
            await self._attendees.catch_up(live.keys())
        except BilletwebError as error:
            self._fail("attendees", error.kind, str(error), error.status)
            return "failed"
        return "not permitted" if self._memory.attendees.refused_at else "used"

    async def _write_listed(self, events: Sequence[Event]) -> None:
        async for plan in self._listed(events):
            await self._apply(plan)

    async def _listed(self, events: Sequence[Event]) -> AsyncIterator[EventPlan]:
        """Give the plans for events of which only the list is read."""
        for start in range(0, len(events), LISTED_AT_ONCE):
            some = events[start : start + LISTED_AT_ONCE]
            stored = await in_thread(self._store.stored_events, [event.id for event in some])
            for event in some:
                yield plan_listed(event, stored.get(event.id))

    def _standing(self, event: Event, *, edited: bool) -> Standing:
        reads = self._reads.get(event.id, Reads())
        suspected = event.id in self._suspected
        return Standing(
            id=event.id,
            cost=self._cost(event) + self._attendees.cost(event.id, reads, suspected=suspected),
            read_at=self._turn_at(event.id),
            suspected=suspected,
            due=(edited or reads.due_at is not None) and self._failures(event.id) < PATIENCE,
        )

    async def _sync_all(self, events: Sequence[Event]) -> None:
        self._advance("events", 0, len(events))
        waiting = iter(events)

        async def work() -> None:
            for event in waiting:
                await self._sync_event(event)
                self._advance("events", self._done + 1, len(events))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._config.billetweb.concurrency, len(events))):
                    group.create_task(work())
        except* StoreError as errors:
            raise errors.exceptions[0] from None

    async def _sync_event(self, event: Event) -> None:
        subject = f"event {event.id}"
        failures = self._failures(event.id)
        self._memory.tried[event.id] = Attempt(self._now(), failures)
        try:
            plan, trouble = await self._read_and_write(event)
        except BilletwebError as error:
            self._run.failed += 1
            self._fail(subject, error.kind, str(error), error.status)
            if self._run.synced or not isinstance(error, PASSING):  # or it is not this event that fails
                self._memory.tried[event.id] = Attempt(self._now(), failures + 1)
            return
        self._unread.discard(event.id)
        self._note(plan)
        for table, doubt in plan.doubts.items():
            self._fail(subject, "doubted", f"{table}: {doubt}")
        if trouble:
            self._fail(subject, trouble.kind, str(trouble), trouble.status)
        if plan.doubts or trouble:
            self._run.failed += 1
            self._memory.tried[event.id] = Attempt(self._now(), failures + 1 if plan.doubts else 0)
        else:
            self._run.synced += 1
            del self._memory.tried[event.id]

    async def _read_and_write(self, event: Event) -> tuple[EventPlan, BilletwebError | None]:
        """Return what was written of an event; where its attendees cannot be used all the rest, and why.

        Attendees are read first: what is sold from then on is news to the next increment.
        """
        attendees, trouble = None, None
        with ExitStack() as opened:
            try:
                attendees = await self._read_attendees(event.id)
            except BilletwebError as error:
                trouble = error
            if attendees:
                opened.callback(attendees.close)
            fetched = await self._read(event)
            if attendees:
                try:
                    return await self._write(event, fetched, attendees), None
                except BilletwebError as error:
                    trouble = error
            return await self._write(event, fetched, None, lacks_attendees=bool(trouble)), trouble

    async def _write(
        self,
        event: Event,
        fetched: Fetched,
        attendees: EventAnswer | None,
        *,
        lacks_attendees: bool = False,
    ) -> EventPlan:
        async with self._writing:
            return await in_thread(
                self._plan_and_write, event, fetched, attendees, lacks_attendees=lacks_attendees
            )

    async def _read(self, event: Event) -> Fetched:
        gauges = await self.client.gauges(event.id)
        read_at = self._now()
        tickets = await self.client.tickets(event.id)
        sessions = await self.client.sessions(event.id) if self._has_sessions(event) else None
        repeated = gauges.duplicates + tickets.duplicates + (sessions.duplicates if sessions else 0)
        if repeated:
            logger.debug("event {}: {} rows with a key seen before; the last one counts", event.id, repeated)
        return Fetched(
            gauges={row_id(gauge): gauge for gauge in gauges.records.values()},
            tickets=tickets.records,
            sessions=sessions.records if sessions else None,
            read_at=read_at,
        )

    async def _read_attendees(self, event_id: str) -> EventAnswer | None:
        reads = self._reads.get(event_id, Reads())
        return await self._attendees.read_event(event_id, reads, suspected=event_id in self._suspected)

    def _plan_and_write(
        self, event: Event, fetched: Fetched, attendees: EventAnswer | None, *, lacks_attendees: bool
    ) -> EventPlan:
        """Write all of an event in one transaction; return the plan, with what became of its attendees."""
        plan = plan_event(event, self._store.event_rows(event.id), fetched, self._evidence)
        plan.was_due = self._reads.get(event.id, Reads()).due_at is not None
        at = self._now()
        if attendees:
            take = partial(
                self._attendees.take_event, read=attendees, plan=plan, at=at, evidence=self._evidence
            )
            self._store.apply(self._run.id, plan, at, take)
            return plan
        if lacks_attendees and event.id in self._suspected:  # their next read is not the second in a row
            plan.suspects[ATTENDEES] = {}
        if plan.writes:
            self._store.apply(self._run.id, plan, at)
        return plan

    async def _apply(self, plan: EventPlan) -> None:
        if plan.writes:
            await in_thread(self._store.apply, self._run.id, plan, self._now())
        self._note(plan)

    def _note(self, plan: EventPlan) -> None:
        self._run.counts.add(plan.counts())
        self._present.update(plan.present)
        self._missing.update(plan.missing)
        if plan.read_at and not plan.writes:
            self.read_at[plan.event_id] = plan.read_at

    def _fail(self, subject: str, kind: str, message: str, status: int | None = None) -> None:
        error = RunError(subject, kind, self._redact(message))
        self._run.add_error(error)
        self.failures.append(Failure(error, status))

    @property
    def _done(self) -> int:
        return self._run.progress.done if self._run.progress else 0

    def _advance(self, phase: str, done: int, total: int) -> None:
        self._run.requests = self.client.requests - self._requests_before
        self._run.progress = Progress(phase, done, total)
        self._on_progress(self._run)


def _is_live(event: Event, since: datetime) -> bool:
    """Whether an event has not ended, or not long ago. One without dates is not known to have ended."""
    end = event.ends_at or event.starts_at
    return end is None or end > since
