"""SQLite's side of the database: the file, the lock beside it, its transactions."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from syncd.database.lock import FileLock
from syncd.errors import StoreError

BUSY_TIMEOUT_MS = 3000
"""How long a statement waits for another program's lock on the file: less than a stop may take."""
CACHE_KIB = 8192
"""SQLite's 2 MiB do not hold the indexes that an import of 100,000 attendees writes all over."""


class Sqlite:
    """A database file, held by a lock of its own."""

    def __init__(self, url: str) -> None:
        """Take the lock. Raises StoreError, and AlreadyRunning where another syncd has it."""
        path = Path(os.path.realpath(path_of(url)))  # one lock for one file, whichever link leads to it
        self._path = path
        self.name = f"the database {path}"
        if not path.parent.is_dir():
            raise StoreError(f"the folder {path.parent} does not exist; create it, or change database.url")
        self._lock = FileLock(path.with_name(path.name + ".lock"), self.name)
        try:
            self._lock.acquire()
        except OSError as error:
            raise StoreError(f"cannot lock {self.name}: {error.strerror}") from error
        self.writer = engine(url)
        self.reader = self.writer

    def migrated(self) -> None:
        """Let SQLite look at what a migration made of the file."""
        with suppress(SQLAlchemyError), self.writer.connect() as connection:
            connection.exec_driver_sql("PRAGMA optimize")

    def erased(self) -> bool:
        """Empty the write-ahead log, which still holds what was erased in the file.

        Tell whether that was done: it cannot be while somebody reads the file.
        """
        with suppress(sqlite3.Error), closing(self.writer.raw_connection()) as connection:
            is_busy, *_ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not is_busy
        return False

    def close(self) -> None:
        """Close every connection and let the lock go.

        The file is left without a write-ahead log: who may only read it could not open it otherwise.
        """
        self.writer.dispose()
        file = f"{self._path.as_uri()}?mode=rw"
        with suppress(sqlite3.Error), closing(sqlite3.connect(file, uri=True, timeout=0)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # fails where somebody reads just now
        self._lock.release()


def path_of(url: str) -> Path:
    """Return the file that a `sqlite:///` URL names."""
    return Path(make_url(url).database or "")


def obstacle(path: Path) -> str | None:
    """Return why this user cannot have a database in that file."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    if not path.exists():
        writable = os.access(path.parent, os.W_OK | os.X_OK)
        return None if writable else f"the folder {path.parent} is not writable"
    writable = os.access(path, os.R_OK | os.W_OK)
    return None if writable else f"{path} is not readable and writable for this user"


def engine(url: str, *, read_only: bool = False) -> Engine:
    """Return an engine for the file; a read-only one changes nothing in it, its journal mode neither."""
    made = create_engine(url, hide_parameters=True)

    @event.listens_for(made, "connect")
    def set_pragmas(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below; the driver's own way spares DDL
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
            return
        connection.execute("PRAGMA journal_mode = WAL")  # which the file keeps
        connection.execute("PRAGMA secure_delete = ON")  # what is erased is gone from the file too
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")

    @event.listens_for(made, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that will write takes its lock first: one that reads first cannot wait for it later.
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return made
