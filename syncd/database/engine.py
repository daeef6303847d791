"""Opens the database: one holder, migrations, transactions. The queries are in the modules beside this one.

A query is a function whose first argument is a connection: `await database.read(rows.events, since)`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, column, func, inspect, select, table
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from syncd.database import postgresql, schema, sqlite
from syncd.database.postgresql import Postgresql
from syncd.database.sqlite import Sqlite
from syncd.errors import AlreadyRunning, ConfigError, StoreError, ValueRefused
from syncd.text import count
from syncd.threads import in_thread

OF_VALUES = ("22", "23", "54", "P0001")
"""The classes of SQLSTATE for data, constraints and limits such as an index's, and the code that triggers
raise (PostgreSQL, appendix A)."""
P = ParamSpec("P")
T = TypeVar("T")

VERSION_TABLE = "syncd_schema"
"""Not Alembic's usual name: the database may be a site's own, with migrations of its own."""
SECRET_PARAMETERS = ("password", "sslpassword", "oauth_client_secret")
"""Secret parameters of libpq; a URL may have them after its question mark."""


class Database:
    """A database, open or not yet. An open one is held for the process's life, until `close`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._held: Sqlite | Postgresql | None = None
        self._writers: set[int] = set()

    @property
    def is_open(self) -> bool:
        """Whether transactions can begin."""
        return self._held is not None

    @property
    def is_writing(self) -> bool:
        """Whether a writing transaction is in progress, including a migration."""
        return bool(self._writers)

    def open(self) -> None:
        """Take the lock and migrate the tables; do nothing if that was done.

        Raises StoreError, AlreadyRunning if another syncd has the lock, ConfigError.
        """
        if self._held:
            return
        held = Sqlite(self.url) if is_sqlite(self.url) else Postgresql(self.url, masked(self.url))
        try:
            with self._transaction(held, write=True) as connection:
                if _known_revision(connection) != schema.REVISION:
                    upgrade(connection, schema.REVISION)
            held.opened()
        except BaseException as error:
            held.close()
            if isinstance(error, SQLAlchemyError):
                raise StoreError(f"cannot open {held.name}: {reason(error)}") from None
            raise
        self._held = held

    async def read(
        self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what a query finds, in a transaction and a thread of its own. Raises StoreError."""
        return await in_thread(self._carry_out, query, False, *args, **kwargs)

    async def write(
        self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Execute a query that writes, all or nothing, in a thread. Raises StoreError."""
        return await in_thread(self._carry_out, query, True, *args, **kwargs)

    def _carry_out(
        self,
        query: Callable[Concatenate[Connection, P], T],
        write: bool,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with self.begin(write=write) as connection:
            return query(connection, *args, **kwargs)

    @contextmanager
    def begin(self, *, write: bool = False) -> Iterator[Connection]:
        """Yield a connection in a transaction, committed at the end, rolled back on an exception.

        SQLAlchemy's errors are raised as StoreError, in the driver's words only and without their cause:
        statements and their values could hold what must not be in a log.
        """
        held = self._held
        if held is None:
            raise StoreError("the database is not open")
        try:
            with self._transaction(held, write=write) as connection:
                yield connection
        except SQLAlchemyError as error:
            if is_about_a_value(error):
                raise ValueRefused(f"the database cannot hold a value: {reason(error)}") from None
            raise StoreError(f"the database did not do as asked: {reason(error)}") from None
        except AlreadyRunning as error:  # the other one came while this one was cut off from the server
            raise StoreError(str(error)) from None
        except (OverflowError, UnicodeError) as error:  # the driver's, for values that it cannot hold
            raise ValueRefused(f"the database cannot hold a value ({type(error).__name__})") from None

    @contextmanager
    def _transaction(self, held: Sqlite | Postgresql, *, write: bool) -> Iterator[Connection]:
        engine = held.writer if write else held.reader
        if write or isinstance(held, Sqlite):  # on a server, what another syncd left is good to read
            _prove(held)
        try:
            with engine.begin() as connection:
                if write:
                    self._writers.add(get_ident())
                    _prove(held)  # a connection that was made just now may have shown it
                yield connection
                if write:
                    _prove(held)  # else it would be committed to a file that nobody finds
        finally:
            self._writers.discard(get_ident())

    def displacement(self) -> str | None:
        """Return how the database is known to be no longer this process's, or None. Waits for nothing."""
        held = self._held
        return held.displacement() if held else None

    @property
    def was_taken(self) -> bool:
        """Whether another syncd held the very same database meanwhile: what stands there counts."""
        return isinstance(self._held, Postgresql) and self._held.displacement() is not None

    def lost(self) -> str | None:
        """Ask how the database is no longer this process's; None if it still is. Raises StoreError."""
        if self._held is None:
            return None
        try:  # on a server only the connection that writes shows it
            with self.begin(write=isinstance(self._held, Postgresql)) as connection:
                found = _outdated(connection)
        except StoreError:
            if how := self.displacement():
                return how
            raise
        return self.displacement() or found

    def prove(self) -> None:
        """Raise StoreError if what was written is lost because the file is no longer at its path."""
        if self._held:
            _prove(self._held)

    def checkpoint(self) -> bool:
        """Move what was written or erased from SQLite's log into the file; return whether that succeeded."""
        return self._held is None or self._held.checkpoint()

    def close(self) -> None:
        """Close every connection and release the lock."""
        held, self._held = self._held, None
        if held:
            held.close()


def _outdated(connection: Connection) -> str | None:
    """Return how the tables are no longer this version's, or None."""
    revision = _known_revision(connection)
    if revision == schema.REVISION:
        return None
    return "another database is in its place, " + (
        f"with an earlier schema ({revision})" if revision else "without the tables of syncd"
    )


def _prove(held: Sqlite | Postgresql) -> None:
    """Raise StoreError if the database is no longer this process's."""
    if how := held.displacement():
        raise StoreError(f"{how}; the next run opens what is there")


def is_sqlite(url: str) -> bool:
    """Whether the URL names a SQLite file."""
    return make_url(url).get_backend_name() == "sqlite"


def masked(url: str) -> str:
    """Return the URL with its passwords masked."""
    made = make_url(url)
    hidden = {name: "***" for name in SECRET_PARAMETERS if name in made.query}
    shown = made.update_query_dict(hidden).render_as_string(hide_password=True)
    return shown.replace("%2A%2A%2A", "***")


def secrets(url: str) -> list[str]:
    """Return the passwords in the URL."""
    made = make_url(url)
    parameters = [word for name in SECRET_PARAMETERS for word in made.normalized_query.get(name, ())]
    return [made.password or "", *parameters]


def reason(error: SQLAlchemyError) -> str:
    """Return the driver's own words, without the statement and its values, and what to do about a role."""
    cause = getattr(error, "orig", None)
    if cause is None:
        waited = "another transaction took too long" if isinstance(error, NoConnectionError) else ""
        return waited or type(error).__name__
    # After the first sentence psycopg's text shows the values of the row.
    told = getattr(getattr(cause, "diag", None), "message_primary", None)
    match cause.args:
        case int(), str(words):  # PyMySQL's, with the number of the error
            told = words
    told = told or _joined(str(cause))
    return told + postgresql.advice(told)


def _joined(told: str) -> str:
    """Return a driver's lines as sentences on one line: libpq has one for each address, and a hint."""
    joined = ""
    for line in filter(None, (line.strip().removeprefix("- ") for line in told.splitlines())):
        between = "" if not joined or joined[-1] in ".!?:,;" else "." if line[0].isupper() else ";"
        joined += f"{between} {line}" if joined else line
    return " ".join(joined.split())


def is_about_a_value(error: SQLAlchemyError) -> bool:
    """Whether the database refuses a value, not the statement."""
    sqlstate = str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")
    return isinstance(error, DataError | IntegrityError) or sqlstate.startswith(OF_VALUES)


def check(url: str) -> str | None:
    """Return what is wrong with the database, None if syncd can use it. Creates and changes nothing."""
    try:
        trouble = _trouble(url)
    except SQLAlchemyError as error:
        trouble = reason(error)
    except StoreError as error:
        trouble = str(error)
    except ConfigError as error:
        return str(error)
    return f"database.url: {trouble}" if trouble else None


def _trouble(url: str) -> str | None:
    if is_file := is_sqlite(url):
        path = sqlite.path_of(url)
        trouble = sqlite.obstacle(path)
        if trouble or (trouble := sqlite.lack_of_room(path)) or not path.exists():
            return trouble
    with _looking(url) as connection:
        revision = _known_revision(connection)
        trouble = None if is_file else postgresql.obstacle(connection, revision)
        lacking = _lacking(connection) if revision == schema.REVISION else ""
    if trouble or not lacking:
        return trouble
    return f"missing, though syncd made it: {lacking}; restore a backup, or begin with an empty database"


def contents(url: str) -> str:
    """Return what a database that passed `check` holds, "" if it is still empty."""
    if is_sqlite(url) and not sqlite.path_of(url).exists():
        return ""
    with _looking(url) as connection:
        if not (revision := _known_revision(connection)):
            return ""
        events, runs = (
            connection.scalar(select(func.count()).select_from(schema.metadata.tables[name])) or 0
            for name in ("billetweb_events", "syncd_runs")
        )
    older = "" if revision == schema.REVISION else ", of an earlier version; the next start upgrades it"
    return f"{count(events, 'event')}, {count(runs, 'run')}{older}"


@contextmanager
def _looking(url: str) -> Iterator[Connection]:
    """Yield a connection that leaves nothing open."""
    engine = sqlite.engine(url, read_only=True) if is_sqlite(url) else postgresql.engine(url)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _lacking(connection: Connection) -> str:
    """Return which tables, columns and views of this version are missing, "" if none is."""
    found, here = inspect(connection), connection.dialect.default_schema_name
    tables, views = {*found.get_table_names(here)}, {*found.get_view_names(here)}
    lacking = [f"the table {name}" for name in schema.metadata.tables if name not in tables]
    for name in schema.metadata.tables.keys() & tables:
        columns = {each["name"] for each in found.get_columns(name, here)}
        needed = schema.metadata.tables[name].columns.keys()
        lacking += [f"the column {name}.{each}" for each in needed if each not in columns]
    lacking += [f"the view {name}" for name in schema.VIEWS if name not in views]
    return ", ".join(sorted(lacking))


def _known_revision(connection: Connection) -> str | None:
    """Return the schema's revision, None for a database without one.

    Raises StoreError for one of a later syncd, and if the tables are in another schema of search_path.
    """
    here = connection.dialect.default_schema_name  # by name alone it could find another syncd's tables
    if not inspect(connection).has_table(VERSION_TABLE, here):
        if connection.dialect.name == "postgresql":
            postgresql.refuse_elsewhere(connection, VERSION_TABLE)
        return None
    versions = table(VERSION_TABLE, column("version_num"), schema=here)
    revision: str | None = connection.scalar(select(versions.c.version_num))
    if revision and revision > schema.REVISION:
        raise StoreError(f"a later syncd wrote the database (schema {revision}); install that version")
    return revision


def upgrade(connection: Connection, revision: str) -> None:
    """Migrate the schema to a revision, inside the caller's transaction."""
    # Alembic is heavy and needed once for each version.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    postgresql.take_your_time(connection)
    config = Config()
    config.set_main_option("script_location", "syncd:database/migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise StoreError(f"the schema cannot be brought to revision {revision}: {error}") from error
