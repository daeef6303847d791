"""One run: read Billetweb, decide, write; where the client and the store meet.

The list of events comes first. Each live event is then read by itself (gauges, tickets and, where it has
any, sessions), planned and written in a transaction of its own, a few at a time: what is held in memory is
the list and the events in work, and an event that fails leaves its old data while the others go on.
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from loguru import logger
from msgspec import Struct

from syncd.billetweb import Billetweb
from syncd.errors import BilletwebError, StoreError
from syncd.model import Event, Progress, Run, RunError
from syncd.reconcile import (
    EventPlan,
    Evidence,
    Fetched,
    judge,
    plan_absent,
    plan_event,
    plan_listed,
    row_id,
)
from syncd.store import Store
from syncd.threads import in_thread
from syncd.wire import Decoded

FEW_EVENTS = 3
"""Up to so many live events, doubted reads in most of them are no sign of a fault in the whole account."""
PAST_AT_ONCE = 200


class Failure(Struct, frozen=True):
    """One error of a run as the log tells it: with the HTTP status, which the run's record does not hold."""

    error: RunError
    status: int | None = None


class Synchronisation:
    """Carries one run out, keeping its record (`run`) up to date for whoever looks meanwhile.

    `read_at` collects when the events in which nothing changed were read; `failures` what went wrong.
    """

    def __init__(
        self,
        run: Run,
        client: Billetweb,
        store: Store,
        *,
        keep_past: timedelta,
        workers: int,
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
        self._keep_past = keep_past
        self._workers = workers
        self._on_progress = on_progress
        self._now = now
        self._requests_before = client.requests
        self._evidence = Evidence()
        self._with_sessions: set[str] = set()
        self._writing = asyncio.Lock()

    async def execute(self) -> None:
        """Do it all. Raises BilletwebError where the list of events cannot be read, and StoreError."""
        try:
            await self._execute()
        finally:
            self._run.requests = self.client.requests - self._requests_before

    async def _execute(self) -> None:
        self._advance("listing", 0, 0)
        listed = await self._list()
        known = await in_thread(self._store.present_events)
        self._with_sessions = await in_thread(self._store.events_with_sessions)
        live_since = self._now() - self._keep_past
        live = {event.id: event for event in listed.records.values() if _is_live(event, live_since)}
        self._evidence = await self._weigh(len(live), live_since)
        wanted = self._named(listed) | (live if self._run.whole else {})
        if self._run.whole:
            await self._judge_absent(listed, known.keys())
            await self._write_past([event for key, event in listed.records.items() if key not in wanted])
        never = datetime.min.replace(tzinfo=UTC)
        by_age = sorted(wanted.values(), key=lambda event: (known.get(event.id) or never, event.id))
        await self._sync_all(by_age)

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
        many = live > FEW_EVENTS and 2 * doubted > live
        return Evidence(full=self._run.full, by_hand=by_hand, needs_hand=many)

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
            await in_thread(self._store.forget_suspects, [], in_events=True)
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

    async def _write_past(self, past: list[Event]) -> None:
        for start in range(0, len(past), PAST_AT_ONCE):
            some = past[start : start + PAST_AT_ONCE]
            stored = await in_thread(self._store.stored_events, [event.id for event in some])
            for event in some:
                await self._apply(plan_listed(event, stored.get(event.id)))

    async def _sync_all(self, events: list[Event]) -> None:
        self._advance("events", 0, len(events))
        waiting = iter(events)
        unread = {event.id for event in events}

        async def work() -> None:
            for event in waiting:
                await self._sync_event(event)
                unread.discard(event.id)
                self._advance("events", self._done + 1, len(events))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._workers, len(events))):
                    group.create_task(work())
        except* StoreError as errors:
            raise errors.exceptions[0] from None
        finally:
            if unread:  # stopped half-way: for these the next run's read is not the second in a row
                await in_thread(self._store.forget_suspects, unread, in_events=False)

    async def _sync_event(self, event: Event) -> None:
        subject = f"event {event.id}"
        try:
            fetched = await self._read(event)
        except BilletwebError as error:
            self._run.failed += 1
            self._fail(subject, error.kind, str(error), error.status)
            await in_thread(self._store.forget_suspects, [event.id], in_events=False)
            return
        async with self._writing:
            plan = await in_thread(self._plan_and_write, event, fetched)
        self._note(plan)
        for table, doubt in plan.doubts.items():
            self._fail(subject, "doubted", f"{table}: {doubt}")
        if plan.doubts:
            self._run.failed += 1
        else:
            self._run.synced += 1

    async def _read(self, event: Event) -> Fetched:
        gauges = await self.client.gauges(event.id)
        read_at = self._now()
        tickets = await self.client.tickets(event.id)
        # An event not in session mode has no sessions; those it had when it was are read until they are gone.
        has_sessions = event.multiple or event.id in self._with_sessions
        sessions = await self.client.sessions(event.id) if has_sessions else None
        repeated = gauges.duplicates + tickets.duplicates + (sessions.duplicates if sessions else 0)
        if repeated:
            logger.debug("event {}: {} rows with a key seen before; the last one counts", event.id, repeated)
        return Fetched(
            gauges={row_id(gauge): gauge for gauge in gauges.records.values()},
            tickets=tickets.records,
            sessions=sessions.records if sessions else None,
            read_at=read_at,
        )

    def _plan_and_write(self, event: Event, fetched: Fetched) -> EventPlan:
        plan = plan_event(event, self._store.event_rows(event.id), fetched, self._evidence)
        if plan.writes:
            self._store.apply(self._run.id, plan, self._now())
        return plan

    async def _apply(self, plan: EventPlan) -> None:
        if plan.writes:
            await in_thread(self._store.apply, self._run.id, plan, self._now())
        self._note(plan)

    def _note(self, plan: EventPlan) -> None:
        self._run.counts.add(plan.counts())
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
