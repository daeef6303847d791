"""What a run does about attendees: what changed in the account, the first import, all those of one event.

One read of the whole account tells what was modified since the earlier one: its rows are mirrored if that is
wanted, and they name the events that sold or refunded. It cannot show a place that was deleted upstream: only
a read of all attendees of an event can, which each live event has once a day.
"""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from functools import partial

from loguru import logger
from msgspec import Struct, structs
from sqlalchemy import Connection

from syncd.attendee_store import TABLE, AttendeeStore, Cursor, Reads, Rows, Taken, take_event
from syncd.billetweb import Billetweb, Spooled
from syncd.errors import DecodeError, RestrictedError, StatusError, TooLargeError, TransportError
from syncd.model import AttendeeMode, Run
from syncd.reconcile import EventPlan, Evidence
from syncd.threads import in_thread
from syncd.wire import decode_attendees, sold

OVERLAP = timedelta(minutes=10)
"""Whether `last_update` includes its own second, and how Billetweb's clock goes, is not known."""
FIRST_LOOK = timedelta(days=1)
"""So far back the sales are asked for that no earlier run asked for; older ones are in the figures."""
BEGINNING = datetime(2010, 1, 1, tzinfo=UTC)
"""The first import goes back to here in spans of time, and then asks for all that is older at once."""
FIRST_SPAN = timedelta(days=1)
LEAST_SPAN = timedelta(hours=1)
LEAST_TO_CUT = 16 * OVERLAP
"""From so long on both parts of a span, with what they overlap, are shorter than it by a sixteenth at least: so
the cutting ends, also where Billetweb does not heed the borders."""
SMALL_BYTES, LARGE_BYTES = 4 * 1024 * 1024, 8 * 1024 * 1024
"""After a smaller answer the span of the next one is twice as long, after a larger one half: nobody else can
write while one is written, and a stop waits for it or loses it."""
IMPORT_SHARE = 0.5
"""The part of a run's time that an import may take; the rest is for the events, and the next run goes on."""


Span = tuple[datetime | None, datetime | None]
"""From when to when attendees were modified; None for the beginning, and for now."""


class Memory(Struct):
    """What one run tells the next, in memory.

    `seen`: digests of the rows of the latest increment, where they are not stored, since increments overlap.
    `refused_at`: when the key was found to be limited to some events.
    """

    seen: frozenset[int] = frozenset()
    refused_at: datetime | None = None


class EventAnswer(Struct, frozen=True):
    """The attendees of one event as they were read, to be closed after use.

    `whole` says that all of them are to be in the answers, which are several where one would be too large.
    """

    event_id: str
    answers: list[Spooled]
    began_at: datetime
    whole: bool

    def close(self) -> None:
        """Forget the answers."""
        _close(self.answers)


class Attendees:
    """The attendees in one run. Reads raise BilletwebError and StoreError."""

    def __init__(
        self,
        run: Run,
        client: Billetweb,
        store: AttendeeStore,
        *,
        mode: AttendeeMode,
        full_every: timedelta,
        run_timeout: timedelta,
        memory: Memory,
        on_step: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        self._run = run
        self._client = client
        self._store = store
        self._mode = mode
        self._full_every = full_every
        self._memory = memory
        self._on_step = on_step
        self._now = now
        self._began = now()
        self._import_until = self._began + IMPORT_SHARE * run_timeout
        self._imported_at: datetime | None = None
        self._is_unusable = False

    @property
    def by_event(self) -> bool:
        """Whether each event's own increment is needed, for the account's is not permitted or of no use."""
        return self._mode != "none" and (self._is_unusable or self._memory.refused_at is not None)

    @property
    def _overlap(self) -> timedelta:
        """How much earlier than its time a read is remembered: what this clock is ahead counts too."""
        return OVERLAP + self._client.ahead

    async def catch_up(self, live: AbstractSet[str]) -> None:
        """Read what was modified in the whole account; the live events concerned become due."""
        refused_at = self._memory.refused_at
        if refused_at and self._run.trigger != "manual" and self._now() - refused_at < self._full_every:
            return
        try:
            await (self._look(live) if self._mode == "none" else self._mirror(live))
        except RestrictedError as error:
            if not refused_at:
                log = logger.bind(event="increment.refused", run=self._run.id, kind=error.kind)
                log.warning("{}; sales are found when an event's turn comes, not before", error)
            self._memory.refused_at = self._now()
            self._imported_at = None
        else:
            self._memory.refused_at = None

    async def skip(self, live: AbstractSet[str]) -> None:
        """Have every event read instead of asking who sold: in this run, or first in the next."""
        began = self._now()
        await in_thread(self._store.mark_due, live, began, Cursor(since=began - self._overlap))

    async def _look(self, live: AbstractSet[str]) -> None:
        """Find out who sold, and keep nothing else."""
        began = self._now()
        cursor = await in_thread(self._store.cursor)
        since = cursor.since if cursor and cursor.since <= began else began - FIRST_LOOK
        try:
            with await self._client.attendees(since=since) as answer:
                rows = await in_thread(_all_sold, answer)
            events = live & {event_id for event_id, digest in rows if digest not in self._memory.seen}
        except TooLargeError:  # after a long time: anybody may have sold
            rows, events = [], live
        await in_thread(self._store.mark_due, events, began, Cursor(since=began - self._overlap))
        self._memory.seen = frozenset(digest for _, digest in rows)

    async def _mirror(self, live: AbstractSet[str]) -> None:
        cursor = await in_thread(self._store.cursor)
        began = self._now()
        # Where the import fails it goes on with the next run, and meanwhile no event is read whole for it.
        self._imported_at = began if cursor is None else cursor.imported_at or began
        try:
            if cursor is None:
                cursor = Cursor(since=began - self._overlap, before=began)
            elif cursor.since > began:  # the clock was ahead: nobody knows what was missed
                cursor = structs.replace(cursor, since=began - self._overlap, before=began, back_to=None)
            else:
                cursor = await self._increment(cursor, began, live)
            # What a first import brings was sold before its events are read.
            await self._import(cursor, live if cursor.imported_at else frozenset())
        except (DecodeError, StatusError, TooLargeError, TransportError):
            # This may last, so events are asked for their own.
            self._is_unusable = True
            self._imported_at = None if cursor is None else cursor.imported_at
            raise

    async def _increment(self, cursor: Cursor, began: datetime, live: AbstractSet[str]) -> Cursor:
        """Read what was modified since the cursor; return the next one."""
        try:
            answer = await self._client.attendees(since=cursor.since)
        except TooLargeError:  # after a long time: it is imported, in parts
            back_to = cursor.back_to if cursor.before else cursor.since
            return structs.replace(cursor, since=began - self._overlap, before=began, back_to=back_to)
        with answer:
            moved = structs.replace(cursor, since=began - self._overlap)
            await self._take(answer, moved, live)
        return moved

    async def _import(self, cursor: Cursor, live: AbstractSet[str]) -> None:
        """Import what is still to be, from the latest back, in spans of time with answers not too large."""
        beginning = cursor.back_to or BEGINNING
        span = FIRST_SPAN
        while before := cursor.before:
            if self._now() > self._import_until:
                log = logger.bind(event="import.paused", run=self._run.id)
                log.info("run {}: the import of attendees goes on with the next run", self._run.id)
                return
            since = before - span if before - span > beginning else cursor.back_to
            until = None if before > cursor.since else before  # what is modified meanwhile comes along
            try:
                answer = await self._client.attendees(since=since, until=until)
            except TooLargeError:
                if span <= LEAST_SPAN:
                    raise
                span = max(min(span, before - beginning) / 4, LEAST_SPAN)
                continue
            with answer:
                if since == cursor.back_to:
                    rest = structs.replace(
                        cursor, before=None, back_to=None, imported_at=cursor.imported_at or self._now()
                    )
                else:  # increments overlap, and so do these
                    rest = structs.replace(cursor, before=since and since + OVERLAP)
                await self._take(answer, rest, live)
                span = _next_span(span, answer.size)
            cursor = rest

    async def _take(self, answer: Spooled, cursor: Cursor, live: AbstractSet[str]) -> None:
        rows = self._decoded([answer])
        self._note(await in_thread(self._store.take, self._run.id, rows, cursor, self._now(), live))

    def cost(self, event_id: str, reads: Reads, *, suspected: bool) -> int:
        """Return how many requests an event's own attendees take in this run: one or none."""
        if self._mode == "none":
            return 0
        return int(self.by_event or suspected or self._full_is_due(event_id, reads))

    async def read_event(self, event_id: str, reads: Reads, *, suspected: bool) -> EventAnswer | None:
        """Return an event's own attendees, all of them or those modified; None where they wait for later."""
        if not self.cost(event_id, reads, suspected=suspected):
            return None
        began_at, since = self._now(), None
        known = reads.attendees_at
        if known and known <= began_at and not suspected and not self._full_is_due(event_id, reads):
            since = known - OVERLAP
        if since:
            answers = [await self._client.attendees(event_id=event_id, since=since)]
        else:
            answers = await self._whole(event_id)
        return EventAnswer(event_id, answers, began_at - self._client.ahead, since is None)

    async def _whole(self, event_id: str) -> list[Spooled]:
        """Return all attendees of an event; where one answer would be too large, by spans of time.

        The earliest come first: what is modified meanwhile comes again with the last span, so none is missed.
        """
        answers: list[Spooled] = []
        spans: list[Span] = [(None, None)]
        try:
            while spans:
                since, until = spans.pop()
                try:
                    answers.append(await self._client.attendees(event_id=event_id, since=since, until=until))
                except TooLargeError:
                    length = (until or self._now()) - (since or BEGINNING)
                    if length < LEAST_TO_CUT:
                        raise
                    spans += _cut(since, until, length)
        except BaseException:
            _close(answers)
            raise
        return answers

    def take_event(
        self, connection: Connection, read: EventAnswer, plan: EventPlan, *, at: datetime, evidence: Evidence
    ) -> None:
        """Write what was read of an event, in the transaction of its plan; add to that what became of it."""
        taken = take_event(
            connection,
            self._run.id,
            read.event_id,
            self._decoded(read.answers, read.event_id),
            at,
            began_at=read.began_at,
            evidence=evidence if read.whole else None,
        )
        plan.apart.add(taken.counts)
        if taken.doubt:
            plan.doubts[TABLE.name] = taken.doubt

    def _full_is_due(self, event_id: str, reads: Reads) -> bool:
        """Whether all attendees of an event are to be read; the import does that for every event."""
        last = max((at for at in (reads.attendees_full_at, self._imported_at) if at), default=None)
        if last is None or not timedelta(0) <= self._now() - last < self._full_every:
            return True
        return last < self._began and (self._run.full or event_id in self._run.events)

    def _decoded(self, answers: Iterable[Spooled], event_id: str | None = None) -> Iterator[Rows]:
        """Give the rows of answers, slice by slice, in the thread that stores them."""
        decode = partial(decode_attendees, event_id=event_id, full=self._mode == "full")
        return (decoded.records for answer in answers for decoded in answer.decoded(decode))

    def _note(self, taken: Taken) -> None:
        self._run.counts.add(taken.counts)
        self._on_step()


def _cut(since: datetime | None, until: datetime | None, length: timedelta) -> list[Span]:
    """Return the parts of a span, the later one first; of one that reaches to now most is of late."""
    later = length / 2 if until else length / 8
    border = (since or BEGINNING) + length - later
    return [(border, until), (since, border + OVERLAP)]


def _close(answers: Iterable[Spooled]) -> None:
    for answer in answers:
        answer.close()


def _next_span(span: timedelta, size: int) -> timedelta:
    if size < SMALL_BYTES:
        return span * 2
    return max(span / 2, LEAST_SPAN) if size > LARGE_BYTES else span


def _all_sold(answer: Spooled) -> list[tuple[str, int]]:
    return [row for rows in answer.decoded(sold) for row in rows]
