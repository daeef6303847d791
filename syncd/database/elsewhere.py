"""Another program's database, opened briefly: nothing is created, migrated or set, and nothing kept open."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from syncd.database import mysql, postgresql, sqlite
from syncd.database.engine import is_sqlite, reason
from syncd.errors import StoreError, TransactionLost

WAIT_S = 5
"""How long to wait for a lock of the site's: longer than its programs hold one, shorter than a run."""


@contextmanager
def connected(url: str, *, write: bool = False) -> Iterator[Connection]:
    """Yield a connection in a transaction, committed at the end. Raises StoreError, in the driver's words."""
    engine = _engine(url, write=write)
    try:
        with _in_words(), engine.execution_options(write=write).begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _engine(url: str, *, write: bool) -> Engine:
    if is_sqlite(url):
        return _file(url)
    if mysql.is_meant(url):
        return mysql.engine(url, wait_s=WAIT_S)
    return postgresql.engine(url, lock_timeout_s=WAIT_S if write else None)


@contextmanager
def apart(connection: Connection, *, patient: bool = False) -> Iterator[None]:
    """Run a part of a transaction that continues if this part fails. Raises StoreError, as above.

    Raises TransactionLost if the whole transaction is lost: SQLite ends it for a full disk, for example, and
    a server with its connection.
    """
    try:
        with _in_words(), connection.begin_nested():
            if patient and connection.dialect.name == "postgresql":
                connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_S}s'"))
            yield
    except Exception as error:
        if connection.invalidated:
            raise TransactionLost(str(error)) from None
        if connection.dialect.name == "sqlite" and not connection.connection.in_transaction:
            first: BaseException = error
            while first.__context__:  # later errors only say that the savepoint is gone
                first = first.__context__
            raise TransactionLost(f"SQLite gave the transaction up: {first}") from None
        raise


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(told(error)) from None
    except (OverflowError, UnicodeError) as error:  # the driver's, for values that it cannot hold
        raise StoreError(f"a value cannot be written ({type(error).__name__})") from None
    except (RuntimeError, OSError) as error:
        if trouble := mysql.told(error):
            raise trouble from None
        raise


def told(error: SQLAlchemyError) -> str:
    """Return what went wrong, as one sentence."""
    cause = getattr(error, "orig", None)
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # what is above says more of the same
    is_late = getattr(cause, "sqlstate", "") == postgresql.LOCK_NOT_AVAILABLE
    if code == sqlite3.SQLITE_BUSY or is_late or mysql.code(error) in mysql.LOCKED:
        return "another program holds a lock, which was waited for"
    if code == sqlite3.SQLITE_READONLY:
        return "this user may not write the file, or its folder"
    if mysql.code(error) == mysql.SHUT:
        return f"{reason(error)}: is that its name? If so, this user needs GRANT SELECT, UPDATE on the table"
    return reason(error)


def _file(url: str) -> Engine:
    """Return an engine for an existing SQLite file, which keeps its journal mode."""
    path = sqlite.path_of(url)
    if trouble := sqlite.obstacle(path, in_use=True):  # first: for a closed folder `exists` raises
        raise StoreError(trouble)
    if not path.exists():
        raise StoreError(f"there is no file {path}")

    def connect() -> sqlite3.Connection:
        """Open it; a text that is not UTF-8, in any row, is read too."""
        address = f"{path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(address, uri=True, timeout=WAIT_S, check_same_thread=False)
        connection.text_factory = lambda text: text.decode(errors="replace")
        return connection

    made = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    sqlite.begin_explicitly(made)
    return made
