"""A mirror whose runs read what a test hands them: planned, written and ruled over by syncd's own code.

There is no Billetweb and no event loop but for the end of a run; the time stands still until a test moves it.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs
from sqlalchemy import Engine, create_engine

from support.real_databases import Rows, is_postgresql, query
from syncd.account import record
from syncd.account.account import Account
from syncd.account.record import Ended
from syncd.billetweb.decode import Decoded
from syncd.clock import Clock
from syncd.config import (
    BilletwebConfig,
    Config,
    ControlConfig,
    DatabaseConfig,
    HeartbeatConfig,
    LogConfig,
    Secret,
    SyncConfig,
)
from syncd.database import absences, attendees, rows, runs, sqlite, state
from syncd.database.attendees import Ingested
from syncd.database.rows import Writing
from syncd.database.state import Reads
from syncd.mirror.absence import Absence
from syncd.mirror.diff import KINDS, PARTS, EventPlan, EventRows, Fetched, Stored, plan_event, plan_listed
from syncd.model import (
    ATTENDEES,
    EVENTS,
    SESSIONS,
    TICKETS,
    Attendee,
    Doubt,
    Event,
    Gauge,
    Run,
    Session,
    Ticket,
)
from syncd.run import listing
from syncd.run.report import Report
from syncd.run.sweep import sweep
from syncd.run.work import Work

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
FULL_EVERY = timedelta(days=1)
KEEP_PAST = timedelta(days=30)


class StandsStill(Clock):
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        return self.at


class Mirror:
    """An open database, and runs that fill it. `clock.at` is the time of what is done next."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = StandsStill()
        self._account = Account(_config(url), str, clock=self.clock)  # whose client is asked nothing
        self._outbox = self._account.outputs.webhooks.outbox
        self.database = self._account.database
        self.database.open()

    @contextmanager
    def run(
        self, *, whole: bool = True, accept: bool = False, accepted: Iterable[str] = ()
    ) -> Iterator["Reading"]:
        """Give a run that is on record; at its end it rules over what it found absent."""
        run = Run(id=-1, trigger="interval", whole=whole, accept=accept, accepted=[*accepted])
        run.state, run.started_at = "running", self.clock.now()
        run.id = self.write(runs.put, run)
        report = Report(run, redact=str, requests=lambda: 0)
        work = Work(
            config=self._account.config,
            client=self._account.client,
            database=self.database,
            clock=self.clock,
            report=report,
            doubted=self._outbox.doubted,
        )
        yield Reading(self, work)
        asyncio.run(sweep(work))
        run.state, run.outcome, run.finished_at = "done", "ok", self.clock.now()
        now = self.clock.now()
        finish = partial(record.finish, tell=self._outbox.ended)
        self.write(finish, Ended(run, report), now, now - KEEP_PAST, None)

    def take(self, event: Event, *read: Gauge | Ticket | Session) -> "Reading":
        """Have a run read these rows of one event and nothing else."""
        with self.run() as run:
            run.event(event, *read)
        return run

    def query(self, query: Any, *values: Any, **named: Any) -> Any:
        """Return what one of syncd's own queries finds."""
        with self.database.begin() as connection:
            return query(connection, *values, **named)

    def write(self, query: Any, *values: Any, **named: Any) -> Any:
        """Carry one of syncd's own queries out that writes."""
        with self.database.begin(write=True) as connection:
            return query(connection, *values, **named)

    def empty(self) -> None:
        """Forget all that runs left, and set the clock back."""
        for table in ("syncd_runs", "syncd_changes", "syncd_absences", "syncd_reads", *KINDS):
            self.sql(f"DELETE FROM {table}")
        self.clock.at = NOW

    def sql(self, statement: str, *values: object) -> Rows:
        """Return what a statement finds, past all of syncd's own code."""
        return query(self.url, statement, *values)

    def held(self, table: str, event_id: str = "9") -> dict[str, Stored]:
        """Return the rows of an event in a table, by row id."""
        known: EventRows = self.query(rows.of_event, event_id)
        return known.rows[table]

    def absent(self, table: str, event_id: str | None = None) -> dict[str, int]:
        """Return the rows that are absent, and in how many reads."""
        found: dict[str, Absence] = self.query(absences.of, table, event_id)
        return {row: absence.reads for row, absence in found.items()}

    def doubts(self) -> list[Doubt]:
        """Return the doubts on record."""
        found: list[Doubt] = self.query(absences.doubts, self.clock.now(), FULL_EVERY)
        return found

    def close(self) -> None:
        """Close the database."""
        self.database.close()


class Reading:
    """One run: what it reads, and afterwards what it did."""

    def __init__(self, mirror: Mirror, work: Work) -> None:
        self.run = work.run
        self.plan = EventPlan(event_id="")
        self._mirror = mirror
        self._report = work.report

    def listed(self, *ids: str) -> None:
        """Read the list of events, which holds these, and no word of what is in them."""
        now = self._mirror.clock.now()
        self._report.sizes[EVENTS, None] = self._mirror.write(listing.note, self.run.id, set(ids), now)

    def event_of_list(self, event: Event) -> EventPlan:
        """Read an event of which the list alone is read."""
        stored = self._mirror.query(rows.stored, EVENTS, [event.id])
        return self._take(plan_listed(event, stored.get(event.id), self._mirror.clock.now()))

    def event(self, event: Event, *read: Gauge | Ticket | Session) -> EventPlan:
        """Read all gauges, tickets and sessions of an event."""
        fetched = Fetched(
            rows={table: {row.id: row for row in read if isinstance(row, KINDS[table])} for table in PARTS},
            read_at=self._mirror.clock.now(),
        )
        return self.fetched(event, fetched)

    def fetched(self, event: Event, fetched: Fetched) -> EventPlan:
        """Read what was fetched of an event."""
        read = {table: fetched.rows[table] for table in (TICKETS, SESSIONS)}
        known = self._mirror.query(rows.of_event, event.id, read)
        reads: Reads = self._mirror.query(state.reads).get(event.id, Reads())
        return self._take(plan_event(event, known, fetched, was_due=reads.due_at is not None))

    def _write(self, query: Any, *values: Any, **named: Any) -> Any:
        writing = Writing(self.run.id, self._mirror.clock.now())
        result = self._mirror.write(query, writing, *values, **named)
        self.run.counts.add(writing.counts)
        return result

    def _take(self, plan: EventPlan) -> EventPlan:
        if plan.writes:
            self._write(rows.write_plan, plan)
        if plan.read_at and plan.is_odd:
            self._report.odd[plan.event_id] = plan.read_at
        elif plan.read_at and not plan.writes:
            self._report.read_at[plan.event_id] = plan.read_at
        self._report.sizes |= {(lack.table, plan.event_id): lack.size for lack in plan.lacks}
        self.run.counts.unchanged += plan.unchanged
        self.plan = plan
        return plan

    def people(self, event_id: str, *read: Attendee, whole: bool = True) -> Ingested:
        """Read attendees of an event: all of them, or some."""
        now = self._mirror.clock.now()
        ingested: Ingested = self._write(
            attendees.ingest_event,
            event_id,
            [Decoded(records={attendee.id: attendee for attendee in read})],
            began_at=now,
            whole=whole,
        )
        if ingested.size:
            self._report.sizes[ATTENDEES, event_id] = ingested.size
        return ingested

    @property
    def kinds(self) -> dict[str, str]:
        """Return what became of rows by the log of changes, by row id."""
        statement = "SELECT row_id, kind FROM syncd_changes WHERE run_id = ? ORDER BY seq"
        return {str(row): str(kind) for row, kind in self._mirror.sql(statement, self.run.id)}

    @property
    def doubted(self) -> list[str]:
        """Return what the run doubted, by subject."""
        return [error.subject for error in self._report.failures if error.kind == "doubted"]


@contextmanager
def past_the_lock(url: str) -> Iterator[Engine]:
    """Give a way into a database that asks nobody, and creates no tables; its transactions write."""
    engine = create_engine(url) if is_postgresql() else sqlite.engine(url)
    try:
        yield engine.execution_options(write=True)
    finally:
        engine.dispose()


def _config(url: str) -> Config:
    return Config(
        billetweb=BilletwebConfig(user="1"),
        sync=SyncConfig(full_every=FULL_EVERY),
        database=DatabaseConfig(url=url),
        control=ControlConfig(),
        log=LogConfig(),
        heartbeat=HeartbeatConfig(),
        key=Secret("none"),
        key_from="",
        path=Path("config.toml"),
    )


def values(stored: Stored, kind: type[Any]) -> dict[str, Any]:
    """Return the values of a stored row by their columns."""
    return dict(zip(kind.__struct_fields__, stored.values, strict=True))


def event(event_id: str = "9", **fields: Any) -> Event:
    """Return an event."""
    return Event(id=event_id, account="1", **fields)


def ticket(ticket_id: str = "1", event_id: str = "9", **fields: Any) -> Ticket:
    """Return a tariff."""
    return Ticket(id=ticket_id, event_id=event_id, position=1, **fields)


def tickets(ids: str, event_id: str = "9") -> list[Ticket]:
    """Return a tariff for each letter."""
    return [ticket(ticket_id, event_id) for ticket_id in ids]


def gauge(name: str, kind: str = "category", **fields: Any) -> Gauge:
    """Return a gauge that is known by its name."""
    made = Gauge(event_id="9", session_id="", type=kind, gauge_id=name, name=name)
    return structs.replace(made, **fields)
