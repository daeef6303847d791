"""Opens the database: one holder, migrations, transactions. Its tables' queries are in `store.py`."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from syncd import postgresql, schema, sqlite
from syncd.errors import AlreadyRunning, ConfigError, StoreError
from syncd.postgresql import Postgresql
from syncd.sqlite import Sqlite

VERSION_TABLE = "syncd_schema"
"""Not Alembic's usual name: the database may be a site's own, with migrations of its own."""


class Database:
    """An open database. Hold it for the process's life; `close` gives the lock back."""

    def __init__(self, url: str, writers: set[int] | None = None) -> None:
        """Open `url`. Raises StoreError, AlreadyRunning where another syncd has it, ConfigError.

        `writers` holds the threads whose writing transaction is under way, a migration's too.
        """
        self.writers: set[int] = set() if writers is None else writers
        self._held = Sqlite(url) if _is_sqlite(url) else Postgresql(url)
        try:
            self._migrate()
        except BaseException as error:
            self.close()
            if isinstance(error, SQLAlchemyError):
                raise StoreError(f"cannot open {self._held.name}: {reason(error)}") from None
            raise

    @property
    def engine(self) -> Engine:
        """The engine that writes."""
        return self._held.writer

    @contextmanager
    def begin(self, *, write: bool = False, takes_long: bool = False) -> Iterator[Connection]:
        """Give a connection in a transaction, committed at the end, rolled back where something is raised.

        With `takes_long` a statement in it may take as long as it needs.
        SQLAlchemy's errors leave as StoreError, in the driver's words only and without their cause:
        statements and their values could hold what nobody may read in a log.
        """
        try:
            with self._transaction(write=write) as connection:
                if takes_long:
                    _take_your_time(connection)
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the database did not do as asked: {reason(error)}") from None
        except AlreadyRunning as error:  # it came while this one was cut off from the server
            raise StoreError(str(error)) from None
        except (OverflowError, UnicodeError) as error:  # the driver's, for values that it cannot hold
            raise StoreError(f"the database cannot hold a value ({type(error).__name__})") from None

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Connection]:
        engine = self._held.writer if write else self._held.reader
        try:
            with engine.execution_options(write=write).begin() as connection:
                if write:
                    self.writers.add(get_ident())
                yield connection
        finally:
            self.writers.discard(get_ident())

    def _migrate(self) -> None:
        with self._transaction(write=True) as connection:
            revision = _known_revision(connection)
            if revision == schema.REVISION:
                return
            upgrade(connection, schema.REVISION)
        self._held.migrated()

    def erased(self) -> bool:
        """Leave no trace of what was erased in the files; tell whether that could be done."""
        return self._held.erased()

    def close(self) -> None:
        """Close every connection and let the lock go."""
        self._held.close()


def _is_sqlite(url: str) -> bool:
    return make_url(url).get_backend_name() == "sqlite"


def masked(url: str) -> str:
    """Return the URL with its password masked."""
    return make_url(url).render_as_string(hide_password=True)


def password(url: str) -> str:
    """Return the password in the URL, "" where there is none."""
    return make_url(url).password or ""


def reason(error: SQLAlchemyError) -> str:
    """Return the driver's own words, without the statement and its values."""
    cause = getattr(error, "orig", None)
    if cause is None:
        waited = "another transaction took too long" if isinstance(error, NoConnectionError) else ""
        return waited or type(error).__name__
    # What psycopg's text says after the first sentence shows the values of the row.
    told = getattr(getattr(cause, "diag", None), "message_primary", None)
    return told or " ".join(str(cause).split())


def check(url: str) -> str | None:
    """Return what is wrong with the database, None where syncd can use it. Creates and changes nothing."""
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
    if is_file := _is_sqlite(url):
        path = sqlite.path_of(url)
        trouble = sqlite.obstacle(path)
        if trouble or not path.exists():
            return trouble
    engine = sqlite.engine(url, read_only=True) if is_file else postgresql.engine(url)
    try:
        with engine.connect() as connection:
            revision = _known_revision(connection)
            return None if is_file else postgresql.obstacle(connection, revision)
    finally:
        engine.dispose()


def _known_revision(connection: Connection) -> str | None:
    """Return the schema's revision, None for a database without one; StoreError for one of a later syncd."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    if revision and revision > schema.REVISION:
        raise StoreError(f"a later syncd wrote the database (schema {revision}); install that version")
    return revision


def _take_your_time(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))


def upgrade(connection: Connection, revision: str) -> None:
    """Bring the schema to a revision, inside the caller's transaction."""
    # Alembic is heavy and needed once in the life of a version.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    _take_your_time(connection)
    config = Config()
    config.set_main_option("script_location", "syncd:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise StoreError(f"the schema cannot be brought to revision {revision}: {error}") from error
