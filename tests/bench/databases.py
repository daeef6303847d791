"""New, empty databases to fill: SQLite files, or those of a PostgreSQL server that is started for them.

One at a time: a new one takes the place of the one before, for dozens of large ones would fill a disk.
"""

import itertools
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.real_databases import Server, query

NewDatabase = Callable[[], str]
"""Gives the URL of a new, empty database; the one before it is gone then."""


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[tuple[str, NewDatabase]]:
    """Give the engine's name with its version, and a maker of databases; files are below the folder."""
    if kind == "sqlite":
        numbers = itertools.count(1)

        def new_file() -> str:
            for file in folder.glob("*.db*"):
                file.unlink()
            return f"sqlite:///{folder}/{next(numbers)}.db"

        yield f"SQLite {sqlite3.sqlite_version}", new_file
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with closing(Server(port=port)) as server:
        everywhere = server.url("postgres")
        ((version,),) = query(everywhere, "SHOW server_version")

        def new_database() -> str:
            for (name,) in query(everywhere, "SELECT datname FROM pg_database WHERE datname LIKE 'mirror%'"):
                query(everywhere, f"DROP DATABASE {name} WITH (FORCE)")
            return server.new().replace("+psycopg", "")

        yield f"PostgreSQL {version.split()[0]}", new_database
