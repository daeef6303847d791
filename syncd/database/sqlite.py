"""SQLite's side of the database: the file, the lock beside it, its transactions."""

import os
import shutil
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from loguru import logger
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from syncd.database.lock import FileLock, give_to_folder, identity
from syncd.errors import StoreError

BUSY_TIMEOUT_MS = 3000
"""How long a statement waits for another program's lock on the file: less than a stop may take."""
MODE = 0o640
"""A new file's mode, as far as the umask allows: its group may read it, if the service lets a site do so.
Others may not, whatever the umask: it may hold people's addresses."""
LEAST_FREE_BYTES = 1 << 20
"""A run of a small account writes some hundred KiB before SQLite can free space."""
WAL_BYTES = 4 << 20
"""The size to which the write-ahead log shrinks once nobody reads it: without readers it gets no longer,
because SQLite empties it after 1,000 pages."""
CACHE_KIB = 8192
"""SQLite's 2 MiB do not hold the indexes that an import of 100,000 attendees updates."""


class Sqlite:
    """A database file, held by a lock of its own.

    An open file still accepts rows after its name is removed: check `displacement` before a write.
    """

    def __init__(self, url: str) -> None:
        """Take the lock. Raises StoreError, and AlreadyRunning if another syncd has it."""
        path = Path(os.path.realpath(path_of(url)))  # one lock for one file, whichever link leads to it
        self._path = path
        self.name = f"the database {path}"
        if trouble := obstacle(path):
            raise StoreError(f"{trouble}; mend that, or change database.url")
        self._lock = FileLock(path.with_name(path.name + ".lock"), self.name)
        try:
            self._lock.acquire()
        except OSError as error:
            raise StoreError(f"cannot lock {self.name}: {error.strerror}") from error
        try:
            found = _made_private(path)
        except OSError as error:
            self._lock.release()
            raise StoreError(f"cannot open {self.name}: {error.strerror}") from error
        self._files = {path_of(url): (found.st_dev, found.st_ino)}
        self._is_open_to_all = bool(found.st_mode & 0o007)
        self.reader = engine(url)
        self.writer = self.reader.execution_options(write=True)
        event.listen(self.reader, "do_connect", self._prove)

    def opened(self) -> None:
        """Note which files are open; say so where everybody may read them."""
        if self._is_open_to_all:
            # Not narrowed: a site by another user may live on it, and would be cut off by an upgrade.
            logger.bind(event="database.open_to_all").warning(
                "every user of this machine may read {}, which may hold people's names and addresses;"
                " `chmod o= {}` ends that, where nobody needs it",
                self._path,
                self._path,
            )
        log = self._path.with_name(self._path.name + "-wal")
        if found := identity(log):  # there is none on a file system without shared memory
            self._files[log] = found

    def displacement(self) -> str | None:
        """Return how the files at the paths differ from the open ones, or None. Waits for nothing."""
        for path, opened in self._files.items():
            found = identity(path)
            if found != opened:
                became = "removed" if found is None else "replaced by another"
                return f"the file {path} was {became} while it was open"
        return None if self._lock.is_held else f"the lock of {self.name} was removed while it was held"

    def _prove(self, *_: object) -> None:
        """Refuse to connect to another file than the other connections did."""
        if how := self.displacement():
            raise StoreError(how)

    def checkpoint(self) -> bool:
        """Empty the write-ahead log, which grows while somebody reads; return whether that succeeded.

        It fails while somebody reads the file; it does not wait for readers.
        """
        unable = suppress(sqlite3.Error, SQLAlchemyError, StoreError)
        with unable, closing(self.writer.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute("PRAGMA busy_timeout = 0")
            try:
                is_busy, *_ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            return not is_busy
        return False

    def close(self) -> None:
        """Close every connection and release the lock.

        The file is left without a write-ahead log: otherwise a user who may only read could not open it.
        """
        is_ours = self.displacement() is None
        self.writer.dispose()
        if is_ours:
            file = f"{self._path.as_uri()}?mode=rw"
            with suppress(sqlite3.Error), closing(sqlite3.connect(file, uri=True, timeout=0)) as connection:
                connection.execute("PRAGMA journal_mode = DELETE")  # fails while somebody reads
        self._lock.release()


def _made_private(path: Path) -> os.stat_result:
    """Return what the file is; create a missing file, not readable for everybody. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    except FileExistsError:
        return path.stat()
    give_to_folder(fd, path.parent)
    os.fchmod(fd, os.fstat(fd).st_mode & 0o777 | 0o600)  # a umask may remove even the owner's rights
    found = os.fstat(fd)
    os.close(fd)
    return found


def path_of(url: str) -> Path:
    """Return the file that a `sqlite:///` URL names."""
    return Path(make_url(url).database or "")


def obstacle(path: Path, *, in_use: bool = False) -> str | None:
    """Return why this user cannot have a database in that file; one `in_use` may have a log already."""
    try:
        if not path.parent.is_dir():
            return f"the folder {path.parent} does not exist"
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:  # a closed folder, a link that leads to itself, too long a name
        return f"cannot use {path}: {error.strerror}"
    if mode and not stat.S_ISREG(mode):
        return f"{path} is no regular file"
    if mode and not os.access(path, os.R_OK | os.W_OK):
        return f"{path} is not readable and writable for this user"
    real = Path(os.path.realpath(path))  # SQLite writes its journal beside the real file
    logs = [log for end in ("-wal", "-shm") if (log := real.with_name(f"{real.name}{end}")).exists()]
    if not (in_use and logs):
        writable = os.access(real.parent, os.W_OK | os.X_OK)
        return None if writable else f"the folder {real.parent} is not writable"
    # Whoever closes the file last removes them, perhaps since they were seen.
    refused = [log for log in logs if not os.access(log, os.R_OK | os.W_OK) and log.exists()]
    advice = f"`chmod g+s {real.parent}` has what is made there belong to the folder's group"
    return f"{refused[0]} is not readable and writable for this user: {advice}" if refused else None


def lack_of_room(path: Path) -> str | None:
    """Return a message if the disk of the file, present or future, is full."""
    free = shutil.disk_usage(path.parent).free
    return (
        f"the disk of {path.parent} is full: {free // 1024} KiB are free" if free < LEAST_FREE_BYTES else None
    )


def engine(url: str, *, read_only: bool = False) -> Engine:
    """Return an engine for the file; a read-only one changes nothing, not even its journal mode."""
    made = create_engine(url, hide_parameters=True)
    begin_explicitly(made)

    @event.listens_for(made, "connect")
    def set_pragmas(connection: Any, _record: object) -> None:
        """Set what SQLite forgets with every connection."""
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
            return
        connection.execute("PRAGMA journal_mode = WAL")  # which the file keeps
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        connection.execute("PRAGMA secure_delete = ON")  # what is erased is gone from the file too
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")

    return made


def begin_explicitly(made: Engine) -> None:
    """Begin an engine's transactions by statements: the driver's own way leaves DDL out.

    A transaction that will write takes its lock first: after a read it could not wait for it.
    """

    @event.listens_for(made, "connect")
    def leave_it(connection: Any, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(made, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
