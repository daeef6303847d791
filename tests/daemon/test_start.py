"""The daemon's start while the database keeps it waiting: whoever asks is answered meanwhile."""

import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, DaemonProcess, eventually, syncd, write_config
from support.real_databases import locked

from syncd.daemon.signals import Signals
from syncd.database.engine import Database

pytestmark = pytest.mark.usefixtures("database_kind")
_WAITS = """
import sys, syncd.cli.main
from syncd.database import postgresql, sqlite
sqlite.BUSY_TIMEOUT_MS = 3600_000
postgresql.NEEDED["lock_timeout"] = "1h"
sys.exit(syncd.cli.main.main())
"""
WAITS = [sys.executable, "-c", _WAITS]
"""A syncd that waits for a locked database as long as that is locked."""


def test_a_late_signal_ends_the_process() -> None:
    """What comes behind the last line of a daemon that ends changes no exit code, and cuts nothing."""
    numbers = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT}
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        Signals(lambda _: None).close()
        assert {signal.getsignal(number) for number in numbers} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_anothers_signal_stops_the_daemon() -> None:
    """A signal that something else in the process handles comes by the same way, and is left to that."""
    numbers = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    before = {number: signal.getsignal(number) for number in numbers}
    heard = list[signal.Signals]()
    signals = Signals(heard.append)
    try:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        for number in (signal.SIGUSR1, signal.SIGHUP):
            signal.raise_signal(number)
        eventually(lambda: signal.SIGHUP in heard)
    finally:
        signals.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGHUP]


@contextmanager
def starting(home: Path, base_url: str) -> Iterator[tuple[DaemonProcess, ExitStack]]:
    """Give a daemon as soon as it can be asked; its database is there, and locked until the stack closes."""
    daemon = DaemonProcess(home, base_url, awaits="")
    daemon._program = WAITS
    database = Database(daemon.database)
    database.open()
    database.close()
    with ExitStack() as lock:
        lock.enter_context(locked(daemon.database))
        with daemon:
            eventually(lambda: daemon.ctl("status").returncode == 0)
            yield daemon, lock


def test_start_on_locked_database_is_silent(home: Path, base_url: str) -> None:
    """Status, health, metrics and requests are answered before the database is open, and READY is told."""
    with starting(home, base_url) as (daemon, _):
        status = daemon.status()
        assert (status["run_count"], status["health"], status["state"]) == (0, "degraded", "idle")
        assert daemon.ask("GET", "/healthz")[0] == 503
        assert daemon.ask("GET", "/metrics")[0] == 200
        code, run = daemon.ask("POST", "/v1/runs", {})
        assert (code, json.loads(run)["state"]) == (202, "queued")
        assert daemon.ask("GET", f"/v1/runs/{json.loads(run)['id']}")[0] == 200
        assert "is up" not in daemon.log


@pytest.mark.slow("waits for the end of a stop")
def test_stop_waits_for_database_of_a_start(home: Path, base_url: str) -> None:
    """A stop is over in its time, and nobody finds the socket."""
    with starting(home, base_url) as (daemon, _):
        assert daemon.stop() == 0
        assert not daemon.socket.exists()


def test_what_was_asked_at_the_start_is_lost(home: Path, base_url: str) -> None:
    """A run and a reload that were asked for meanwhile come to their end once the database is free."""
    with starting(home, base_url) as (daemon, lock):
        run_id = json.loads(daemon.ask("POST", "/v1/runs", {"full": True})[1])["id"]
        with socket.socket(socket.AF_UNIX) as reload:
            reload.settimeout(PATIENCE_S)
            reload.connect(str(daemon.socket))
            reload.sendall(b"POST /v1/reload HTTP/1.0\r\n\r\n")
            for _ in range(3):  # whoever asked later has an answer: it was heard, and waits
                assert daemon.status()["state"] == "idle"
            lock.close()
            daemon.told("READY=1")
            assert b" 200 " in reload.recv(100)
        run = json.loads(daemon.ask("GET", f"/v1/runs/{run_id}?wait=60")[1])
        assert (run["outcome"], run["trigger"], run["full"]) == ("ok", "manual", True)
        assert daemon.stop() == 0


def test_second_daemon_answers_for_the_first(home: Path, base_url: str) -> None:
    """One that finds the database held exits with 75, and leaves no socket of its own."""
    other = home / "other"
    other.mkdir()
    with DaemonProcess(home, base_url) as daemon:
        tables = {"database": {"url": daemon.database}, "control": {"socket": f"{other}/syncd.sock"}}
        second = syncd("run", "--config", write_config(other, base_url, tables))
        assert second.returncode == 75
        assert "Traceback" not in second.stderr
        assert not (other / "syncd.sock").exists()
        assert daemon.status()["state"] in ("idle", "running")
