"""Opens the database: one holder, the right pragmas, migrations. Its tables' queries are in `store.py`."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from syncd import schema
from syncd.errors import StoreError
from syncd.lock import FileLock

VERSION_TABLE = "syncd_schema"
"""Not Alembic's usual name: the database may be a site's own, with migrations of its own."""

BUSY_TIMEOUT_MS = 3000
"""How long a statement waits for another program's lock on the SQLite file: less than a stop may take."""


class Database:
    """An open database. Hold it for the process's life; `close` gives the lock back."""

    def __init__(self, url: str, writers: set[int] | None = None) -> None:
        """Open `url`. Raises StoreError, and AlreadyRunning where another syncd has it.

        `writers` holds the threads whose writing transaction is under way, a migration's too.
        """
        self.writers: set[int] = set() if writers is None else writers
        path = Path(os.path.realpath(sqlite_path(url)))  # one lock for one file, whichever link leads to it
        self._path = path
        if not path.parent.is_dir():
            raise StoreError(f"the folder {path.parent} does not exist; create it, or change database.url")
        self._lock = FileLock(path.with_name(path.name + ".lock"), f"the database {path}")
        try:
            self._lock.acquire()
        except OSError as error:
            raise StoreError(f"cannot lock the database {path}: {error.strerror}") from error
        self.engine = _engine(url)
        try:
            self._migrate()
        except BaseException as error:
            self.close()
            if isinstance(error, SQLAlchemyError):
                raise StoreError(f"cannot open the database {path}: {reason(error)}") from error
            raise

    @contextmanager
    def begin(self, *, write: bool = False) -> Iterator[Connection]:
        """Give a connection in a transaction, committed at the end, rolled back where something is raised."""
        try:
            with self.engine.execution_options(write=write).begin() as connection:
                if write:
                    self.writers.add(get_ident())
                yield connection
        finally:
            self.writers.discard(get_ident())

    def _migrate(self) -> None:
        with self.begin(write=True) as connection:
            if _known_revision(connection) == schema.REVISION:
                return
            upgrade(connection, schema.REVISION)
        with suppress(SQLAlchemyError), self.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA optimize")

    def close(self) -> None:
        """Close every connection and let the lock go.

        The file is left without a write-ahead log: who may only read it could not open it otherwise.
        """
        self.engine.dispose()
        file = f"{self._path.as_uri()}?mode=rw"
        with suppress(sqlite3.Error), closing(sqlite3.connect(file, uri=True, timeout=0)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # fails where somebody reads just now
        self._lock.release()


def sqlite_path(url: str) -> Path:
    """Return the file that a `sqlite:///` URL names."""
    return Path(make_url(url).database or "")


def masked(url: str) -> str:
    """Return the URL with its password masked."""
    return make_url(url).render_as_string(hide_password=True)


def reason(error: SQLAlchemyError) -> str:
    """Return the driver's own words, without the statement and its values."""
    return str(getattr(error, "orig", None) or type(error).__name__)


def check(url: str) -> str | None:
    """Return what is wrong with the database, None where syncd can use it. Creates and changes nothing."""
    path = sqlite_path(url)
    if not path.parent.is_dir():
        return f"database.url: the folder {path.parent} does not exist"
    if not path.exists():
        writable = os.access(path.parent, os.W_OK | os.X_OK)
        return None if writable else f"database.url: the folder {path.parent} is not writable"
    if not os.access(path, os.R_OK | os.W_OK):
        return f"database.url: {path} is not readable and writable for this user"
    engine = _engine(url, read_only=True)
    try:
        with engine.connect() as connection:
            _known_revision(connection)
    except (SQLAlchemyError, StoreError) as error:
        return f"database.url: {reason(error) if isinstance(error, SQLAlchemyError) else error}"
    finally:
        engine.dispose()
    return None


def _engine(url: str, *, read_only: bool = False) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        json_serializer=lambda value: json.dumps(value, default=msgspec.to_builtins, ensure_ascii=False),
        json_deserializer=json.loads,
    )

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below; the driver's own way spares DDL
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
            return
        connection.execute("PRAGMA journal_mode = WAL")  # which the file keeps
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that will write takes its lock first: one that reads first cannot wait for it later.
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _known_revision(connection: Connection) -> str | None:
    """Return the schema's revision, None for a database without one; StoreError for one of a later syncd."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    if revision and revision > schema.REVISION:
        raise StoreError(f"a later syncd wrote the database (schema {revision}); install that version")
    return revision


def upgrade(connection: Connection, revision: str) -> None:
    """Bring the schema to a revision, inside the caller's transaction."""
    # Alembic is heavy and needed once in the life of a version.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "syncd:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise StoreError(f"the schema cannot be brought to revision {revision}: {error}") from error
