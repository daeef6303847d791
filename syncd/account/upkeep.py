"""Removes from an account's database what may no longer be kept, and what is too old."""

from collections import Counter
from datetime import datetime, timedelta

from loguru import logger

from syncd import text
from syncd.clock import Clock
from syncd.config import Config
from syncd.database import attendees, changes, deliveries, schema, state
from syncd.database.engine import Database
from syncd.errors import StoreError
from syncd.threads import in_thread

PRUNE_S = 1.0
"""How long old rows of a table may be removed after a run; for both tables less than a stop may take."""


async def retain(database: Database, config: Config, now: datetime) -> None:
    """Erase the data of attendees that `sync.attendees` no longer allows, from the files too.

    If it now allows more, or the account changed, all attendees are imported again.
    """
    user, mode = config.billetweb.user, config.sync.attendees
    if not await database.read(attendees.is_other, user, mode):
        return
    erased = await database.write(attendees.retain, user, mode, now)
    if erased:
        what = "all that was mirrored" if mode == "none" else "the personal data"
        log = logger.bind(event="attendees.erased", erased=erased)
        log.warning(
            "{} of {} erased, as sync.attendees is {!r} now", what, text.count(erased, "attendee"), mode
        )
    if not await database.read(state.get, state.TRACES, bool):
        return
    if await in_thread(database.checkpoint):
        await database.write(state.put, state.TRACES, None)
    else:
        logger.bind(event="attendees.traces").warning(
            "what was erased of attendees is still in the write-ahead log, for another program is reading"
            " the database; the next run tries again"
        )


async def tidy(database: Database, config: Config, now: datetime) -> None:
    """Erase what may no longer be kept, without waiting for a run. Raises nothing."""
    try:
        await retain(database, config, now)
    except StoreError as error:
        logger.debug("what may no longer be kept of attendees waits for the next run: {}", error)


async def prune(database: Database, clock: Clock, keep: timedelta, before_at: datetime) -> None:
    """Remove changes and deliveries that are too old, after every whole reading but the first."""
    removed = Counter[object]()
    try:
        for table, old in ((schema.changes, changes.old), (schema.deliveries, deliveries.old)):
            deadline_s, count = clock.running_s() + PRUNE_S, changes.PRUNED_AT_ONCE
            doomed = await database.read(old, keep, clock.now(), before_at)
            while count == changes.PRUNED_AT_ONCE and clock.running_s() < deadline_s:
                count = await database.write(changes.prune, table, doomed)
                removed[table] += count
    except StoreError as error:
        logger.bind(event="error.database").warning(
            "old changes and deliveries could not be removed: {}; the next whole reading tries again", error
        )
    if gone := removed[schema.changes]:
        age = text.format_duration(keep.total_seconds())
        log = logger.bind(event="changes.pruned", removed=gone)
        log.info("{} older than {} removed from the log of changes", text.count(gone, "change"), age)
