"""What a run works with; passed to each of its steps."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Concatenate, ParamSpec, TypeVar

from msgspec import Struct
from sqlalchemy import Connection

from syncd.billetweb.client import Billetweb
from syncd.clock import Clock
from syncd.config import Config
from syncd.database.engine import Database
from syncd.database.rows import Follow, Writing, follow_nothing
from syncd.errors import TransactionLost
from syncd.mirror.diff import Change
from syncd.model import Doubt, Run
from syncd.run.report import Report, tell_news
from syncd.threads import to_the_end

P = ParamSpec("P")
T = TypeVar("T")

OnDoubt = Callable[[Connection, datetime, Doubt], None]


class Work(Struct, frozen=True, kw_only=True):
    """One run's surroundings.

    `full_asked`: somebody asked for a full run, however long it takes. `follow` is called with changes, in
    their transaction; `doubted` with a new doubt, in the transaction that records it. `ext_ids`: those of
    the listed events.
    """

    config: Config
    client: Billetweb
    database: Database
    clock: Clock
    report: Report
    full_asked: bool = False
    follow: Follow = follow_nothing
    doubted: OnDoubt
    ext_ids: Mapping[str, str | None] = {}

    async def write(
        self,
        query: Callable[Concatenate[Connection, Writing, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Execute a query that writes rows, all or nothing; after the commit, count them and log news.

        Its arguments must be usable twice if it changes events: the query may be repeated. A run that is
        cancelled meanwhile waits for it: every row that is written is counted.
        """
        written: list[Change] = []

        def follow(connection: Connection, writing: Writing, some: Sequence[Change]) -> None:
            self.follow(connection, writing, some)
            written.extend(some)

        async def carry_out() -> T:
            """Repeat it if its transaction was lost, then count and log."""
            while True:
                written.clear()
                writing = Writing(self.run.id, self.clock.now(), follow, self.ext_ids)
                with suppress(TransactionLost):  # by a table of the site's, which is skipped from then on
                    result = await self.database.write(query, writing, *args, **kwargs)
                    break
            self.run.counts.add(writing.counts)
            tell_news(self.run, written)
            return result

        return await to_the_end(carry_out())

    @property
    def run(self) -> Run:
        """The run's record, always up to date."""
        return self.report.run
