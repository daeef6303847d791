"""More time for a start or a stop, from systemd: asked for during a transaction that writes, then only."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from processes import DaemonProcess, Tables, eventually, locked
from sqlalchemy import Connection, event, text

from syncd.database import Database
from syncd.errors import StoreError
from syncd.store import Store

NO_RUN: Tables = {"sync": {"run_on_start": False}}
EXTEND = "EXTEND_TIMEOUT_USEC=10000000"
SLOW_RECORD = """
CREATE TABLE many AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
    SELECT i FROM n;
CREATE TRIGGER slow AFTER DELETE ON syncd_runs BEGIN
    SELECT count(*) FROM many AS a, many AS b, many AS c WHERE a.i + b.i + c.i = -1;
END;
"""
"""Makes the transaction that puts a run's end on record take minutes."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(Database(f"sqlite:///{tmp_path}/mirror.db"))
    yield store
    store.close()


# --- the store


def test_commit_is_cut_short(store: Store) -> None:
    """A transaction that writes counts from its first statement until its commit is done."""
    seen: list[bool] = []
    event.listen(store._database.engine, "commit", lambda _: seen.append(store.is_writing))
    assert not store.is_writing
    with store._transaction(write=True) as connection:
        assert store.is_writing
        connection.execute(text("CREATE TABLE t (i)"))
        assert store.is_writing
        assert seen == []
    assert seen == [True]
    assert not store.is_writing
    store.set_paused(True)
    assert seen == [True, True]
    assert not store.is_writing


@pytest.mark.parametrize("trouble", ["statement", "value", "bug"])
def test_failed_transaction_is_never_over(store: Store, trouble: str) -> None:
    """A rollback ends a transaction too, whatever it was for; it counts as long as that takes."""
    seen: list[bool] = []
    event.listen(store._database.engine, "rollback", lambda _: seen.append(store.is_writing))

    def fail(connection: Connection) -> None:
        if trouble == "bug":
            raise ZeroDivisionError
        value = 2**70 if trouble == "value" else 1
        connection.execute(text("INSERT INTO nowhere VALUES (:value)"), {"value": value})

    def write() -> None:
        with store._transaction(write=True) as connection:
            if trouble == "value":
                connection.execute(text("CREATE TABLE nowhere (i)"))
            fail(connection)

    with pytest.raises(ZeroDivisionError if trouble == "bug" else StoreError):
        write()
    assert seen == [True]
    assert not store.is_writing


def test_reader_looks_like_writer(store: Store) -> None:
    """A transaction that reads does not count, and does not end one that writes in another thread."""
    seen: list[bool] = []

    def read() -> None:
        with store._transaction() as connection:
            connection.execute(text("SELECT 1"))
            seen.append(store.is_writing)

    read()
    with store._transaction(write=True):
        reader = threading.Thread(target=read)
        reader.start()
        reader.join()
        assert store.is_writing
    read()
    assert seen == [False, True, False]


# --- the daemon


def test_long_migration_is_cut_short(home: Path, base_url: str) -> None:
    """A start that waits for the database asks for more time, each second, until it is ready."""
    with closing(sqlite3.connect(home / "syncd.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with locked(home / "syncd.db"):
        daemon = DaemonProcess(home, base_url, NO_RUN, awaits="EXTEND")
        daemon.__enter__()
    try:
        assert daemon.notified == [EXTEND]
        daemon.told("READY=1")
        assert set(daemon.notified[:-1]) == {EXTEND}
        count = len(daemon.notified)
        assert "ERROR" not in daemon.log
        daemon.process.terminate()
        daemon.told("STOPPING=1")
        assert daemon.process.wait(5) == 0
        assert len(daemon.notified) == count + 1, "nothing is asked for once it is up"
    finally:
        daemon.__exit__(None, None, None)


def test_quick_start_asks_for_time(home: Path, base_url: str) -> None:
    """Neither a start without a migration to wait for nor the stop of an idle daemon asks for more time."""
    with DaemonProcess(home, base_url) as daemon:
        daemon.ran()
        assert daemon.stop() == 0
        with pytest.raises(AssertionError, match="no EXTEND"):
            daemon.told("EXTEND")


def test_commit_of_a_stop_is_cut_short(home: Path, base_url: str) -> None:
    """A stop while a transaction is under way asks for more time, as long as it waits for its end."""
    with DaemonProcess(home, base_url, NO_RUN) as daemon:
        with closing(sqlite3.connect(daemon.database)) as connection:
            connection.executescript(SLOW_RECORD)
        daemon.ask("POST", "/v1/runs", {})
        eventually(lambda: b'"state":"done"' in daemon.ask("GET", "/v1/runs/1")[1])
        daemon.process.terminate()
        daemon.told("STOPPING=1")
        for _ in range(2):
            assert daemon.told("EXTEND") == EXTEND
        assert daemon.process.wait(5) == 0
    assert "ending at once: the database did not answer, its transaction is rolled back" in daemon.log
