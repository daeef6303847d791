"""The list of events: a run begins with it, and notes the events that it lacks."""

from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime

from loguru import logger
from msgspec import structs
from sqlalchemy import Connection

from syncd.billetweb.decode import Decoded
from syncd.database import absences, rows, state
from syncd.errors import SyncdError, TooLargeError, TooManyRows, ValueRefused
from syncd.mirror.absence import Size
from syncd.mirror.diff import EventPlan, keep, lack, plan_listed
from syncd.model import EVENTS, UNKNOWN_EVENT, Event
from syncd.run.work import Work

AT_ONCE = 200
"""How many events are compared with one query; more would only use more memory."""


class Malformed(SyncdError):
    """A row of the list that cannot be used."""

    kind = "malformed"


class UnknownEvent(SyncdError):
    """An id that somebody named and that is not in the list."""

    kind = UNKNOWN_EVENT


async def read(work: Work) -> Decoded[Event]:
    """Return the list of events. What it lacks is noted, if every row of it was usable."""
    listed = await _list(work)
    work.run.failed += listed.bad_total
    for bad in listed.bad:
        work.report.fail("events", Malformed(bad))
    if more := listed.bad_total - len(listed.bad):
        work.report.fail("events", Malformed(f"{more} more rows of the list cannot be used"), times=more)
    if not listed.bad:  # else an absent event may be among the bad rows: no evidence
        work.report.sizes[EVENTS, None] = await work.database.write(
            note, work.run.id, listed.records.keys(), work.clock.now()
        )
    return listed


async def _list(work: Work) -> Decoded[Event]:
    """Return the list, with the mirror's values for what it does not say.

    A list that is too large is read without the events' descriptions, which are most of it. After that it is
    not requested with them again for `sync.full_every`.
    """
    now = work.clock.now()
    short_since = await work.database.read(state.get, state.SHORT, datetime)
    is_short = state.is_recent(short_since, now, work.config.sync.full_every)
    try:
        listed = await work.client.events(descriptions=not is_short)
    except TooLargeError as error:
        if is_short or isinstance(error, TooManyRows):  # without descriptions there would be as many
            raise
        log = logger.bind(event="list.short", run=work.run.id)
        log.warning("{}; it is read without descriptions", error)
        listed, is_short = await work.client.events(descriptions=False), True
        await work.database.write(state.put, state.SHORT, now)
    unsaid = ["description"] if is_short else []
    work.report.unreadable.note(EVENTS, listed.unreadable)
    kept = {key: (*listed.unreadable.get(key, ()), *unsaid) for key in listed.records}
    return await _with_kept(work, listed, {key: columns for key, columns in kept.items() if columns})


async def _with_kept(work: Work, listed: Decoded[Event], kept: Mapping[str, Sequence[str]]) -> Decoded[Event]:
    """Return the list with the mirror's values in these columns."""
    records, keys = dict(listed.records), [*kept]
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        stored = await work.database.read(rows.stored, EVENTS, some)
        records |= {key: keep(records[key], stored.get(key), kept[key]) for key in some}
    return structs.replace(listed, records=records)


def note(connection: Connection, run_id: int, listed: AbstractSet[str], now: datetime) -> Size:
    """Note what the list lacks; return how many events it should hold."""
    expected = rows.expected_events(connection, now)
    lacking = lack(EVENTS, expected, listed, absences.of(connection, EVENTS), now)
    if lacking.is_news:
        absences.note(connection, run_id, EVENTS, None, lacking.absences)
    of = absences.list_size(connection, now) if lacking.absences else lacking.size.of
    return Size(of, of)


async def resolve(work: Work, listed: Mapping[str, Event]) -> None:
    """Replace the `ext_id`s by which somebody named events by ids."""
    run = work.run
    names = {*run.events, *run.accepted} - listed.keys()
    if names:
        ids = await work.database.read(rows.ids_of, names)  # also for an event that the list lacks
        ids |= {event.ext_id: event.id for event in listed.values() if event.ext_id in names}
        run.events, run.accepted = (
            [*dict.fromkeys(ids.get(name, name) for name in some)] for some in (run.events, run.accepted)
        )


def named(work: Work, listed: Mapping[str, Event], absent: Mapping[str, object]) -> dict[str, Event]:
    """Return the events that somebody named; an id that is neither listed nor `absent` is an error."""
    for event_id in work.run.events:
        if event_id not in listed and not (work.run.accept and event_id in absent):
            work.run.failed += 1
            message = "Billetweb's list of events holds no such id or ext_id; `syncctl events` lists the ids"
            work.report.fail(f"event {event_id}", UnknownEvent(message))
    return {key: listed[key] for key in work.run.events if key in listed}


async def plans(work: Work, events: Sequence[Event]) -> AsyncIterator[EventPlan]:
    """Yield the plans for events of which only the list is read."""
    for start in range(0, len(events), AT_ONCE):
        some = events[start : start + AT_ONCE]
        stored = await work.database.read(rows.stored, EVENTS, [event.id for event in some])
        for event in some:
            yield plan_listed(event, stored.get(event.id), work.clock.now())


async def write(work: Work, plan: EventPlan) -> None:
    """Write the plan of an event of which only the list was read."""
    try:
        if plan.writes:
            await work.write(rows.write_plan, plan)
    except ValueRefused as error:
        work.run.failed += 1
        work.report.fail(f"event {plan.event_id}", error)
    else:
        work.run.counts.unchanged += plan.unchanged


def has_date(event: Event) -> bool:
    """Whether an event has a date; old series have none."""
    return event.end is not None


def is_live(event: Event, since: datetime) -> bool:
    """Whether an event has not ended before `since`; without any date: whether it is online."""
    return event.online is not False if event.end is None else event.end > since
