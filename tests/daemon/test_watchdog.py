"""The watchdog: it pings while the daemon proves to work, and asks for its end, once, when it does not."""

import contextlib
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import LogLines
from support.processes import PATIENCE_S, DaemonProcess, eventually

from syncd.daemon.notify import Notifier
from syncd.daemon.watchdog import LATE_S, OVERRUN_S, Watchdog, interval_s
from syncd.database.postgresql import SESSION
from syncd.database.sqlite import BUSY_TIMEOUT_MS

EVERY_S = 1.0
LONG_S = 15.0
pytestmark = pytest.mark.sqlite_only("about whether a daemon answers and is on time")
MORE = pytest.mark.slow("each waits for seconds, and some are always tried")
OK = b"HTTP/1.1 200 OK\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
PING = b"WATCHDOG=1"
_BLOCKABLE = """
import signal, sys, time, syncd.cli.main
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(60))
sys.exit(syncd.cli.main.main())
"""
BLOCKABLE = [sys.executable, "-c", _BLOCKABLE]
"""A syncd whose main thread, that of its event loop, hangs at a signal."""


class Server(socketserver.ThreadingUnixStreamServer):
    """Answers on a Unix socket: with the first of `answers`, while more than one is left; never for None."""

    block_on_close = False
    daemon_threads = True

    def __init__(self, path: Path, *answers: bytes | None) -> None:
        super().__init__(str(path), Answer)
        self.answers = list(answers)
        self.asked: list[bytes] = []
        self.closing = threading.Event()


class Answer(socketserver.StreamRequestHandler):
    """One connection."""

    server: Server

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline())
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            self.server.closing.wait(LONG_S)
        else:
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(answer)


@contextlib.contextmanager
def serving(path: Path, *answers: bytes | None) -> Iterator[Server]:
    with Server(path, *answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def manager(home: Path) -> Iterator[socket.socket]:
    """Listen in the place of the service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(home / "notify"))
        found.settimeout(LONG_S)
        yield found


@contextlib.contextmanager
def watching(
    home: Path,
    *,
    alive: Callable[[], bool] = lambda: True,
    slot: Callable[[], float] = lambda: 0.0,
    run: Callable[[], float] = lambda: 0.0,
    is_inherited: bool = False,
) -> Iterator[Watchdog]:
    watchdog = Watchdog(
        Notifier(str(home / "notify")),
        EVERY_S,
        path=home / "s",
        is_inherited=is_inherited,
        schedule_is_alive=alive,
        slot_overdue_s=slot,
        run_overdue_s=run,
    )
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()
        watchdog.join(LONG_S)


def ended(watchdog: Watchdog, manager: socket.socket) -> list[bytes]:
    """Return what else the service manager was told by a watchdog that has ended by now or does so."""
    watchdog.join(LONG_S)
    assert not watchdog.is_alive()
    manager.setblocking(False)
    told = []
    with contextlib.suppress(BlockingIOError):
        while True:
            told.append(manager.recv(4096))
    return told


# --- while all is well


@pytest.mark.slow("waits for seconds")
def test_live_daemon_is_restarted(home: Path, manager: socket.socket, log_lines: LogLines) -> None:
    """Pings come at the interval, each after a real request; what is late within reason is no trouble."""
    with (
        serving(home / "s", OK) as server,
        watching(home, slot=lambda: LATE_S, run=lambda: OVERRUN_S) as watchdog,
    ):
        for count in range(1, 4):
            assert manager.recv(4096) == PING
            assert server.asked[-1] == b"GET /v1/status HTTP/1.0\r\n"
            assert len(server.asked) >= count
        assert watchdog.is_alive()
    assert log_lines.of("watchdog") == []


@pytest.mark.slow("each waits for seconds, and some are always tried")
def test_pings_flood_the_manager(home: Path, manager: socket.socket) -> None:
    """Neither the first ping nor one after it comes before the interval has passed."""
    began = time.monotonic()
    with serving(home / "s", OK), watching(home):
        for count in range(1, 4):
            assert manager.recv(4096) == PING
            assert time.monotonic() - began >= count * EVERY_S


# --- troubles

TROUBLES: dict[str, tuple[float, float, tuple[bytes | None, ...], str]] = {
    "dead": (0.0, 0.0, (OK,), "the scheduler is dead: nothing is set to wake it"),
    "slot": (LATE_S + 2.4, 0.0, (OK,), "the scheduler is dead: a scheduled run has been due for 12 s"),
    "run": (0.0, OVERRUN_S + 1, (OK,), "the run in progress hangs: its deadline passed 151 s ago"),
    "gone": (0.0, 0.0, (), "the control server does not answer: [Errno 2] No such file or directory"),
    "silent": (0.0, 0.0, (None,), "the control server does not answer: timed out"),
    "hangs up": (0.0, 0.0, (b"",), "the control server answers b''"),
    "unwell": (0.0, 0.0, (BUSY,), r"the control server answers b'HTTP/1.1 503 Service Unavailable\r\n'"),
}


@pytest.mark.parametrize(
    "trouble",
    [name if name in ("dead", "silent") else pytest.param(name, marks=MORE) for name in TROUBLES],
)
def test_hanging_daemon_is_fed(home: Path, manager: socket.socket, log_lines: LogLines, trouble: str) -> None:
    """Each lasting trouble is logged and told with its reason, once, and no ping comes before or after it."""
    slot_s, run_s, answers, reason = TROUBLES[trouble]
    with contextlib.ExitStack() as stack:
        if answers:
            stack.enter_context(serving(home / "s", *answers))
        watchdog = stack.enter_context(
            watching(home, alive=lambda: trouble != "dead", slot=lambda: slot_s, run=lambda: run_s)
        )
        assert manager.recv(4096).decode() == f"STATUS=hangs: {reason}\nWATCHDOG=trigger"
        assert ended(watchdog, manager) == []
    [line] = log_lines.of("watchdog")
    assert line["level"] == "CRITICAL"
    assert line["message"] == f"{reason}: asking systemd for a restart"


def test_socket_of_systemd_that_is_gone_restarts_the_daemon(home: Path, manager: socket.socket) -> None:
    """A restart would inherit the same one: `systemctl restart syncd.socket` helps, as the log says."""
    with watching(home, is_inherited=True) as watchdog:
        assert manager.recv(4096) == PING
        assert manager.recv(4096) == PING
        assert watchdog.is_alive()


@pytest.mark.slow("waits for seconds")
def test_trouble_later_on_is_not_found(home: Path, manager: socket.socket) -> None:
    """A daemon that was well for a while is still watched."""
    trouble = threading.Event()
    with (
        serving(home / "s", OK),
        watching(home, slot=lambda: LATE_S + 1 if trouble.is_set() else 0.0) as watchdog,
    ):
        assert manager.recv(4096) == PING
        trouble.set()
        assert manager.recv(4096).endswith(b"\nWATCHDOG=trigger")
        assert ended(watchdog, manager) == []


def test_trigger_comes_at_once(home: Path, manager: socket.socket) -> None:
    """A trouble has half of the interval to pass in."""
    began = time.monotonic()
    with serving(home / "s", OK), watching(home, run=lambda: OVERRUN_S + 1):
        assert b"trigger" in manager.recv(4096)
        assert time.monotonic() - began >= 1.5 * EVERY_S


def test_slow_database_is_a_hang() -> None:
    """A run has time to end in where the statement that the deadline cut and the next one both time out."""
    statement_s = float(SESSION["statement_timeout"].removesuffix("s"))
    assert 2 * max(statement_s, BUSY_TIMEOUT_MS / 1000) + LATE_S < OVERRUN_S


@pytest.mark.parametrize(
    "trouble", ["slot", *(pytest.param(name, marks=MORE) for name in ("silent", "dead", "run", "unwell"))]
)
def test_moment_of_load_restarts_daemon(
    home: Path, manager: socket.socket, log_lines: LogLines, trouble: str
) -> None:
    """A trouble that has passed when it is looked at again triggers nothing; the ping comes all the same."""
    answers = {"silent": (None, OK), "unwell": (BUSY, OK)}.get(trouble, (OK,))
    late_s = {trouble: LATE_S + OVERRUN_S}
    with (
        serving(home / "s", *answers) as server,
        watching(
            home,
            alive=lambda: not late_s.pop("dead", 0.0),
            slot=lambda: late_s.pop("slot", 0.0),
            run=lambda: late_s.pop("run", 0.0),
        ),
    ):
        assert manager.recv(4096) == PING
        assert len(server.asked) >= len(answers)
        assert not {"dead", "slot", "run"} & late_s.keys()
        assert manager.recv(4096) == PING
    assert log_lines.of("watchdog") == []


# --- stopping


def test_stopping_daemon_is_fed(home: Path, manager: socket.socket) -> None:
    """Once stopped it ends, and no ping follows: not even that of the proof in progress."""
    with serving(home / "s", OK), watching(home) as idle:
        idle.stop()
        assert ended(idle, manager) == []

    def stop_in_mid_proof() -> float:
        watchdog.stop()
        return 0.0

    (home / "s").unlink()
    with serving(home / "s", OK) as server, watching(home, slot=stop_in_mid_proof) as watchdog:
        assert ended(watchdog, manager) == []
    assert len(server.asked) == 1


def test_trouble_of_a_stop_is_a_hang(home: Path, manager: socket.socket, log_lines: LogLines) -> None:
    """A daemon that stops while a trouble is looked at is not reported as hanging."""
    seen = threading.Event()

    def late() -> float:
        seen.set()
        return LATE_S + 1

    with serving(home / "s", OK), watching(home, slot=late) as watchdog:
        assert seen.wait(LONG_S)
        watchdog.stop()
        assert ended(watchdog, manager) == []
    assert log_lines.of("watchdog") == []


# --- what systemd asks for


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 60.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "812"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "81"}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_PID": "812"}, None),
        *(({"WATCHDOG_USEC": bad}, None) for bad in ("", "0", "-1", "2s", "1e6", "1.5", "²")),
    ],
)
def test_pings_nobody_asked_for(environ: dict[str, str], expected: float | None) -> None:
    """Half of WATCHDOG_USEC, where it is meant for this process and a number; as sd_watchdog_enabled(3)."""
    assert interval_s(environ, 812) == expected


# --- in a real daemon


@MORE
def test_service_starts_unwatched(home: Path, base_url: str) -> None:
    """The daemon pings after READY, goes on doing so, and pings no more once it is stopping."""
    with DaemonProcess(home, base_url, environ={"WATCHDOG_USEC": "8000000"}) as daemon:
        for _ in range(3):
            daemon.told("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.told("STOPPING=1")
        assert daemon.process.wait(PATIENCE_S) == 0
        with pytest.raises(AssertionError, match=r"no WATCHDOG"):
            daemon.told("WATCHDOG")
    firsts = [message.partition("\n")[0] for message in daemon.notified]
    assert firsts.index("READY=1") < firsts.index("WATCHDOG=1")
    assert "CRITICAL" not in daemon.log


def test_unwatched_service_pings(home: Path, base_url: str) -> None:
    """Where systemd expects pings of another process, this one sends none."""
    with DaemonProcess(home, base_url, environ={"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}) as daemon:
        daemon.ran()
        assert daemon.stop() == 0
        with pytest.raises(AssertionError, match=r"no WATCHDOG"):
            daemon.told("WATCHDOG")


@MORE
def test_hang_leaves_no_trace(home: Path, base_url: str) -> None:
    """A blocked event loop is found out and told; systemd's signal then logs what every thread was at."""
    daemon = DaemonProcess(home, base_url, environ={"WATCHDOG_USEC": "8000000"})
    daemon._program = BLOCKABLE
    with daemon:
        daemon.told("WATCHDOG=1")
        os.kill(daemon.pid, signal.SIGUSR1)
        reason = "the control server does not answer: timed out"
        assert daemon.told("trigger") == f"STATUS=hangs: {reason}\nWATCHDOG=trigger"
        eventually(lambda: f"CRITICAL {reason}: asking systemd for a restart" in daemon.log)
        daemon.process.send_signal(signal.SIGABRT)
        assert daemon.process.wait(PATIENCE_S) == -signal.SIGABRT
    assert "in <lambda>" in daemon.log.partition("Fatal Python error: Aborted")[2]
