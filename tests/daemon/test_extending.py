"""More time for a start or a stop, from systemd: asked for during a transaction that writes, then only."""

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, text
from support.processes import PATIENCE_S, DaemonProcess, Tables, eventually
from support.real_databases import allow, locked, query, stall, url_at

from syncd.database import state
from syncd.database.engine import Database
from syncd.errors import StoreError
from syncd.standin.server import StandIn

pytestmark = pytest.mark.slow("each waits for a slow start or stop")
NO_RUN: Tables = {"sync": {"run_on_start": False}}
EXTEND = "EXTEND_TIMEOUT_USEC=10000000"
_MORTAL = """
import asyncio, signal, sys, syncd.cli.main, syncd.account.schedule

start = syncd.account.schedule.Schedule.start

def mortal(self, *of):
    start(self, *of)
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(self.task.cancel))

syncd.account.schedule.Schedule.start = mortal
sys.exit(syncd.cli.main.main())
"""
MORTAL = [sys.executable, "-c", _MORTAL]
"""The daemon, whose ticker a signal kills."""


@pytest.fixture
def database(tmp_path: Path, database_kind: str) -> Iterator[Database]:
    database = Database(url_at(tmp_path / "mirror.db"))
    database.open()
    yield database
    database.close()


def noted_at_each(database: Database, moment: str) -> list[bool]:
    """Return a list to which each commit, or rollback, adds whether a transaction that writes counted."""
    assert database._held
    seen: list[bool] = []
    event.listen(database._held.writer, moment, lambda _: seen.append(database.is_writing))
    return seen


# --- the database


def test_commit_is_cut_short(database: Database) -> None:
    """A transaction that writes counts from its first statement until its commit is done."""
    seen = noted_at_each(database, "commit")
    assert not database.is_writing
    with database.begin(write=True) as connection:
        assert database.is_writing
        connection.execute(text("CREATE TABLE t (i integer)"))
        assert database.is_writing
        assert seen == []
    assert seen == [True]
    assert not database.is_writing
    asyncio.run(database.write(state.put, state.PAUSED, True))
    assert seen == [True, True]
    assert not database.is_writing


@pytest.mark.parametrize("trouble", ["statement", "value", "bug"])
def test_failed_transaction_is_never_over(database: Database, trouble: str) -> None:
    """A rollback ends a transaction too, whatever it was for; it counts as long as that takes."""
    seen = noted_at_each(database, "rollback")

    def fail(connection: Connection) -> None:
        if trouble == "bug":
            raise ZeroDivisionError
        value = 2**70 if trouble == "value" else 1
        connection.execute(text("INSERT INTO nowhere VALUES (:value)"), {"value": value})

    def write() -> None:
        with database.begin(write=True) as connection:
            if trouble == "value":
                connection.execute(text("CREATE TABLE nowhere (i integer)"))
            fail(connection)

    with pytest.raises(ZeroDivisionError if trouble == "bug" else StoreError):
        write()
    assert seen == [True]
    assert not database.is_writing


def test_reader_looks_like_writer(database: Database) -> None:
    """A transaction that reads does not count, and does not end one that writes in another thread."""
    seen: list[bool] = []

    def read() -> None:
        with database.begin() as connection:
            connection.execute(text("SELECT 1"))
            seen.append(database.is_writing)

    read()
    with database.begin(write=True):
        reader = threading.Thread(target=read)
        reader.start()
        reader.join()
        assert database.is_writing
    read()
    assert seen == [False, True, False]


# --- the daemon


def migrated(url: str) -> None:
    """Make the tables, so that no start has to."""
    database = Database(url)
    database.open()
    database.close()


def test_long_migration_is_cut_short(home: Path, base_url: str) -> None:
    """A migration asks for more time each second; a stop rolls it back in time, and begins nothing."""
    url = url_at(home / "syncd.db")
    query(url, "CREATE TABLE syncd_schema (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    stall(url, "INSERT ON syncd_schema")
    with DaemonProcess(home, base_url, awaits="EXTEND") as daemon:
        daemon.told("EXTEND")
        assert set(daemon.notified) == {EXTEND}
        daemon.process.terminate()
        daemon.told("STOPPING=1")
        assert daemon.process.wait(PATIENCE_S) == 0
    assert "stopping took too long" in daemon.log
    assert set(daemon.notified) == {EXTEND, "STOPPING=1"}
    assert " is up" not in daemon.log
    assert query(url, "SELECT * FROM syncd_schema") == []
    with pytest.raises(Exception, match="billetweb_events"):  # there is no such table
        query(url, "SELECT * FROM billetweb_events")
    allow(url, "INSERT ON syncd_schema")
    with DaemonProcess(home, base_url) as daemon:
        assert daemon.ran()["last_run"]["outcome"] == "ok"


@pytest.mark.sqlite_only("nothing but the lock of another syncd holds up an opening")
def test_stop_during_the_opening_starts_a_run(home: Path, base_url: str, standin: StandIn) -> None:
    """Stopped while it waits for another's lock, it asks for no time, comes not up and begins no run."""
    migrated(url_at(home / "syncd.db"))
    with locked(url_at(home / "syncd.db")), DaemonProcess(home, base_url, awaits="") as daemon:
        eventually(lambda: (home / "syncd.db.lock").read_text() == f"{daemon.pid}\n")
        daemon.process.terminate()
        assert daemon.process.wait(PATIENCE_S) == 0
        daemon.told("STOPPING=1")
    assert daemon.notified == ["STOPPING=1"]
    assert " is up" not in daemon.log
    assert standin.requests == []


@pytest.mark.sqlite_only("nothing but the lock of another syncd holds up an opening")
def test_reload_during_the_opening_is_ready_too_early(home: Path, base_url: str) -> None:
    """A SIGHUP that comes before it is up waits until then; systemd hears READY when that is true."""
    migrated(url_at(home / "syncd.db"))
    with locked(url_at(home / "syncd.db")), DaemonProcess(home, base_url, NO_RUN, awaits="") as daemon:
        eventually(lambda: (home / "syncd.db.lock").read_text() == f"{daemon.pid}\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.told("READY=1").startswith(
            "READY=1\nSTATUS=up, runs every 15 min; the database cannot be"
        )
        assert daemon.notified == daemon.notified[-1:]
        daemon.told("RELOADING=1")
        assert daemon.told("READY=1") == "READY=1"
    assert "the configuration was read again" in daemon.log
    assert "xception" not in daemon.log


def test_quick_start_asks_for_time(home: Path, base_url: str) -> None:
    """Neither a start without a migration to wait for nor the stop of an idle daemon asks for more time."""
    migrated(url_at(home / "syncd.db"))
    with DaemonProcess(home, base_url) as daemon:
        daemon.ran()
        assert daemon.stop() == 0
        with pytest.raises(AssertionError, match="no EXTEND"):
            daemon.told("EXTEND")
    assert [message for message in daemon.notified if "EXTEND" in message] == []


def in_a_long_transaction(daemon: DaemonProcess) -> None:
    """Bring a daemon to where it puts a run's end on record, which takes minutes."""
    eventually(lambda: query(daemon.database, "SELECT name FROM syncd_state"))  # as its start does
    stall(daemon.database, "INSERT ON syncd_state")
    daemon.ask("POST", "/v1/runs", {})
    eventually(lambda: b'"state":"done"' in daemon.ask("GET", "/v1/runs/1")[1])


def test_commit_of_a_stop_is_cut_short(home: Path, base_url: str) -> None:
    """A stop while a transaction is under way asks for more time, as long as it waits for its end."""
    with DaemonProcess(home, base_url, NO_RUN) as daemon:
        in_a_long_transaction(daemon)
        daemon.process.terminate()
        daemon.told("STOPPING=1")
        for _ in range(2):
            assert daemon.told("EXTEND") == EXTEND
        assert daemon.process.wait(PATIENCE_S) == 0
    assert "ending at once: the database did not answer, its transaction is rolled back" in daemon.log


def test_death_of_a_part_looks_like_a_clean_stop(home: Path, base_url: str) -> None:
    """Where nothing can be waited for any longer it still ends with 1, so that systemd starts it again."""
    daemon = DaemonProcess(home, base_url, NO_RUN)
    daemon._program = MORTAL
    with daemon:
        in_a_long_transaction(daemon)
        daemon.process.send_signal(signal.SIGUSR1)
        assert daemon.process.wait(PATIENCE_S) == 1
    assert "the ticker died" in daemon.log
    assert "ending at once: the database did not answer" in daemon.log
