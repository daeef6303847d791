"""New, empty databases to fill: SQLite files, or those of a PostgreSQL server that is started for them."""

import itertools
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from real_databases import Server, query

NewDatabase = Callable[[], str]
"""Gives the URL of a new, empty database."""


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[tuple[str, NewDatabase]]:
    """Give the engine's name with its version, and a maker of databases; files are below the folder."""
    if kind == "sqlite":
        numbers = itertools.count(1)
        yield f"SQLite {sqlite3.sqlite_version}", lambda: f"sqlite:///{folder}/{next(numbers)}.db"
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with closing(Server(port=port)) as server:
        ((version,),) = query(server.url("postgres"), "SHOW server_version")
        yield f"PostgreSQL {version.split()[0]}", lambda: server.new().replace("+psycopg", "")
