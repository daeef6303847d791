"""One event in a run: reads it, plans it, and writes all of it in one transaction."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from loguru import logger
from msgspec import Struct
from sqlalchemy import Connection

from syncd.billetweb.decode import Decoded
from syncd.database import rows
from syncd.database.attendees import Ingested
from syncd.database.rows import Writing
from syncd.database.state import Reads
from syncd.errors import (
    BilletwebError,
    ChallengeError,
    RateLimited,
    StoreError,
    SyncdError,
    TransportError,
    ValueRefused,
)
from syncd.mirror.diff import EventPlan, EventRows, Fetched, plan_event
from syncd.model import ATTENDEES, GAUGES, SESSIONS, TICKETS, Event
from syncd.run.attendees import Attendees, EventAnswer
from syncd.run.work import Work

PASSING = (ChallengeError, RateLimited, TransportError)
"""Errors of Billetweb as a whole, unless other events are read in the same run."""


class Known(Struct, frozen=True):
    """What the database knows of all events before a run reads them.

    `with_sessions`: those that have sessions. `again`: by event, the tables with absent rows that the next
    read may settle; in a run that accepts absences, all tables with absent rows.
    """

    reads: dict[str, Reads]
    with_sessions: set[str]
    again: dict[str, set[str]]

    def reads_of(self, event_id: str) -> Reads:
        """Return what is remembered of an event's reads."""
        return self.reads.get(event_id, Reads())

    def has_sessions(self, event: Event) -> bool:
        """Whether to read sessions: in session mode, and after that until they are gone."""
        return event.multiple or event.id in self.with_sessions

    def cost(self, event: Event) -> int:
        """Return how many requests an event's figures take."""
        return 3 if self.has_sessions(event) else 2


class Events:
    """Reads events and writes them, some at a time; memory holds only the events in work."""

    def __init__(self, work: Work, attendees: Attendees, known: Known) -> None:
        self._work = work
        self._attendees = attendees
        self._known = known
        self._writing = asyncio.Lock()
        self._in_work: set[str] = set()
        self._without_answer: list[str] = []
        self._others_answered = False

    async def sync(self, events: Sequence[Event]) -> None:
        """Update events, in order. Raises StoreError; any other fault is that event's error."""
        self._work.report.advance("events", 0, len(events))
        waiting = iter(events)

        async def work() -> None:
            for event in waiting:
                self._in_work.add(event.id)
                await self._sync(event)
                self._in_work.discard(event.id)
                self._work.report.step()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._work.config.billetweb.concurrency, len(events))):
                    group.create_task(work())
        except ExceptionGroup as faults:
            failures, others = faults.split(StoreError)
            if failures and not others:  # by `except*` it would leave in a group again, on Debian 12's 3.11.2
                raise failures.exceptions[0] from None
            raise
        finally:
            for event_id in self._without_answer:  # if others had one, the fault is these events'
                self._tried(event_id, failed=self._others_answered)
            for event_id in self._in_work:  # the run after a cut one reads the others first
                self._tried(event_id)

    def _tried(self, event_id: str, *, failed: bool = False) -> None:
        before = self._known.reads_of(event_id)
        failures = before.failures + 1 if failed else before.failures
        self._work.report.tried(event_id, before, self._work.clock.now(), failures)

    async def _sync(self, event: Event) -> None:
        run, report, subject = self._work.run, self._work.report, f"event {event.id}"
        try:
            plan, trouble = await self._read_and_write(event)
        except (BilletwebError, ValueRefused) as error:
            run.failed += 1
            report.fail(subject, error)
            was_asked = isinstance(error, ValueRefused) or error.is_sent  # else it keeps its turn
            if was_asked and isinstance(error, PASSING):
                self._without_answer.append(event.id)
            elif was_asked:
                self._tried(event.id, failed=True)
            return
        self._others_answered = True
        run.counts.unchanged += plan.unchanged
        report.sizes |= {(lack.table, event.id): lack.size for lack in plan.lacks}
        if plan.read_at and plan.is_odd:
            report.odd[event.id] = plan.read_at
        elif plan.read_at and not plan.writes:
            report.read_at[event.id] = plan.read_at
        if trouble:
            run.failed += 1
            report.fail(subject, trouble)
        else:
            run.synced += 1
        if plan.is_odd:  # that did not use its turn
            self._tried(event.id, failed=True)
        else:  # the new age of its figures alone shows that it had its turn
            at = self._work.clock.now() if trouble else None
            report.tried(event.id, self._known.reads_of(event.id), at, 0)

    async def _read_and_write(self, event: Event) -> tuple[EventPlan, SyncdError | None]:
        """Return the written plan; if its attendees cannot be used, that of the rest, and the reason.

        Attendees are read first: the next increment reports what is sold after that.
        """
        answer: EventAnswer | None = None
        trouble: SyncdError | None = None
        with ExitStack() as opened:
            try:
                again = ATTENDEES in self._known.again.get(event.id, ())
                reads = self._known.reads_of(event.id)
                answer = await self._attendees.read_event(event.id, reads, opened, again=again)
            except BilletwebError as error:
                trouble = error
            fetched = await self._read(event)
            if answer:
                try:
                    return await self._write(event, fetched, answer), None
                except (BilletwebError, ValueRefused) as error:
                    trouble = error
            return await self._write(event, fetched, None), trouble

    async def _read(self, event: Event) -> Fetched:
        client = self._work.client
        read: dict[str, Decoded[Any]] = {GAUGES: await client.gauges(event.id)}
        read_at = self._work.clock.now()
        read[TICKETS] = await client.tickets(event.id)
        has_sessions = self._known.has_sessions(event)
        read[SESSIONS] = await client.sessions(event.id) if has_sessions else Decoded(records={})
        if repeated := sum(part.duplicates for part in read.values()):
            logger.debug("event {}: {} rows with a key seen before; the last one counts", event.id, repeated)
        for table, part in read.items():
            self._work.report.unreadable.note(table, part.unreadable)
        return Fetched(
            rows={table: part.records for table, part in read.items()},
            read_at=read_at,
            unreadable={table: part.unreadable for table, part in read.items()},
        )

    async def _write(self, event: Event, fetched: Fetched, answer: EventAnswer | None) -> EventPlan:
        """Plan and write all of an event in one transaction; return the plan."""
        async with self._writing:  # other events' rows must not move between plan and transaction
            plan = await self._work.database.read(self._plan, event, fetched)
            if answer:
                ingested = await self._work.write(self._write_with, plan, answer)
                self._work.report.unreadable.add(ingested.unreadable)
                if ingested.size:
                    self._work.report.sizes[ATTENDEES, event.id] = ingested.size
            elif plan.writes:
                await self._work.write(rows.write_plan, plan)
        return plan

    def _plan(self, connection: Connection, event: Event, fetched: Fetched) -> EventPlan:
        read = {table: fetched.rows[table] for table in (TICKETS, SESSIONS)}
        known: EventRows = rows.of_event(connection, event.id, read)
        was_due = self._known.reads_of(event.id).due_at is not None
        not_places = self._work.config.sync.not_places
        return plan_event(event, known, fetched, was_due=was_due, not_places=not_places)

    def _write_with(
        self, connection: Connection, writing: Writing, plan: EventPlan, answer: EventAnswer
    ) -> Ingested:
        """Write the plan of an event and its attendees."""
        ingested = self._attendees.ingest_event(connection, writing, answer)
        rows.write_plan(connection, writing, plan)
        return ingested
