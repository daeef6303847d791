"""What a run reads of attendees: what changed in the account, the first import, all those of one event.

One read of the whole account shows what was modified since the previous one: its rows are mirrored if
configured, and they name the events that sold or refunded. It cannot show a place that was deleted upstream:
only a read of all attendees of an event can, which each live event gets once a day.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain

from loguru import logger
from msgspec import Struct, structs
from sqlalchemy import Connection

from syncd.billetweb.body import Spooled
from syncd.billetweb.decode import Decoded, decode_attendees, sold
from syncd.database import attendees, state
from syncd.database.attendees import Cursor, Ingested
from syncd.database.rows import Writing
from syncd.database.state import Limited, Reads
from syncd.errors import (
    DecodeError,
    RestrictedError,
    StatusError,
    TooLargeError,
    TransportError,
    ValueRefused,
)
from syncd.model import Attendee
from syncd.run.work import Work
from syncd.text import run_name
from syncd.threads import in_thread

OVERLAP = timedelta(minutes=10)
"""It is unknown whether `last_update` includes its own second, and how exact Billetweb's clock is. Clocks set
by the network differ by seconds; ten minutes are far more, and the few rows in them are read twice."""
FIRST_LOOK = timedelta(days=1)
"""How far back sales are asked for, if no earlier run did; older ones are in the figures."""
BEGINNING = datetime(2010, 1, 1, tzinfo=UTC)
"""The first import goes back to here in spans of time, and then asks for all that is older at once."""
FIRST_SPAN = timedelta(days=1)
"""A busy day sells some thousand places, a few MiB; after a quiet one the next spans are longer."""
LEAST_SPAN = timedelta(hours=1)
"""Shorter ones cost more requests than the memory is worth; only a refused answer is cut further."""
LEAST_TO_CUT = 16 * OVERLAP
"""From this length on, both parts of a span, with their overlap, are shorter than it by at least a sixteenth:
so the cutting ends, even if Billetweb ignores the limits."""
SMALL_BYTES, LARGE_BYTES = 4 * 1024 * 1024, 8 * 1024 * 1024
"""After a smaller answer the next span is twice as long, after a larger one half as long: nobody else can
write while an answer is written, and a stop waits for it or loses it."""
IMPORT_SHARE = 0.5
"""The share of a run's time that an import may take; the rest is for the events. The next run continues."""


Span = tuple[datetime | None, datetime | None]
"""From when to when attendees were modified; None for the beginning, and for now."""


class EventAnswer(Struct, frozen=True):
    """The attendees of one event as they were read.

    `whole`: the answers should hold all of them. There are several answers if one would be too large.
    """

    event_id: str
    answers: list[Spooled]
    began_at: datetime
    whole: bool


class Attendees:
    """The attendees in one run; reads raise BilletwebError and StoreError.

    `limited` is what is recorded of a key, perhaps of an earlier one. `unknown_until` as in
    `attendees.ingest`.
    """

    def __init__(self, work: Work, limited: Limited | None, unknown_until: datetime | None) -> None:
        self._work = work
        self._run = work.run
        self._client = work.client
        self._database = work.database
        self._now = work.clock.now
        self._mode = work.config.sync.attendees
        self._full_every = work.config.sync.full_every
        self._limited = limited if limited and work.client.credentials.is_of(limited.key) else None
        self._began = self._now()
        self._import_until = self._began + IMPORT_SHARE * work.config.sync.run_timeout
        self._unknown_until = unknown_until
        self._imported_at: datetime | None = None
        self._is_unusable = False
        self._live = 0

    @property
    def is_limited(self) -> bool:
        """Whether the key may read the attendees of some events only."""
        return self._limited is not None

    @property
    def _overlap(self) -> timedelta:
        """How much is subtracted from the time of a read, including how far this clock is ahead."""
        return OVERLAP + self._client.ahead

    async def catch_up(self, live: AbstractSet[str]) -> None:
        """Read what was modified in the whole account; the `live` events concerned become due.

        With a limited key this is not tried again for a day, except by a manual run.
        """
        before = self._limited
        self._live = len(live)
        is_told = before and state.is_recent(before.at, self._now(), self._full_every)
        if is_told and self._run.trigger != "manual":
            return
        try:
            await (self._look(live) if self._mode == "none" else self._mirror(live))
        except RestrictedError as error:
            if not before:
                log = logger.bind(event="increment.refused", run=self._run.id, kind=error.kind)
                log.warning(
                    "{}; sales are found when the refresh rotation comes to an event, not before", error
                )
            await self._set_limited(Limited(self._now(), self._client.credentials.digest()))
            self._imported_at = None
        else:
            if before:
                await self._set_limited(None)

    async def _set_limited(self, limited: Limited | None) -> None:
        self._limited = limited
        await self._database.write(state.put, state.LIMITED, limited)

    async def skip(self, live: AbstractSet[str]) -> None:
        """Mark every event due instead of asking which sold: for this run, or first in the next."""
        began = self._now()
        moved = Cursor(since=began - self._overlap)
        await self._database.write(attendees.note_sales, live, began, moved, ())

    async def _look(self, live: AbstractSet[str]) -> None:
        """Find out which events sold, and keep nothing else."""
        began = self._now()
        cursor, seen = await self._database.read(_resumes)
        since = cursor.since if cursor and cursor.since <= began else began - FIRST_LOOK
        try:
            with await self._client.attendees(since=since) as answer:
                sales = await in_thread(_all_sold, answer)
            events = live & {event_id for event_id, digest in sales if digest not in seen}
        except TooLargeError:  # after a long time: any event may have sold
            sales, events = [], live
        moved = Cursor(since=began - self._overlap)
        digests = {digest for _, digest in sales}
        await self._database.write(attendees.note_sales, events, began, moved, digests)

    async def _mirror(self, live: AbstractSet[str]) -> None:
        cursor = await self._database.read(attendees.cursor)
        began = self._now()
        # If the import fails, the next run continues it; until then no event is read whole because of it.
        self._imported_at = began if cursor is None else cursor.imported_at or began
        try:
            if cursor is None:
                cursor = Cursor(since=began - self._overlap, before=began)
            elif cursor.since > began:  # the clock was ahead: nobody knows what was missed
                cursor = structs.replace(cursor, since=began - self._overlap, before=began, back_to=None)
            else:
                cursor = await self._increment(cursor, began, live)
            # A first import's places were sold before their events are read.
            await self._import(cursor, live if cursor.imported_at else frozenset())
        except (DecodeError, StatusError, TooLargeError, TransportError, ValueRefused):
            # This may last, so attendees are read event by event.
            self._is_unusable = True
            self._imported_at = None if cursor is None else cursor.imported_at
            raise

    async def _increment(self, cursor: Cursor, began: datetime, live: AbstractSet[str]) -> Cursor:
        """Read what was modified since the cursor; return the next cursor."""
        try:
            answer = await self._client.attendees(since=cursor.since)
        except TooLargeError:  # after a long time: it is imported, in parts
            back_to = cursor.back_to if cursor.before else cursor.since
            return structs.replace(cursor, since=began - self._overlap, before=began, back_to=back_to)
        with answer:
            moved = structs.replace(cursor, since=began - self._overlap)
            await self._ingest(answer, moved, live)
        return moved

    async def _import(self, cursor: Cursor, live: AbstractSet[str]) -> None:
        """Import what is still missing, from the latest back, in spans of time with moderate answers."""
        beginning = cursor.back_to or BEGINNING
        span = FIRST_SPAN
        while before := cursor.before:
            if self._now() > self._import_until:
                log = logger.bind(event="import.paused", run=self._run.id)
                log.info("{}: the import of attendees goes on with the next run", run_name(self._run.id))
                return
            since = before - span if before - span > beginning else cursor.back_to
            until = None if before > cursor.since else before  # what is modified meanwhile comes along
            try:
                answer = await self._client.attendees(since=since, until=until)
            except TooLargeError:
                if span <= LEAST_SPAN:
                    raise
                # A refused answer was at least eight times as large as wanted.
                span = max(min(span, before - beginning) / 4, LEAST_SPAN)
                continue
            with answer:
                if since == cursor.back_to:
                    rest = structs.replace(
                        cursor, before=None, back_to=None, imported_at=cursor.imported_at or self._now()
                    )
                else:  # increments overlap, and so do these
                    rest = structs.replace(cursor, before=since and since + OVERLAP)
                await self._ingest(answer, rest, live)
                span = _next_span(span, answer.size)
            cursor = rest

    async def _ingest(self, answer: Spooled, cursor: Cursor, live: AbstractSet[str]) -> None:
        rows = self._decoded([answer])
        ingested = await self._work.write(
            attendees.ingest, rows, moved=cursor, live=live, unknown_until=self._unknown_until
        )
        self._work.report.unreadable.add(ingested.unreadable)
        self._work.report.advance("attendees", 0, self._live)

    def cost(self, event_id: str, reads: Reads, *, again: bool) -> int:
        """Return how many requests an event's own attendees take in this run: one or none.

        `again`: some are absent, so all must be read.
        """
        if self._mode == "none":
            return 0
        by_event = self._is_unusable or self.is_limited  # the account's own increment is of no use
        return int(by_event or again or self._full_is_due(event_id, reads))

    async def read_event(
        self, event_id: str, reads: Reads, opened: ExitStack, *, again: bool
    ) -> EventAnswer | None:
        """Return an event's own attendees, all or those modified; None if they are not read now.

        The answers are discarded when `opened` is closed.
        """
        if not self.cost(event_id, reads, again=again):
            return None
        began_at, since = self._now(), None
        known = reads.attendees_at
        if known and known <= began_at and not again and not self._full_is_due(event_id, reads):
            since = known - OVERLAP
        if since:
            answers = [opened.enter_context(await self._client.attendees(event_id=event_id, since=since))]
        else:
            answers = await self._whole(event_id, opened)
        return EventAnswer(event_id, answers, began_at - self._client.ahead, since is None)

    async def _whole(self, event_id: str, opened: ExitStack) -> list[Spooled]:
        """Return all attendees of an event; if one answer would be too large, by spans of time.

        The earliest span comes first: what is modified meanwhile is also in the last one, so none is missed.
        """
        answers: list[Spooled] = []
        spans: list[Span] = [(None, None)]
        while spans:
            since, until = spans.pop()
            try:
                answer = await self._client.attendees(event_id=event_id, since=since, until=until)
                answers.append(opened.enter_context(answer))
            except TooLargeError:
                length = (until or self._now()) - (since or BEGINNING)
                if length < LEAST_TO_CUT:
                    raise
                spans += _cut(since, until, length)
        return answers

    def ingest_event(self, connection: Connection, writing: Writing, read: EventAnswer) -> Ingested:
        """Write what was read of an event's attendees, in the transaction of its plan."""
        return attendees.ingest_event(
            connection,
            writing,
            read.event_id,
            self._decoded(read.answers, read.event_id),
            began_at=read.began_at,
            whole=read.whole,
            unknown_until=self._unknown_until,
        )

    def _full_is_due(self, event_id: str, reads: Reads) -> bool:
        """Whether to read all attendees of an event; the import counts as that for every event."""
        last = max((at for at in (reads.attendees_full_at, self._imported_at) if at), default=None)
        if last is None or not state.is_recent(last, self._now(), self._full_every):
            return True
        return last < self._began and (self._run.full or event_id in self._run.events)

    def _decoded(
        self, answers: Iterable[Spooled], event_id: str | None = None
    ) -> Iterator[Decoded[Attendee]]:
        """Yield the rows of answers, slice by slice, in the thread that stores them."""
        decode = partial(decode_attendees, event_id=event_id, full=self._mode == "full")
        return chain.from_iterable(answer.decoded(decode) for answer in answers)


def _cut(since: datetime | None, until: datetime | None, length: timedelta) -> list[Span]:
    """Return the parts of a span, the later one first.

    A span that reaches to now is all of an event's past, and most was sold recently: its later part is an
    eighth.
    """
    later = length / 2 if until else length / 8
    border = (since or BEGINNING) + length - later
    return [(border, until), (since, border + OVERLAP)]


def _next_span(span: timedelta, size: int) -> timedelta:
    if size < SMALL_BYTES:
        return span * 2
    return max(span / 2, LEAST_SPAN) if size > LARGE_BYTES else span


def _all_sold(answer: Spooled) -> list[tuple[str, int]]:
    return [row for rows in answer.decoded(sold) for row in rows]


def _resumes(connection: Connection) -> tuple[Cursor | None, frozenset[int]]:
    """Return from when to ask for sales, and which of their rows were already seen."""
    seen = state.get(connection, state.SEEN, list[int])
    return attendees.cursor(connection), frozenset(seen or ())
