"""Shared by the tests: a Billetweb stand-in over real HTTP, and the real mirror and runner on top of it."""

import functools
import io
import json
import logging
import os
import random
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import stamina
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings
from loguru import logger
from msgspec import structs
from sqlalchemy import create_engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache
from support import mariadb as mariadb_server
from support import real_databases as databases
from support.processes import short_folder
from support.reading import Mirror

from syncd import config
from syncd.account.account import Account
from syncd.billetweb import decode
from syncd.clock import Clock
from syncd.config import Config
from syncd.database import postgresql, rows, sqlite
from syncd.database.engine import Database
from syncd.errors import StoreError
from syncd.log import setup as log
from syncd.log.redact import Redactor
from syncd.mirror.availability import with_figures
from syncd.mirror.diff import KINDS, present
from syncd.model import Run, Trigger
from syncd.standin.server import StandIn, php_json, serving

# No property fails for a slow machine. Each is tried on new examples every time, and on the same ones again
# with the same seed: so it is in CI too, and nothing else is remembered.
settings.register_profile("syncd", deadline=None, derandomize=False, database=None)
settings.load_profile("syncd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=databases.KINDS,
        default="sqlite",
        help="what tests with a database run on; with postgresql only those run, on servers of their own",
    )
    parser.addoption(
        "--everything",
        action="store_true",
        help="run the tests too that are left out for the time that they take: those marked as slow",
    )


def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are processors: now and then a test waits for a process or a timer."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sqlite_only(why): not run with --database postgresql")
    config.addinivalue_line("markers", "postgresql_only: run with --database postgresql alone")
    config.addinivalue_line("markers", "slow(why): left out, unless --everything asks for it; CI does")
    config.addinivalue_line("markers", "lives: plays lives of accounts, of which there can always be more")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job; programs would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.hypothesis_seed is None:  # those who do a part of the work have the same
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))
    try:
        databases.choose(config.getoption("database"))
    except (ImportError, FileNotFoundError) as error:
        raise pytest.UsageError(f"--database postgresql: {error}") from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about the other database or takes long and, on PostgreSQL, what uses none."""
    other = "sqlite_only" if databases.is_postgresql() else "postgresql_only"
    left_out = {
        item
        for item in items
        if item.get_closest_marker(other)
        or (item.get_closest_marker("slow") and not config.getoption("everything"))
        or (databases.is_postgresql() and "database_kind" not in getattr(item, "fixturenames", ()))
    }
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Where something failed, tell how to have the same examples again."""
    if terminalreporter.stats.keys() & {"failed", "error"}:
        terminalreporter.write_line(
            f"The same examples of all properties again: --hypothesis-seed={config.option.hypothesis_seed}"
        )


@pytest.fixture
def paris(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have local times be those of Paris."""
    monkeypatch.setenv("TZ", "Europe/Paris")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="session", autouse=True)
def certificates() -> Iterator[None]:
    """Read the machine's certificates once: no client here needs them, and each would take its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="session", autouse=True)
def statements() -> Iterator[None]:
    """Compile a statement once for all databases of a kind: there are hundreds, and each would do it anew."""
    shared = functools.partial(create_engine, execution_options={"compiled_cache": LRUCache(1000)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefaultDialect, "__eq__", lambda one, other: type(one) is type(other))
        patch.setattr(DefaultDialect, "__hash__", lambda one: hash(type(one)))
        patch.setattr(sqlite, "create_engine", shared)
        patch.setattr(postgresql, "create_engine", shared)
        yield


@pytest.fixture(scope="session")
def database_kind() -> Iterator[str]:
    """Give the kind of database. Whoever uses one asks for this: by that it runs on PostgreSQL too."""
    yield databases.kind()
    databases.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, database_kind: str) -> str:
    """Return the URL of a database that the tests of a module share: each empties what it fills."""
    return databases.url_at(tmp_path_factory.mktemp("shared") / "mirror.db")


@pytest.fixture(scope="module")
def opened(url: str) -> Iterator[Database]:
    """Give the shared database, open."""
    database = Database(url)
    database.open()
    yield database
    database.close()


@pytest.fixture(scope="module")
def shared_mirror(url: str) -> Iterator[Mirror]:
    """Give the shared database, with runs that fill it."""
    mirror = Mirror(url)
    yield mirror
    mirror.close()


MakeConfig = Callable[..., Config]
WAIT_S = 30.0
"""Longer than anything here takes, shorter than a test may."""


@pytest.fixture
def standin() -> StandIn:
    """Return six events, one of each kind, without a limit of calls a minute."""
    return StandIn()


@pytest.fixture
def home(database_kind: str) -> Iterator[Path]:
    """Give a folder with a path short enough for a socket."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def base_url(standin: StandIn) -> Iterator[str]:
    """Serve the stand-in on loopback."""
    with serving(standin) as url:
        yield url


@pytest.fixture
def make_config(tmp_path: Path, base_url: str, standin: StandIn, database_kind: str) -> MakeConfig:
    """Return a maker of configurations that lead to the stand-in; `sync__interval="1h"` sets a key."""

    def make(**settings: str | int | bool) -> Config:
        values: dict[str, str | int | bool] = {
            "billetweb__user": standin.user,
            "billetweb__base_url": base_url,
            "billetweb__requests_per_minute": 100,
            "database__url": databases.url_at(tmp_path / "syncd.db"),
            "control__socket": f"{tmp_path}/s",
        }
        tables: dict[str, list[str]] = {}
        for name, value in (values | settings).items():
            table, _, key = name.partition("__")
            tables.setdefault(table, []).append(f"{key} = {json.dumps(value)}")
        path = tmp_path / "config.toml"
        path.write_text("".join(f"[{table}]\n{chr(10).join(rows)}\n" for table, rows in tables.items()))
        return config.load(path, {"BILLETWEB_KEY": standin.key})

    return make


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Callable[[], mariadb_server.Server]]:
    """Return a giver of a MariaDB server, which is started where somebody wants it."""
    found: list[mariadb_server.Server] = []

    def give() -> mariadb_server.Server:
        if not found:
            found.append(mariadb_server.Server())
        return found[0]

    yield give
    for server in found:
        server.close()


@pytest.fixture
def instant_retries() -> Iterator[None]:
    """Let requests be asked again three times in all, without a wait in between."""
    with stamina.set_testing(True, attempts=3):
        yield


@pytest.fixture
def at_once() -> Iterator[None]:
    """Let requests be asked again as often as the code says, without a wait in between."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


class LogLines:
    """What was logged, as the JSON form of the log holds it."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        """Everything, as written."""
        return self.stream.getvalue()

    def of(self, event: str = "") -> list[dict[str, Any]]:
        """Return the records whose event name begins so."""
        records = [json.loads(line) for line in self.text.splitlines()]
        return [record for record in records if record.get("event", "").startswith(event)]

    def clear(self) -> None:
        """Forget what was logged so far."""
        self.stream.seek(0)
        self.stream.truncate()


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    """Collect what this process logs, from DEBUG on."""
    lines, root = LogLines(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # else they would be closed
    log.configure(level="DEBUG", format="json", redact=Redactor(), stream=lines.stream)
    try:
        yield lines
    finally:
        logger.remove()
        logging.captureWarnings(capture=False)
        root.handlers[:] = handlers
        root.setLevel(level)


class WaitedFor(Clock):
    """A time that passes by being waited for, `now_s` seconds; beside that too, unless it is set."""

    def __init__(self, at: datetime | None = None) -> None:
        self._at = at
        self.now_s = 0.0
        self.slept_s = 0.0

    def now(self) -> datetime:
        return (self._at or datetime.now(UTC)) + timedelta(seconds=self.now_s)

    def running_s(self) -> float:
        return 1_000_000.0 + self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


class Rig:
    """A real account with its runner, on an event loop in a thread of its own."""

    def __init__(self, config: Config, portal: BlockingPortal, clock: WaitedFor) -> None:
        self.url = config.database.url
        self.clock = clock
        self.portal = portal
        self.redact = Redactor([config.key.value])
        self.steps: list[tuple[str, int, int]] = []
        self.config = config
        portal.call(self._begin)

    async def _begin(self) -> None:
        self.account = Account(self.config, self.redact, clock=self.clock, on_progress=self._note)
        self.runner = self.account.runner
        with suppress(StoreError):  # as the daemon does: it is opened with the first run that can
            await self.account.open()
        self.runner.serve()

    def stop(self) -> None:
        """End what is at work, and close."""
        self.portal.call(self.runner.stop, 5.0)
        self.portal.call(self.account.close)

    def restart(self) -> None:
        """Begin anew, with nothing but the database."""
        self.stop()
        self.portal.call(self._begin)

    def _note(self, run: Run) -> None:
        assert run.progress
        self.steps.append((run.progress.phase, run.progress.done, run.progress.total))

    def request(
        self, trigger: Trigger = "interval", *, full: bool = False, events: tuple[str, ...] = ()
    ) -> Run:
        """Ask for a run."""

        async def ask() -> Run:
            return self.runner.request(trigger, full=full, events=events)

        return self.portal.call(ask)

    def wait(self, run: Run) -> Run:
        """Return the run when it has ended."""
        self.portal.call(self.runner.wait, run, WAIT_S)
        assert run.state == "done"
        return run

    def run(
        self,
        trigger: Trigger = "interval",
        *,
        full: bool = False,
        accept: bool = False,
        events: tuple[str, ...] = (),
        also_whole: bool = False,
    ) -> Run:
        """Carry a run out and return it; `also_whole`: somebody else asked for all events meanwhile."""

        async def ask() -> Run:
            run = self.runner.request(trigger, full=full, accept=accept, events=events)
            return self.runner.request(trigger) if also_whole else run

        return self.wait(self.portal.call(ask))

    def query(self, query: Callable[..., Any], *values: object) -> Any:
        """Return what one of syncd's own queries finds."""
        return self.portal.call(self.account.database.read, query, *values)

    def until(self, holds: Callable[[], bool]) -> None:
        """Return as soon as something holds; fail where it never does.

        It is asked on the loop, so what belongs together there is seen together: a count and its log line.
        """
        deadline = time.monotonic() + WAIT_S
        while not self.portal.call(holds):
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the database for writing, as another program might."""
        return databases.locked(self.url)

    def sql(self, statement: str, *values: object) -> databases.Rows:
        """Return what a statement finds in the database, past all of syncd's own code."""
        return databases.query(self.url, statement, *values)

    def dump(self, event_id: str | None = None) -> dict[str, list[tuple[Any, ...]]]:
        """Return every stored byte of an event, or of all of them."""
        tables = ("billetweb_events", "billetweb_gauges", "billetweb_tickets", "billetweb_sessions")
        found = {}
        for table in (*tables, "syncd_changes"):
            column = "id" if table == "billetweb_events" else "event_id"
            where = f"WHERE {column} = '{event_id}'" if event_id else ""
            found[table] = self.sql(f"SELECT * FROM {table} {where} ORDER BY 1, 2, 3, 4")
        return found


@functools.cache
def migrated() -> bytes:
    """Return the file of a database without rows, as the migrations make it."""
    with short_folder() as folder:
        database = Database(f"sqlite:///{folder}/empty.db")
        database.open()
        database.close()
        return (folder / "empty.db").read_bytes()


def migrated_at(path: Path) -> str:
    """Return the URL of the database that a path stands for; a file is there, a copy of `migrated`."""
    url = databases.url_at(path)
    if url.startswith("sqlite"):
        path.touch(mode=0o600)
        path.write_bytes(migrated())
    return url


@contextmanager
def rig_on(config: Config, clock: WaitedFor | None = None) -> Iterator[Rig]:
    """Give a rig on this configuration, and stop it afterwards.

    A new file is a copy of one that was migrated: doing that each time would take as long as many a test.
    """
    scheme, _, path = config.database.url.partition(":///")
    if scheme == "sqlite" and Path(path).parent.is_dir() and not Path(path).exists():
        Path(path).write_bytes(migrated())
    with start_blocking_portal() as portal:
        rig = Rig(config, portal, clock or WaitedFor())
        try:
            yield rig
        finally:
            rig.stop()


def mirrors(rig: Rig, standin: StandIn, *but: str, carts: bool = False) -> None:
    """Fail unless the mirror holds what the stand-in serves, decoded and with its figures, and no more."""
    served = [event.row for event in standin.events.values()]
    events = decode.decode_events(php_json(served), account=standin.user).records
    assert rig.query(rows.present_events).keys() - set(but) == events.keys() - set(but)
    for event_id in events.keys() - set(but):
        known = rig.query(rows.of_event, event_id)
        held = {
            table: {
                key: dict(zip(KINDS[table].__struct_fields__, of_table[key].values, strict=True))
                for key in present(known, table)
            }
            for table, of_table in known.rows.items()
        }
        source = standin.events[event_id]
        served_gauges = (standin.with_carts(source) if carts else source).gauges
        gauges = decode.decode_gauges(php_json(served_gauges), event_id=event_id).records.values()
        event, tickets, sessions = with_figures(
            events[event_id],
            gauges,
            [*decode.decode_tickets(php_json(source.tickets), event_id=event_id).records.values()],
            [*decode.decode_sessions(php_json(source.sessions), event_id=event_id).records.values()],
            now=rig.clock.now(),
        )
        assert held == {
            "billetweb_events": {event_id: structs.asdict(event)},
            "billetweb_gauges": {gauge.id: structs.asdict(gauge) for gauge in gauges},
            "billetweb_tickets": {ticket.id: structs.asdict(ticket) for ticket in tickets},
            "billetweb_sessions": {session.id: structs.asdict(session) for session in sessions},
        }


@pytest.fixture
def rig(make_config: MakeConfig, instant_retries: None, log_lines: LogLines) -> Iterator[Rig]:
    """Give a rig that asks one request at a time, so that the order of what happens is certain."""
    with rig_on(make_config(billetweb__concurrency=1)) as rig:
        yield rig
