"""One run: the order of its steps.

The list of events comes first, then what changed among the account's attendees. Then the live events whose
turn it is (`agenda.py`), in a small account all, are read (gauges, tickets and, if any, sessions), planned
and written, each in its own transaction, a few at a time: memory holds only the list and the events in work,
and an event that fails keeps its old data while the others continue. Of all other events, what the list says
is written. In the end the run rules on what it found absent.

A run is a function of its settings, the database and Billetweb: what it needs of an earlier run is recorded.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from loguru import logger
from msgspec import structs
from sqlalchemy import Connection

from syncd.database import absences, attendees, rows, state
from syncd.database.state import Limited
from syncd.errors import BilletwebError, ValueRefused
from syncd.mirror import agenda
from syncd.mirror.agenda import Candidate, Increment, Pace
from syncd.model import ATTENDEES, EVENTS, Event
from syncd.run import listing
from syncd.run.attendees import Attendees
from syncd.run.event import Events, Known
from syncd.run.sweep import Doubted, sweep
from syncd.run.work import Work
from syncd.text import count, format_duration, run_name

PATIENCE = 3
"""After this many failures in a row, an event with a reason to be read waits for its turn. One failure is
often momentary, three seldom are."""
NEVER = datetime.min.replace(tzinfo=UTC)


async def execute(work: Work) -> None:
    """Execute a run. Raises BilletwebError if the list of events cannot be read, and StoreError."""
    try:
        await _Run(work).execute()
    finally:
        work.report.tell_unreadable()
        work.report.count_requests()


class _Run:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._run = work.run
        self._config = work.config
        self._database = work.database
        self._now = work.clock.now
        self._stored: dict[str, datetime | None] = {}
        self._unlisted: set[str] = set()  # they may return with the next list, and if sold, are due then

    async def execute(self) -> None:
        """Execute the steps in order; see the module."""
        self._work.report.advance("listing")
        listed = (await listing.read(self._work)).records
        ext_ids = {key: event.ext_id for key, event in listed.items()}
        self._work = structs.replace(self._work, ext_ids=ext_ids)
        await self._know()
        await listing.resolve(self._work, listed)
        wanted = listing.named(self._work, listed, self._absent)
        if self._run.whole:
            live_since = self._now() - self._config.sync.keep_past
            live = {key: event for key, event in listed.items() if listing.is_live(event, live_since)}
            self._unlisted = self._stored.keys() - listed.keys()
            pace = self._pace([*live.values()])
            self._bound_by(pace, self._cost(live.values()))
            wanted |= await self._in_turn(live, pace, self._accepted(listed, pace))
            others = [event for key, event in listed.items() if key not in wanted]
            async for plan in listing.plans(self._work, others):
                await listing.write(self._work, plan)
        await Events(self._work, self._attendees, self._known).sync([*wanted.values()])
        await sweep(self._work)

    async def _know(self) -> None:
        """Read from the database what earlier runs left."""

        def look(connection: Connection) -> tuple[Known, Limited | None, datetime | None]:
            """Read what this run relies on, in one transaction."""
            self._stored = rows.present_events(connection)
            self._absent = absences.of(connection, EVENTS)
            known = Known(
                reads=state.reads(connection),
                with_sessions=rows.events_with_sessions(connection),
                again=absences.inside(connection, all_of_them=self._run.accept),
            )
            cursor = attendees.cursor(connection)
            since = state.get(connection, state.SINCE, datetime) or self._now()  # 0.3 noted no such time
            unknown_until = None if cursor and cursor.imported_at else since
            return known, state.get(connection, state.LIMITED, Limited), unknown_until

        self._known, limited, unknown_until = await self._database.read(look)
        self._attendees = Attendees(self._work, limited, unknown_until)

    def _accepted(self, listed: Mapping[str, Event], pace: Pace) -> dict[str, Event]:
        """Return the events whose absences somebody accepts as gone, as many as a run can read."""
        if not self._run.accept:
            return {}
        accepted = [
            self._candidate(listed[key], edited=False)
            for key in sorted(self._known.again, key=self._age_order)
            if key in listed and (not self._run.accepted or key in self._run.accepted)
        ]
        chosen = agenda.fitting(accepted, pace.budget.capacity)
        if left := len(accepted) - len(chosen):
            self._work.report.fail(
                "run", Doubted(f"{count(left, 'event')} more: `syncctl accept` once again")
            )
        return {key: listed[key] for key in chosen}

    # --- whose turn it is

    def _pace(self, live: Collection[Event]) -> Pace:
        sync = self._config.sync
        cost = self._cost(filter(listing.has_date, live))  # the others use the rest
        allowed = agenda.budget(
            cost,
            per_minute=self._config.billetweb.requests_per_minute,
            interval=sync.interval,
            run_timeout=sync.run_timeout,
            full_every=sync.full_every,
        )
        return Pace(budget=allowed, live=len(live), cost=cost)

    def _cost(self, events: Iterable[Event]) -> int:
        """Return how many requests it takes to read all these."""
        people = self._config.sync.attendees != "none"
        return sum(self._known.cost(event) + people for event in events)

    def _bound_by(self, pace: Pace, whole: int) -> None:
        """Make no scheduled run full that cannot read everything; warn of a manual one that cannot.

        `whole`: requests with those for events without a date, which only a manual full run always reads.
        """
        if pace.exceeds_a_run:
            self._run.full = self._work.full_asked
        per_minute, limit = self._config.billetweb.requests_per_minute, self._config.sync.run_timeout
        requests = whole if self._work.full_asked else pace.cost
        if self._run.full and requests > per_minute * limit / timedelta(minutes=1):
            log = logger.bind(event="run.long", run=self._run.id, requests=requests)
            log.warning(
                "{}: {} requests for all events take more than sync.run_timeout ({}) lets through at {} a"
                " minute; what is read by then stays, and a longer time lets it end",
                run_name(self._run.id),
                requests,
                format_duration(limit.total_seconds()),
                per_minute,
            )

    async def _in_turn(
        self, live: Mapping[str, Event], pace: Pace, accepted: Mapping[str, Event]
    ) -> dict[str, Event]:
        """Return the events to read now, in order: all, or in a large account those whose turn it is.

        There a run that accepts absences reads only the events concerned, so that it can finish.
        """
        pace = structs.replace(pace, increment=await self._ask_who_sold(live, pace))
        self._work.report.pace = pace
        if pace.in_turns:
            by_time = await self._database.read(rows.changed_by_time, self._now())
            await self._database.write(state.mark_due, by_time & live.keys(), self._now())
        reads = await self._database.read(state.reads)  # with those that an increment made due
        self._known = structs.replace(self._known, reads=reads)
        if self._run.full or not pace.in_turns:
            return self._all(live, pace, accepted)
        changed = {
            plan.event_id async for plan in listing.plans(self._work, [*live.values()]) if plan.changes
        }
        edited = changed & self._stored.keys()
        candidates = [self._candidate(event, edited=event.id in edited) for event in live.values()]
        read = accepted or {event_id: live[event_id] for event_id in agenda.choose(candidates, pace.budget)}
        unread = live.keys() - read.keys()
        # Before the list's data are written: after that an edit is no longer visible.
        await self._database.write(state.mark_due, edited & unread, self._now())
        self._work.report.pace = structs.replace(pace, waiting=agenda.waiting(candidates, read))
        return dict(read)

    def _all(self, live: Mapping[str, Event], pace: Pace, accepted: Mapping[str, Event]) -> dict[str, Event]:
        """Return all events, the oldest figures first; those without a date last, as many as fit."""
        ordered = sorted({**live, **accepted}.items(), key=lambda item: self._age_order(item[0]))
        undated = [
            self._candidate(event, edited=False) for key, event in ordered if not listing.has_date(event)
        ]
        self._work.report.count_requests()
        room = pace.budget.capacity - self._run.requests if self._run.full else pace.budget.share
        fitting = agenda.fitting(undated, room - pace.cost) or [one.id for one in undated[:1]]
        asked = self._work.full_asked
        read = [key for key, event in ordered if listing.has_date(event)]
        read += [one.id for one in undated if asked or one.id in fitting or one.id in accepted]
        return {key: live.get(key) or accepted[key] for key in read}

    async def _ask_who_sold(self, live: Mapping[str, Event], pace: Pace) -> Increment:
        if self._config.sync.attendees == "none" and (self._run.full or not pace.in_turns):
            if pace.in_turns:
                await self._attendees.skip(live.keys() | self._unlisted)
            return "not needed"
        try:
            await self._attendees.catch_up(live.keys() | self._unlisted)
        except (BilletwebError, ValueRefused) as error:
            self._work.report.fail("attendees", error)
            return "failed"
        return "not permitted" if self._attendees.is_limited else "used"

    def _candidate(self, event: Event, *, edited: bool) -> Candidate:
        reads, again = self._known.reads_of(event.id), self._known.again.get(event.id, set())
        people = self._attendees.cost(event.id, reads, again=ATTENDEES in again)
        return Candidate(
            id=event.id,
            cost=self._known.cost(event) + people,
            read_at=self._turn_at(event.id),
            dated=listing.has_date(event),
            suspected=bool(again) and reads.tried_at is None,  # after a failure it waits for its turn
            due=(edited or reads.due_at is not None) and reads.failures < PATIENCE,
        )

    def _turn_at(self, event_id: str) -> datetime | None:
        """Return when an event was last read or tried; an instant in the future does not count."""
        instants = (self._stored.get(event_id), self._known.reads_of(event_id).tried_at)
        return max((at for at in instants if at and at <= self._now()), default=None)

    def _age_order(self, event_id: str) -> tuple[datetime, str]:
        return self._turn_at(event_id) or NEVER, event_id
