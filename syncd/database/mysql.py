"""MySQL and MariaDB, only for a site's own tables: syncd's own database is never there.

PyMySQL is imported only if a URL needs it: it is optional.
"""

import sys
from typing import Any

from sqlalchemy import ColumnElement, Engine, NullPool, TableClause, cast, create_engine, event, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError

from syncd.errors import ConfigError, StoreError

INSTALL = f"{sys.executable} -m pip install 'PyMySQL[rsa]'; the Debian package brings it"
CONNECT_S, ANSWER_S = 5, 60
"""How long a server may take to connect, and to answer a statement: as with PostgreSQL."""
SESSION = (
    # Instants are written and compared in UTC, whatever the server's zone.
    "SET SESSION time_zone = '+00:00', "
    # A value that does not fit is refused, not truncated; quotes and backslashes mean what PyMySQL expects.
    "sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', "
    "innodb_lock_wait_timeout = {wait_s}, lock_wait_timeout = {wait_s}"
)
LOCKED = {1205, 1213, 1305}
"""A lock time-out; a deadlock, which ends the transaction; a missing savepoint, which ended with that."""
FORBIDDEN = {1142, 1143}
"""The user has no right to the table, or to a column."""
SHUT = 1044
"""The user may not open the database, or there is none: it sees those alone where it has some right."""
UNKNOWN = {1049, 1146}
"""There is no such database, or table."""
REFUSED = {1264, 1265, 1292, 1366, 1406, 1644, 3819, 4025}
"""A value is out of range, of another type or too long, or a trigger or constraint refuses it."""


def engine(url: str, *, wait_s: int) -> Engine:
    """Return an engine for such a database, not connected yet. Raises ConfigError without PyMySQL."""
    made = make_url(url)
    address = made.set(drivername="mysql+pymysql", query={**made.query, "charset": "utf8mb4"})
    options = {
        "connect_timeout": CONNECT_S,
        "read_timeout": CONNECT_S,
        "write_timeout": ANSWER_S,
        "password": (made.password or "").encode(),  # a text would be sent in Latin-1: servers have UTF-8
    }
    try:
        engine = create_engine(address, poolclass=NullPool, hide_parameters=True, connect_args=options)
    except ImportError as error:
        raise ConfigError([f"MySQL and MariaDB need PyMySQL: {INSTALL} ({error})"]) from None

    @event.listens_for(engine, "connect")
    def set_session(connection: Any, _record: object) -> None:
        connection._read_timeout = ANSWER_S  # noqa: SLF001  # until now it was for the server's greeting
        with connection.cursor() as cursor:
            cursor.execute(SESSION.format(wait_s=wait_s))

    return engine


def is_meant(url: str) -> bool:
    """Whether the URL names MySQL or MariaDB."""
    return make_url(url).get_backend_name() in ("mysql", "mariadb")


def code(error: BaseException) -> int:
    """Return the number of a server's error, 0 if it has none."""
    arguments = getattr(getattr(error, "orig", None), "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0


def exact(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a text in a form that compares exactly: for example, case matters."""
    from sqlalchemy.dialects import mysql  # noqa: PLC0415 - heavy, and mostly not needed

    return cast(cast(value, mysql.CHAR(charset="utf8mb4")), mysql.BINARY)


def hidden(connection: Connection, table: TableClause) -> str | None:
    """Return a message if this user may not even see a table, or None."""
    name = connection.dialect.identifier_preparer.format_table(table)
    return _refusal(connection, "SELECT", name, f"SHOW CREATE TABLE {name}")


def forbidden(connection: Connection, table: TableClause, written: list[str]) -> str | None:
    """Return what this user may not do with a table, None if all is allowed. Changes nothing."""
    preparer = connection.dialect.identifier_preparer
    name, quote = preparer.format_table(table), preparer.quote_identifier
    columns = ", ".join(quote(column.name) for column in table.columns)
    same = ", ".join(f"{quote(column)} = {quote(column)}" for column in written)
    read, change = f"SELECT {columns} FROM {name} LIMIT 0", f"UPDATE {name} SET {same} WHERE 1 = 0"  # noqa: S608
    return _refusal(connection, "SELECT", name, read) or _refusal(connection, "UPDATE", name, change)


def _refusal(connection: Connection, right: str, name: str, attempt: str) -> str | None:
    """Return the message on a missing right, with the statement that grants it."""
    try:
        connection.exec_driver_sql(attempt)
    except DBAPIError as error:
        if code(error) in FORBIDDEN:
            user, _, host = str(connection.scalar(text("SELECT current_user()"))).rpartition("@")
            grant = f"GRANT SELECT, UPDATE ON {name} TO '{user}'@'{host}'"
            return f"the user {user} may not {right} {name}: {grant}"
        if code(error) not in UNKNOWN:  # which a later check reports
            raise
    return None


def told(error: Exception) -> StoreError | None:
    """Return the message for PyMySQL's own error, None for any other."""
    if isinstance(error, RuntimeError) and "cryptography" in str(error):
        return StoreError(
            f"this server's way to ask for a password needs the package cryptography: {INSTALL}"
        )
    if isinstance(error, OSError):
        return StoreError(
            f"no connection can be made ({error.strerror or error}): are the files of ssl_ca, ssl_cert and"
            " ssl_key what they should be?"
        )
    return None
