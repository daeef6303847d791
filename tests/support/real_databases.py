"""The database that tests run on: a SQLite file or, with `--database postgresql`, a throw-away server.

A test names its database by a path. On SQLite that is the file; on PostgreSQL the path stands for a schema of
its own, which `url_at` makes. `query` and the others reach a database past all of syncd's own code.
"""

import contextlib
import hashlib
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL, make_url

KINDS = ("sqlite", "postgresql")
START_S = 30.0
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "lc_messages": "C",
}
"""Quick, and gone after the tests."""
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
Rows = list[tuple[Any, ...]]


class Server:
    """A PostgreSQL server in a folder of its own, on a Unix socket there; it ends with this process."""

    def __init__(self, password: str = "", *, port: int | None = None) -> None:
        """Start it. With a password it asks for that, without one it trusts everybody.

        With a port its URLs lead there, on loopback, for programs that know no sockets.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="sy-pg-", dir="/tmp"))
        self._data = self.folder / "data"
        self._password = password
        self._port = port
        self._numbers = itertools.count(1)
        self._as = ["setpriv", "--pdeathsig", "QUIT"]
        if os.geteuid() == 0:  # the programs refuse root
            self._as += ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
            shutil.chown(self.folder, "postgres")
        try:
            self._initialize()
            self.start()
        except BaseException:
            self.close()
            raise

    def _initialize(self) -> None:
        secret = self.folder / "password"
        secret.write_text(f"{self._password or 'none'}\n")
        auth = "scram-sha-256" if self._password else "trust"
        self._run(
            *("initdb", "-D", self._data, "-U", "tester", "-A", auth, f"--pwfile={secret}"),
            *("-E", "UTF8", "--locale=C", "--no-sync"),
        )

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [*self._as, str(programs() / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def start(self) -> None:
        """Start the server that was stopped; return when it takes connections."""
        settings = SETTINGS | {"unix_socket_directories": str(self.folder), "listen_addresses": ""}
        if self._port:
            settings |= {"listen_addresses": "127.0.0.1", "port": str(self._port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._as, str(programs() / "postgres"), "-D", str(self._data), *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for pytest, which then ends it
            )
        self._await()

    def _await(self) -> None:
        from psycopg import OperationalError

        deadline = time.monotonic() + START_S
        while True:
            try:
                query(self.url("postgres"), "SELECT 1")
            except OperationalError as error:
                is_late = time.monotonic() > deadline or self.process.poll() is not None
                if is_late or "authentication" in str(error):
                    raise
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End the server at once, as a crash does."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(START_S)

    def close(self) -> None:
        """End the server and remove all of it."""
        if hasattr(self, "process"):
            self.stop()
        shutil.rmtree(self.folder)

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        if self._port:
            password = self._password or "none"
            url = URL.create("postgresql+psycopg", "tester", password, "127.0.0.1", self._port, database)
            return url.render_as_string(hide_password=False)
        url = URL.create("postgresql+psycopg", "tester", self._password or None, database=database)
        return url.set(query={"host": str(self.folder)}).render_as_string(hide_password=False)

    def new(self) -> str:
        """Make a database; return its URL."""
        database = f"mirror_{next(self._numbers)}"
        query(self.url("postgres"), f"CREATE DATABASE {database}")
        return self.url(database)


def programs() -> Path:
    """Return the folder with PostgreSQL's server programs; FileNotFoundError where they are not installed."""
    beside = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    found = [Path(beside).resolve()] if beside else versions
    if not found or not shutil.which("setpriv"):
        raise FileNotFoundError("no PostgreSQL server programs here: apt-get install postgresql")
    return found[-1].parent


class _Chosen:
    """What the whole session runs on."""

    kind = "sqlite"
    server: Server | None = None
    url = ""


def choose(kind: str) -> None:
    """Have the session run on this kind of database; ImportError or FileNotFoundError where it cannot."""
    _Chosen.kind = kind
    if kind == "postgresql":
        import psycopg  # noqa: F401

        programs()


def kind() -> str:
    """Return what the session runs on, one of KINDS."""
    return _Chosen.kind


def is_postgresql() -> bool:
    """Return whether that is PostgreSQL."""
    return _Chosen.kind == "postgresql"


def close() -> None:
    """End the session's server, if it has one."""
    server, _Chosen.server = _Chosen.server, None
    if server:
        server.close()


def url_at(path: Path) -> str:
    """Return the URL of the database that this path stands for; on PostgreSQL it is there from now on."""
    if not is_postgresql():
        return f"sqlite:///{path}"
    if _Chosen.server is None:
        _Chosen.server = Server()
        _Chosen.url = _Chosen.server.new()
    schema = "s" + hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    query(_Chosen.url, f"CREATE SCHEMA IF NOT EXISTS {schema}")
    return f"{_Chosen.url}&options=-csearch_path%3D{schema}"


def query(url: str, statement: str, *values: object) -> Rows:
    """Return what a statement finds, with values for its question marks.

    Instants and JSON are given as SQLite holds them, as text.
    """
    with connected(url) as connection:
        if isinstance(connection, sqlite3.Connection):
            with connection:
                return connection.execute(statement, values).fetchall()
        if url.startswith("mysql"):
            with connection.cursor() as found:
                found.execute(statement.replace("?", "%s"), values or None)
                return list(found.fetchall())
        cursor = connection.execute(statement.replace("?", "%s") if values else statement, values or None)
        return [] if cursor.description is None else [tuple(map(as_on_sqlite, row)) for row in cursor]


@contextlib.contextmanager
def connected(url: str) -> Iterator[Any]:
    """Give a connection of the driver's own, on which nothing is begun by itself."""
    if url.startswith("sqlite"):
        with contextlib.closing(
            sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        ) as file:
            yield file
        return
    if url.startswith("mysql"):
        with _mysql(url) as connection:
            yield connection
        return
    import psycopg
    from psycopg.types.json import set_json_loads

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        set_json_loads(lambda text: msgspec.json.format(_decoded(text), indent=-1), connection)
        connection.execute("SET timezone = 'UTC'")
        yield connection


@contextlib.contextmanager
def _mysql(url: str) -> Iterator[Any]:
    """Give a connection of PyMySQL's, which takes names in double quotes as the others do."""
    import pymysql

    made = make_url(url)
    with contextlib.closing(
        pymysql.connect(
            user=made.username,
            database=made.database,
            unix_socket=str(made.query["unix_socket"]),
            autocommit=True,
            init_command="SET sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES', time_zone = '+00:00'",
        )
    ) as connection:
        yield connection


def _decoded(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode()


def as_on_sqlite(value: object) -> object:
    """Return an instant as the text that SQLite holds, anything else as it is."""
    return value.replace(tzinfo=None).isoformat(" ", "microseconds") if isinstance(value, datetime) else value


@contextlib.contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep everybody else from writing, as another program's long transaction does."""
    with connected(url) as connection:
        if is_postgresql():
            names = ", ".join(name for (name,) in connection.execute(TABLES))
            connection.execute(f"BEGIN; LOCK TABLE {names} IN EXCLUSIVE MODE")
        else:
            connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def refuse(url: str, *statements: str) -> None:
    """Make the database refuse what is written so: `UPDATE ON billetweb_tickets`."""
    for statement in statements:
        # A path that is none, and a right, are no word about the value that is written, as RAISE would be.
        forbidden = "RAISE insufficient_privilege USING MESSAGE = 'refused'"
        _meet(url, statement, "SELECT json_extract('{}', 'refused')", forbidden)


def stall(url: str, statement: str) -> None:
    """Make the database take minutes for what is written so."""
    n = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT i FROM n)"
    forever = f"SELECT count(*) FROM {n} AS a, {n} AS b, {n} AS c WHERE a.i + b.i + c.i = -1"
    _meet(url, statement, forever, "PERFORM pg_sleep(600)")


@contextlib.contextmanager
def held_up(words: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold up each statement of syncd's with these words; give what tells of it, and what lets it go on."""
    begun, go_on = threading.Event(), threading.Event()

    def hold_up(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if words in statement:
            begun.set()
            assert go_on.wait(30)

    event.listen(Engine, "before_cursor_execute", hold_up)
    try:
        yield begun, go_on
    finally:
        go_on.set()
        event.remove(Engine, "before_cursor_execute", hold_up)


def _meet(url: str, statement: str, on_sqlite: str, on_postgresql: str) -> None:
    name = _trigger(statement)
    does = f"BEGIN {on_sqlite}; END"
    if is_postgresql():
        does = f"FOR EACH ROW EXECUTE FUNCTION {name}()"
        body = f"$$ BEGIN {on_postgresql}; RETURN NULL; END $$"
        query(url, f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS {body}")
    query(url, f"CREATE TRIGGER {name} BEFORE {statement} {does}")


def allow(url: str, *statements: str) -> None:
    """Let it take again what it refused or stalled."""
    for statement in statements:
        on = statement.partition(" ON ")[2]
        query(url, f"DROP TRIGGER {_trigger(statement)}{f' ON {on}' if is_postgresql() else ''}")


def _trigger(statement: str) -> str:
    return "on_" + hashlib.sha256(statement.encode()).hexdigest()[:8]
