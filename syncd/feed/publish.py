"""Updates a site's own tables: each `[[publish]]` is a target, with its latest result.

In the mirror's own database a target's rows are written with the event's, behind a savepoint; at the end of
each run every target is compared with the whole mirror, which repairs what a crash, a lock or a later row of
the site's left. A failure is that target's error, and stops nothing else.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from loguru import logger
from msgspec import Struct, field
from sqlalchemy import Connection

from syncd.config import Config, PublishConfig
from syncd.database import elsewhere, forms, target
from syncd.database.engine import Database, masked
from syncd.database.forms import Form
from syncd.database.rows import Writing
from syncd.database.target import Done, Mapped
from syncd.errors import StoreError, SyncdError, TransactionLost
from syncd.log import bugs
from syncd.mirror.diff import Change
from syncd.model import EVENTS
from syncd.text import count, harmless, plain
from syncd.threads import Latest, in_own_thread, in_thread

WAIT_S = 10.0
"""How long a run's end waits for tables elsewhere, twice as long as they wait for a lock: a silent server
must not hold up runs."""


class TargetState(Struct, kw_only=True):
    """How a target fares, as `GET /v1/publish` shows it. `database` null is the mirror's own.

    By the end of the latest run: `matched` counts the site's rows of an event, `vanished` those of an event
    that vanished (they stay as they are), `unmatched` the keys that belong to no event; `examples` are some
    of these keys. Since the daemon started: `written` counts rows, and `errors` how often something was
    wrong.
    """

    name: str
    table: str
    database: str | None
    matched: int | None = None
    vanished: int = 0
    unmatched: int = 0
    examples: list[str] = field(default_factory=list)
    written: int = 0
    last_write_at: datetime | None = None
    last_error: str | None = None
    errors: int = 0
    warnings: list[str] = field(default_factory=list)


class PublishStatus(Struct, frozen=True):
    """How many targets there are, and how many of them fail."""

    targets: int = 0
    failing: int = 0


class Target:
    """One table of a site's, and its state. `database`: the mirror's. `redact` masks secrets."""

    def __init__(self, settings: PublishConfig, database: Database, redact: Callable[[str], str]) -> None:
        self.settings = settings
        self.url = settings.database or database.url
        self.is_here = self.url == database.url
        place = None if self.is_here else masked(self.url)
        self.state = TargetState(name=settings.name, table=settings.table, database=place)
        self.waits = False  # for the end of the run, after a failure
        self._database = database
        self._redact = redact
        self._form: Form | None = None

    def follow(self, connection: Connection, ids: Sequence[str], at: datetime) -> None:
        """Write what follows from these events, in their transaction. Raises only TransactionLost.

        A failure is retried at the end of the run, and reported there.
        """
        if self.waits:
            return
        try:
            with elsewhere.apart(connection):
                form = self._form or self._look(connection)
                some = target.events(connection, self.settings, ids)
                done = target.reconcile(connection, form, some, at, all_of_them=False)
        except TransactionLost:
            self.waits = True  # the transaction is repeated without it
            raise
        except Exception as error:  # noqa: BLE001 - a bug with one table ends no run; it is told at its end
            self.waits = True  # do not wait for a lock with each event
            why = error if isinstance(error, StoreError) else type(error).__name__
            logger.debug("publish {}: {}; tried again at the end of the run", self.state.name, why)
        else:
            self._count(done, at)

    async def examine(self) -> None:
        """Check between runs whether the table can be used, and remember what is wrong."""
        with self._guarded():
            if self.is_here:
                await in_thread(self._examine_here)
            else:  # which may hang
                await in_own_thread(self._examine_elsewhere)

    async def settle(self, at: datetime) -> None:
        """Update the table from the whole mirror, and remember the result."""
        with self._guarded():
            if self.is_here:
                await in_thread(self._settle_here, at)
            else:  # which may hang: nothing of the mirror is held meanwhile
                some = await self._database.read(target.events, self.settings)
                await in_own_thread(self._settle_elsewhere, some, at)

    def fail(self, error: str) -> None:
        """Remember what went wrong, and log it if it is new."""
        self._form = None
        self._failed(error)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Remember any failure as this target's."""
        try:
            yield
        except SyncdError as error:
            self.fail(str(error))
        except Exception as error:  # noqa: BLE001 - a bug with one table ends no run
            self.fail(bugs.tell(f"publish {self.state.name}", error))

    def _examine_here(self) -> None:
        if self._database.is_open:
            with self._database.begin() as connection, elsewhere.apart(connection):
                self._examine(connection)

    def _examine_elsewhere(self) -> None:
        with elsewhere.connected(self.url) as connection:
            self._examine(connection)

    def _examine(self, connection: Connection) -> None:
        was_unfit = self._form is None
        if repeated := forms.repeated(connection, self._look(connection)):
            self._failed("; ".join(repeated))
        elif was_unfit:  # else the fault is in the rows, and only writing them shows whether it is gone
            self._works()

    def _settle_here(self, at: datetime) -> None:
        with self._database.begin(write=True) as connection, elsewhere.apart(connection, patient=True):
            some = target.events(connection, self.settings)
            done = target.reconcile(connection, self._look(connection), some, at, all_of_them=True)
        self._take(done, at)

    def _settle_elsewhere(self, some: Sequence[Mapped], at: datetime) -> None:
        with elsewhere.connected(self.url, write=True) as connection:
            done = target.reconcile(connection, self._look(connection), some, at, all_of_them=True)
        self._take(done, at)

    def _take(self, done: Done, at: datetime) -> None:
        """Remember the committed result."""
        self.waits = False
        self._count(done, at)
        self.state.matched, self.state.unmatched = done.matched, done.unmatched
        self.state.examples = [harmless(key, 100) for key in done.examples]
        if done.vanished > self.state.vanished:
            logger.bind(event="publish.vanished").warning(
                "publish {}: {} of vanished events, left as they are",
                self.state.name,
                count(done.vanished, "row"),
            )
        self.state.vanished = done.vanished
        if done.problems:
            self._failed("; ".join(done.problems))
        else:
            self._works()

    def _look(self, connection: Connection) -> Form:
        """Return the present form of the table. Raises StoreError if it is not usable."""
        form = forms.look(connection, self.settings)
        for warning in form.warnings:
            if warning not in self.state.warnings:
                logger.bind(event="publish.slow").warning("publish {}: {}", self.state.name, warning)
        self.state.warnings = form.warnings
        if form.problems:
            raise StoreError("; ".join(form.problems))
        self._form = form
        return form

    def _count(self, done: Done, at: datetime) -> None:
        self.state.written += done.written
        if done.written:
            self.state.last_write_at = at

    def _failed(self, error: str) -> None:
        error = plain(self._redact(error))  # the words of another's server, or of its triggers
        if error != self.state.last_error:
            logger.bind(event="publish.failed").error(
                "publish {}: {}; the mirror goes on, and the next run tries again", self.state.name, error
            )
        self.state.last_error = error
        self.state.errors += 1

    def _works(self) -> None:
        if self.state.last_error:
            logger.bind(event="publish.works").info("publish {}: works again", self.state.name)
        self.state.last_error = None


class Publishing:
    """All targets of an account. `redact` masks secrets."""

    def __init__(self, config: Config, database: Database, redact: Callable[[str], str]) -> None:
        self.targets: list[Target] = []
        self._database = database
        self._redact = redact
        self.writing = Latest[Target]()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Apply new settings; an unchanged target keeps its state."""
        known = {each.settings.name: each for each in self.targets}
        targets = []
        for settings in config.publish:
            same = known.get(settings.name)
            if not (same and same.settings == settings):
                same = Target(settings, self._database, self._redact)
            targets.append(same)
        self.targets = targets

    @property
    def is_late(self) -> bool:
        """Whether rows are written when a run ends: in another database, or after a failure."""
        return any(each.waits or not each.is_here for each in self.targets)

    @property
    def failing(self) -> set[str]:
        """The names of the targets that fail."""
        return {each.state.name for each in self.targets if each.state.last_error is not None}

    def status(self) -> PublishStatus:
        """Return how many targets there are, and how many fail."""
        return PublishStatus(len(self.targets), len(self.failing))

    def states(self) -> list[TargetState]:
        """Return the state of each target."""
        return [each.state for each in self.targets]

    def follow(self, connection: Connection, writing: Writing, changes: Sequence[Change]) -> None:
        """Write what follows from changes of events into the targets of the same database."""
        ids = [each.row_id for each in changes if each.table == EVENTS and each.kind != "vanished"]
        if ids:
            for each in self.targets:
                if each.is_here:
                    each.follow(connection, ids, writing.at)

    async def examine(self) -> None:
        """Check whether every target can be used, and remember what is wrong."""
        here, others = self._by_place()
        for each in here:
            await each.examine()
        await asyncio.gather(*(each.examine() for each in others))

    async def settle(self, at: datetime) -> None:
        """Update every target from the whole mirror; wait at most WAIT_S for those elsewhere."""
        here, others = self._by_place()
        for each in here:
            await each.settle(at)
        wanted = {each: partial(each.settle, at) for each in others}
        for each in await self.writing.carry_out(wanted, WAIT_S):
            each.fail(f"it takes longer than {WAIT_S:g} s; it goes on meanwhile")

    def _by_place(self) -> tuple[list[Target], list[Target]]:
        """Return the targets in the mirror's database, which share its connection, and those elsewhere."""
        here = [each for each in self.targets if each.is_here]
        return here, [each for each in self.targets if not each.is_here]


def check(config: Config) -> tuple[list[str], list[str]]:
    """Return the problems of a configuration's targets, and what is only slow. Changes nothing."""
    problems, warnings = [], []
    for settings in config.publish:
        try:
            with elsewhere.connected(settings.database or config.database.url) as connection:
                form = forms.look(connection, settings)
                repeated = [] if form.problems else forms.repeated(connection, form)
        except SyncdError as error:
            problems.append(f"publish {settings.name}: {error}")
        else:
            problems += [f"publish {settings.name}: {problem}" for problem in [*form.problems, *repeated]]
            warnings += [f"publish {settings.name}: {warning}" for warning in form.warnings]
    return problems, warnings
