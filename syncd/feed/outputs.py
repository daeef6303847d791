"""All that leaves an account, in its order: a site's tables, its files, the webhooks that tell of both."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import Connection

from syncd.clock import Clock
from syncd.config import Config
from syncd.database.engine import Database
from syncd.database.rows import Writing
from syncd.feed.files import Feeds
from syncd.feed.publish import Publishing
from syncd.feed.webhooks import Webhooks
from syncd.mirror.diff import Change


class Outputs:
    """What a site and others get of an account. `redact` masks secrets.

    Webhooks are held back while a table or a file may be behind: their receiver reads the event there.
    """

    def __init__(
        self, config: Config, database: Database, clock: Clock, redact: Callable[[str], str]
    ) -> None:
        self.publishing = Publishing(config, database, redact)
        self.feeds = Feeds(config.feeds)
        self.webhooks = Webhooks(config, database, clock)
        self._database = database

    def configure(self, config: Config) -> None:
        """Apply new settings; what they leave unchanged keeps its state."""
        self.publishing.configure(config)
        self.feeds.configured = config.feeds
        self.webhooks.configure(config)

    def follow(self, connection: Connection, writing: Writing, changes: Sequence[Change]) -> None:
        """Write what follows from changes in their transaction: a site's rows, and deliveries."""
        self.publishing.follow(connection, writing, changes)
        self.hold(writing.at)
        self.webhooks.outbox.follow(connection, writing, changes)

    def hold(self, since: datetime) -> None:
        """Hold back webhooks recorded from then on, if anything is only written when a run ends."""
        if self.publishing.is_late or self.feeds.configured:
            self.webhooks.hold(since)

    async def write(self, now: datetime, events_unread: int | None, *, tables: bool) -> bool:
        """Update files, and with `tables` tables, from the mirror; return whether it allowed all of them.

        `events_unread` is as for `Feeds.follow`. A failure of one of them is its own, and told there.
        """
        if tables:
            await self.publishing.settle(now)
        return await self.feeds.follow(self._database, now, events_unread) and tables

    def release(self, since: datetime, *, whatever_fails: bool) -> None:
        """Send webhooks; those from `since` on wait if a table or file newly fails, but `whatever_fails`."""
        failing = {*self.publishing.failing, *self.feeds.failing}
        self.webhooks.release(since, set() if whatever_fails else failing)

    async def finish(self, wait_s: float) -> None:
        """Return when what takes longer is written, tables and files after so long each."""
        await self.publishing.writing.finish(wait_s)
        await self.feeds.writing.finish(wait_s)

    async def close(self) -> None:
        """Write and send nothing more."""
        await self.webhooks.stop()
        await asyncio.gather(self.publishing.writing.cancel(), self.feeds.writing.cancel())
