"""PostgreSQL's side of the database: one connection that writes and holds the lock, a few that read.

psycopg is imported where a URL needs it, and not before: it is optional, and heavy.
"""

from typing import Any

from sqlalchemy import Connection, Dialect, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import URL, make_url

from syncd.errors import AlreadyRunning, ConfigError

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
"""What libpq is told, where the URL says nothing else: a server that is gone is noticed within a minute."""
SESSION = {
    "statement_timeout": "60s",
    "client_min_messages": "warning",
    # The server too notices within a minute that a syncd is gone, and lets its lock go.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
READING = {"default_transaction_read_only": "on", "default_transaction_isolation": r"repeatable\ read"}
LOCK = "hashtextextended('syncd in ' || coalesce(current_schema(), ''), 0)"
"""The advisory lock's number: one mirror in each schema."""
HOLDER = f"""
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) | objid::bigint = {LOCK}
"""  # noqa: S608 - a constant
NEEDED = "psycopg and libpq: pip install 'psycopg[binary]', or with the Debian package apt-get install libpq5"
LOCK_NOT_AVAILABLE = "55P03"
NOTICE_CLIENT_GONE = """
SELECT set_config(name, '5s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'
"""
"""Without it the server would finish a long statement, and hold the lock, for a syncd that is gone. Before
PostgreSQL 14 there is no such setting."""


class Postgresql:
    """A database on a server.

    Whatever is written goes through the one connection that holds the lock. So a transaction of a syncd that
    lost the lock cannot be committed: the server ended its connection. The pool connects anew where that
    happened, which takes the lock again.
    """

    def __init__(self, url: str) -> None:
        """Prepare both pools; nothing is connected yet. ConfigError where psycopg is missing."""
        self.name = f"the database {make_url(url).render_as_string(hide_password=True)}"
        # One transaction writes at a time. Of what reads, a run takes one, status and syncctl two; two
        # more for a moment. A connection costs the server some MiB and there are a hundred by default.
        self.writer = _engine(url, pool_size=1, max_overflow=0, pool_timeout=LOCK_TIMEOUT_S)
        self.reader = _engine(url, READING, pool_size=3, max_overflow=2, pool_timeout=5)
        event.listen(self.writer, "do_connect", self._connect)

    def _connect(self, dialect: Dialect, _record: object, args: list[Any], parameters: dict[str, Any]) -> Any:
        connection = dialect.connect(*args, **parameters)
        try:
            self._hold(dialect, connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _hold(self, dialect: Dialect, connection: Any) -> None:
        try:
            connection.execute(NOTICE_CLIENT_GONE)
            connection.execute(f"SELECT pg_advisory_lock({LOCK})")
        except dialect.loaded_dbapi.Error as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE:
                raise
            connection.rollback()
            holder = connection.execute(HOLDER).fetchone()
            by = f"server process {holder[0]}" if holder else "just gone"
            raise AlreadyRunning(f"another syncd ({by}) holds {self.name}") from None
        connection.commit()

    def opened(self, *, migrated: bool) -> None:
        """Do nothing: the server looks after its statistics itself."""

    def displacement(self) -> None:
        """Return None: a connection ends with its database."""

    def checkpoint(self) -> bool:
        """Leave it to the server, whose vacuum overwrites what was erased."""
        return True

    def close(self) -> None:
        """Close every connection, and with the one that writes the lock is let go."""
        self.reader.dispose()
        self.writer.dispose()


def engine(url: str) -> Engine:
    """Return an engine that reads, and keeps no connection."""
    return _engine(url, READING, poolclass=NullPool)


def obstacle(connection: Connection, revision: str | None) -> str | None:
    """Return why syncd cannot use a database with the schema at that revision."""
    encoding, schema_name = connection.execute(
        text("SELECT current_setting('server_encoding'), current_schema()")
    ).one()
    if encoding != "UTF8":
        return f"the database is encoded in {encoding}; syncd needs one in UTF8"
    if schema_name is None:
        return "there is no schema to create tables in"
    user, may_create, may_stage = connection.execute(
        text(
            "SELECT current_user, has_schema_privilege(current_schema(), 'CREATE'),"
            " has_database_privilege(current_database(), 'TEMPORARY')"
        )
    ).one()
    if revision is None and not may_create:
        return f"the user {user} may not create tables in the schema {schema_name}"
    return None if may_stage else f"the user {user} lacks the right TEMPORARY on the database"


def _engine(url: str, session: dict[str, str] | None = None, **pool: Any) -> Engine:
    try:
        return create_engine(
            _completed(make_url(url), {**SESSION, "lock_timeout": f"{LOCK_TIMEOUT_S}s", **(session or {})}),
            hide_parameters=True,
            use_native_hstore=False,
            pool_pre_ping=True,
            **pool,
        )
    except ImportError as error:
        raise ConfigError(
            [f"database.url: PostgreSQL needs {NEEDED} ({str(error).splitlines()[0]})"]
        ) from None


def _completed(url: URL, session: dict[str, str]) -> URL:
    """Return the URL with all that it leaves open; what it says itself counts, but for the time zone."""
    ours = [f"-c {name}={value}" for name, value in session.items()]
    theirs = url.normalized_query.get("options", ())
    options = " ".join([*ours, *theirs, "-c timezone=UTC"])
    return url.set(drivername="postgresql+psycopg", query={**CONNECTION, **url.query, "options": options})
