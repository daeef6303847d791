"""PostgreSQL's side of the database: one connection that writes and holds the lock, a few that read.

A pooler may refuse or ignore a session's start parameters, and roles and databases have their own settings.
So syncd sets what it needs by statements, and checks it afterwards.
psycopg is imported only if a URL needs it: it is optional, and heavy.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from loguru import logger
from sqlalchemy import Connection, Dialect, Engine, ExceptionContext, NullPool, create_engine, event, text
from sqlalchemy.engine import URL, make_url

from syncd import typed
from syncd.database import state
from syncd.errors import AlreadyRunning, ConfigError, StoreError

LOCK_TIMEOUT_S = 3
"""How long a statement waits for another program's lock: less than a stop may take."""
CONNECTION = {
    "application_name": "syncd",
    "client_encoding": "utf8",
    "connect_timeout": "5",
    "keepalives_idle": "30",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
"""libpq's parameters, unless the URL sets others: a lost server is noticed within a minute."""
SESSION = {
    "statement_timeout": "60s",
    "client_min_messages": "warning",
    # The server too notices within a minute that a syncd is gone, and releases its lock.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""Settings of a session, unless `options` in the URL set others."""
NEEDED = {
    "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    "client_encoding": "UTF8",
    "timezone": "UTC",
    "datestyle": "ISO",  # psycopg reads instants in no other
    "extra_float_digits": "3",  # every digit, also before PostgreSQL 12
    "standard_conforming_strings": "on",
}
"""Settings of a session, whatever the URL says: otherwise other values would be written and read."""
READING = {"default_transaction_read_only": "on", "default_transaction_isolation": "repeatable read"}
WRITING = {"default_transaction_isolation": "read committed"}
UNUSABLE = re.compile("25006|57P0.|08...")
"""Errors after which a connection is unusable: the server has become read-only, or ends it."""
POOLED = (
    "a pooler in transaction mode is in between: each transaction would get another session, without syncd's"
    " settings and its lock; set pool_mode = session for this database, or connect to the server itself"
)
LOCK = "hashtextextended('syncd in ' || coalesce(current_schema(), ''), 0)"
"""The advisory lock's number: one mirror in each schema."""
HOLDER = f"""
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) | objid::bigint = {LOCK}
"""  # noqa: S608 - a constant
NOTED_HOLDER = "SELECT value FROM syncd_state WHERE name = %s"
INSTALL = (
    f"psycopg and libpq: {sys.executable} -m pip install --upgrade 'psycopg[binary]',"
    " or with the Debian package apt-get install libpq5"
)
LOCK_NOT_AVAILABLE = "55P03"
NOTICE_CLIENT_GONE = """
SELECT set_config(name, '5s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'
"""
"""Otherwise the server would finish a long statement, and keep the lock, for a syncd that is gone. PostgreSQL
before 14 has no such setting."""


class Postgresql:
    """A database on a server.

    All writes go through the one connection that holds the lock. So a syncd that lost the lock cannot commit:
    the server ended its connection. The pool then reconnects, which takes the lock again, and sees whether
    another syncd had it meanwhile: what this one has read is then out of date.
    """

    def __init__(self, url: str, name: str) -> None:
        """Prepare both pools, without connecting. Raises ConfigError if psycopg is missing.

        `name` is the URL in the form that may be shown.
        """
        self.name = f"the database {name}"
        self._schema: str | None = None
        self._token = ""  # what tells that it is this one that holds the database, once noted there
        self._was_taken = False
        self._holder: int | None = None  # the server's process that took the lock for this syncd last
        # One transaction writes at a time. For reads, a run takes one connection, status and syncctl two;
        # two more are for peaks. Each costs the server some MiB, and by default it allows a hundred.
        self.writer = _engine(
            url, WRITING, self._hold, writes=True, pool_size=1, max_overflow=0, pool_timeout=LOCK_TIMEOUT_S
        )
        self.reader = _engine(url, READING, self._agree, pool_size=3, max_overflow=2, pool_timeout=5)
        # If the writing connection became unusable, the server may be another one now.
        event.listen(self.writer, "invalidate", lambda *_: self.reader.dispose())

    def _agree(self, _dialect: Dialect, connection: Any) -> None:
        """Refuse a session in another schema than the first one: a role's search_path may change."""
        (schema,) = connection.execute("SELECT current_schema()").fetchone()
        connection.commit()
        self._schema = self._schema or schema
        if schema != self._schema:
            raise StoreError(
                f"search_path leads to the schema {schema} now, and not to {self._schema} any more"
            )

    def _hold(self, dialect: Dialect, connection: Any) -> None:
        self._agree(dialect, connection)
        (encoding,) = connection.execute("SELECT current_setting('server_encoding')").fetchone()
        if encoding != "UTF8":
            logger.bind(event="database.encoding").warning(
                "{} is encoded in {}: what that cannot hold, an emoji in a name say, is refused; syncd needs"
                " one in UTF8",
                self.name,
                encoding,
            )
        # Noted before: the answer to the lock may be what is lost.
        former, self._holder = self._holder, _process_id(connection)
        try:
            connection.execute(NOTICE_CLIENT_GONE)
            connection.execute(f"SELECT pg_advisory_lock({LOCK})")
        except dialect.loaded_dbapi.Error as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE:
                raise
            connection.rollback()
            self._holder = former
            holder = connection.execute(HOLDER).fetchone()
            by = f"server process {holder[0]}" if holder else "just gone"
            if holder and holder[0] == former:
                raise StoreError(
                    f"the server still holds {self.name} for this syncd's former connection ({by})"
                ) from None
            raise AlreadyRunning(f"another syncd ({by}) holds {self.name}") from None
        connection.commit()
        if self._token and not self._was_taken:
            self._was_taken = self._is_another_s(dialect, connection)

    def _is_another_s(self, dialect: Dialect, connection: Any) -> bool:
        try:
            found = connection.execute(NOTED_HOLDER, [state.HOLDER]).fetchone()
        except dialect.loaded_dbapi.errors.UndefinedTable:  # who reads the tables next finds out
            found = None
        connection.rollback()
        return found is not None and found[0] != self._token

    def opened(self) -> None:
        """Note which syncd holds the database."""
        token = uuid4().hex
        with self.writer.begin() as connection:
            state.put(connection, state.HOLDER, token)
        self._token = token

    def displacement(self) -> str | None:
        """Return that another syncd held the database meanwhile, once a connection has shown it; or None."""
        return f"another syncd held {self.name} while this one was cut off" if self._was_taken else None

    def checkpoint(self) -> bool:
        """Do nothing: the server's vacuum overwrites what was erased."""
        return True

    def close(self) -> None:
        """Close every connection; closing the writing one releases the lock."""
        self.reader.dispose()
        self.writer.dispose()


def engine(url: str, *, lock_timeout_s: int | None = None) -> Engine:
    """Return an engine that keeps no connection, and refuses a database that syncd could not write.

    It writes if a time to wait for a lock is given, and otherwise only reads.
    """
    session = READING if lock_timeout_s is None else WRITING | {"lock_timeout": f"{lock_timeout_s}s"}
    return _engine(url, session, writes=True, poolclass=NullPool)


def take_your_time(connection: Connection) -> None:
    """Let the statements of this transaction take as long as they need, at the server and here.

    On SQLite they do anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        held: Any = connection.connection.dbapi_connection
        held.is_unhurried = True


def advice(told: str) -> str:
    """Return what to do if a server refuses the role, "" for any other error.

    On its socket it usually accepts only the role named like the user ("peer" in PostgreSQL's manual).
    """
    if not re.search(r'Peer authentication failed|role "[^"]*" does not exist', told):
        return ""
    if os.geteuid() == 0:
        return "; this was asked as root: the service asks as its own user, and may be let in"
    if not (user := typed.user()):
        return ""
    return (
        f'; by its socket it lets in the role that is named as this user: `createuser {user}` makes "{user}"'
    )


def obstacle(connection: Connection, revision: str | None) -> str | None:
    """Return why syncd cannot use a database with the schema at that revision."""
    encoding, schema_name, user, may_create, may_stage = connection.execute(
        text(
            "SELECT current_setting('server_encoding'), current_schema(), current_user,"
            " has_schema_privilege(current_schema(), 'CREATE'),"
            " has_database_privilege(current_database(), 'TEMPORARY')"
        )
    ).one()
    if encoding != "UTF8":
        return f"the database is encoded in {encoding}; syncd needs one in UTF8"
    if schema_name is None:
        return "there is no schema to create tables in"
    if revision is None and not may_create:
        return f"the user {user} may not create tables in the schema {schema_name}"
    return None if may_stage else f"the user {user} lacks the right TEMPORARY on the database"


def refuse_elsewhere(connection: Connection, table: str) -> None:
    """Raise StoreError if a table is not in the first schema of search_path but in a later one."""
    elsewhere, here = connection.execute(
        text(
            "SELECT (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass(:table)),"
            " quote_ident(current_schema())"
        ),
        {"table": table},
    ).one()
    if elsewhere:
        raise StoreError(
            f"search_path begins with {here}, and syncd's tables are in {elsewhere}: let it begin with"
            f" {elsewhere} to go on with them, or leave {elsewhere} out to begin anew in {here}"
        )


def _engine(
    url: str,
    session: Mapping[str, str],
    prepare: Callable[[Dialect, Any], None] = lambda *_: None,
    *,
    writes: bool = False,
    **pool: Any,
) -> Engine:
    """Return an engine whose sessions are set and checked before use; `prepare` comes last."""
    address, asked = _taken_apart(make_url(url))
    try:
        from syncd.database.patience import PatientConnection  # noqa: PLC0415 - it needs psycopg

        made = create_engine(
            address, hide_parameters=True, use_native_hstore=False, pool_pre_ping=True, **pool
        )
    except ImportError as error:
        raise ConfigError([f"PostgreSQL needs {INSTALL} ({str(error).splitlines()[0]})"]) from None

    @event.listens_for(made, "do_connect")
    def connect(dialect: Dialect, _record: object, args: list[Any], parameters: dict[str, Any]) -> Any:
        """Return a connection with its settings made and checked; see `_prove` for what is refused."""
        connection = PatientConnection.connect(*args, **parameters)
        try:
            if writes:
                _refuse_pooler(connection, lambda: PatientConnection.connect(*args, **parameters))
            _set(connection, {**SESSION, **asked, **NEEDED})
            connection.limit()
            quote = dialect.identifier_preparer.quote
            _prove(connection, asked.get("search_path"), quote, writes=writes)
            _set(connection, session)
            prepare(dialect, connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @event.listens_for(made, "handle_error")
    def drop(context: ExceptionContext) -> None:
        if UNUSABLE.fullmatch(getattr(context.original_exception, "sqlstate", None) or ""):
            context.is_disconnect = True

    return made


def _taken_apart(url: URL) -> tuple[URL, dict[str, str]]:
    """Return the URL with libpq's parameters, and the settings among its `options`, which statements set.

    A pooler would refuse or ignore them there. Other options stay in the URL.
    """
    asked: dict[str, str] = {}
    rest: list[str] = []
    words = iter(re.findall(r"(?:\\.|[^\s\\])+", " ".join(url.normalized_query.get("options", ()))))
    for word in words:
        setting = next(words, "") if word == "-c" else word.removeprefix("--").removeprefix("-c")
        name, is_one, value = setting.partition("=")
        if is_one and word.startswith(("-c", "--")):
            asked[name.replace("-", "_").lower()] = re.sub(r"\\(.)", r"\1", value)
        else:
            rest.append(word)
    # Empty, not left out: libpq would use $PGOPTIONS.
    query = {**CONNECTION, **url.query, "options": " ".join(rest)}
    return url.set(drivername="postgresql+psycopg", query=query), asked


def _refuse_pooler(connection: Any, connect: Callable[[], Any]) -> None:
    """Raise StoreError if the transactions of one connection run in several sessions.

    A pooler reports a process id of its own. In session mode two connections have two sessions; in
    transaction mode the second gets the first one's, or takes it away.
    """
    session = _process_id(connection)
    connection.commit()
    if session == connection.info.backend_pid:
        return
    other = connect()
    try:
        # Its transaction stays open, so it keeps its session.
        is_shared = _process_id(other) == session
        if is_shared or _process_id(connection) != session:
            raise StoreError(POOLED)
        connection.commit()
    finally:
        other.close()


def _process_id(connection: Any) -> int:
    (process_id,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    return int(process_id)


def _set(connection: Any, settings: Mapping[str, str]) -> None:
    """Set a session; raise StoreError if the settings are not there in the next transaction."""
    words = [word for setting in settings.items() for word in setting]
    made = ", ".join(["set_config(%s, %s, false)"] * len(settings))
    wanted = connection.execute(f"SELECT {made}", words).fetchone()
    connection.commit()
    looked = ", ".join(["current_setting(%s)"] * len(settings))
    found = connection.execute(f"SELECT {looked}", [*settings]).fetchone()
    connection.commit()
    lost = [name for name, want, is_ in zip(settings, wanted, found, strict=True) if want != is_]
    if lost:
        raise StoreError(f"the session does not keep what it is set to ({', '.join(lost)}): {POOLED}")


def _prove(connection: Any, search_path: str | None, quote: Callable[[str], str], *, writes: bool) -> None:
    """Raise StoreError if syncd cannot use the session."""
    is_standby, read_only, user, schema = connection.execute(
        "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only'), current_user,"
        " current_schema()"
    ).fetchone()
    connection.commit()
    if is_standby:
        raise StoreError("the server is a standby, which takes no writes; the URL must lead to the primary")
    if writes and read_only == "on":
        raise StoreError(
            f"the database is read-only for the user {user} (default_transaction_read_only is on);"
            " set it off for this user, or find out why it was set: of a full disk, say"
        )
    if search_path:
        first = search_path.split(",")[0].strip()
        wanted = first.strip('"') if first.startswith('"') else first.lower()
        if wanted not in ("$user", schema):
            create = f"CREATE SCHEMA {quote(wanted)} AUTHORIZATION {quote(user)};"
            raise StoreError(
                f"the schema {wanted} of search_path is not there, or not for the user {user}: {create}"
            )
