"""What a daemon must outlast: answers that are made to hold it up, and a loop that does nothing any more."""

import contextlib
import gzip
import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faults import hang
from support.processes import PATIENCE_S, SYNCD, DaemonProcess, asked, eventually
from support.variants import mostly_slow

from syncd.standin.server import StandIn, raw

MILLION = 1_000_000
GZIP = {"content-encoding": "gzip"}
_BLOCKED = """
import asyncio, signal, sys, time, syncd.cli.main
from syncd.account.schedule import Schedule
start = Schedule.start
def and_block(self, *arguments):
    start(self, *arguments)
    def block():
        print("blocked", file=sys.stderr, flush=True)
        {how}
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(block))
Schedule.start = and_block
sys.exit(syncd.cli.main.main())
"""
WAYS = {"in the kernel": "time.sleep(3600)", "in Python": "while True: pass"}


@pytest.fixture
def standin() -> StandIn:
    return StandIn(events=3)


@pytest.fixture
def daemon(home: Path, base_url: str) -> Iterator[DaemonProcess]:
    """Give a daemon that has done its first run."""
    with DaemonProcess(home, base_url) as process:
        process.ran()
        yield process


@pytest.mark.sqlite_only("about answers")
@pytest.mark.parametrize("rows", mostly_slow([40_000, MILLION], "each keeps a daemon busy"))
@pytest.mark.parametrize(
    "row",
    mostly_slow([b"{}", b"null", b'{"id":"x","name":"\\u00e9"}'], "each keeps a daemon busy"),
    ids=bytes.decode,
)
def test_a_million_empty_rows_hold_the_daemon_up(
    daemon: DaemonProcess, standin: StandIn, rows: int, row: bytes
) -> None:
    """Unusable rows are counted and the first named, too many are refused; meanwhile it answers."""
    body = gzip.compress(b"[" + b",".join([row] * rows) + b"]", 1)
    standin.fail("/events", raw(body, 200, GZIP))
    run = json.loads(daemon.ask("POST", "/v1/runs", {})[1])
    answered = 0
    while (found := json.loads(daemon.ask("GET", f"/v1/runs/{run['id']}")[1]))["state"] != "done":
        answered += 1
    assert answered > 5
    if rows == MILLION:
        assert found["outcome"] == "failed"
        assert [error["kind"] for error in found["errors"]] == ["too_large"]
    else:
        assert (found["failed"], found["errors_total"], len(found["errors"])) == (rows, rows, 20)
    assert len(daemon.log) < 20_000
    assert "ok" in daemon.ctl("run-now").stdout
    assert daemon.stop() == 0
    assert "ending at once" not in daemon.log


def test_stop_waits_for_a_harmful_answer(daemon: DaemonProcess, standin: StandIn) -> None:
    """A stop in the middle of a large answer is as orderly as any other."""
    body = gzip.compress(b"[" + b",".join([b'{"name":"x"}'] * 49_000) + b"]", 1)
    standin.fail("/events", raw(body, 200, GZIP), times=None)
    daemon.ask("POST", "/v1/runs", {})
    eventually(lambda: len(standin.requests) > 7)
    assert daemon.stop() == 0
    assert "ending at once" not in daemon.log


@pytest.mark.sqlite_only("about the loop")
@pytest.mark.parametrize("way", mostly_slow(WAYS, "each waits for the guard"))
@pytest.mark.parametrize(
    "again", mostly_slow([False, True], "each waits for the guard"), ids=["one signal", "two signals"]
)
def test_blocked_loop_outlasts_a_stop(home: Path, base_url: str, way: str, *, again: bool) -> None:
    """A signal ends a process whose event loop is blocked in the time of a stop, a second one at once."""
    daemon = DaemonProcess(home, base_url)
    daemon._program = [sys.executable, "-c", _BLOCKED.format(how=WAYS[way])]
    with daemon:
        daemon.ran()
        daemon.process.send_signal(signal.SIGUSR1)
        eventually(lambda: "blocked" in daemon.log)
        daemon.process.send_signal(signal.SIGTERM)
        if again:
            repeated = threading.Timer(1, daemon.process.send_signal, [signal.SIGTERM])
            repeated.start()
        assert daemon.process.wait(PATIENCE_S) == int(again)
        why = "a second signal" if again else "stopping took too long"
        assert f"ending at once: {why}" in daemon.log
        assert not daemon.socket.exists()


_NO_THREADS = """
import threading
def refuse(thread):
    raise RuntimeError("can't start new thread")
"""


@pytest.mark.sqlite_only("about threads")
@pytest.mark.parametrize("block", ["", *mostly_slow(WAYS, "each waits for the guard")])
def test_a_machine_without_threads_keeps_a_stopped_daemon(home: Path, base_url: str, block: str) -> None:
    """Where no thread can be started any more a signal ends the process in time, blocked or not."""
    daemon = DaemonProcess(home, base_url)
    how = "\n        ".join(["threading.Thread.start = refuse", *([WAYS[block]] if block else [])])
    daemon._program = [sys.executable, "-c", _NO_THREADS + _BLOCKED.format(how=how)]
    with daemon:
        daemon.ran()
        daemon.process.send_signal(signal.SIGUSR1)
        eventually(lambda: "blocked" in daemon.log)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.wait(PATIENCE_S)


_HANGING_DISK = """
import sys, time, syncd.cli.main
from syncd.feed import files
def hang(*_):
    print("hanging", file=sys.stderr, flush=True)
    time.sleep(3600)
files.replace = hang
sys.exit(syncd.cli.main.main())
"""


@pytest.mark.slow("waits for the end of a stop")
@pytest.mark.sqlite_only("about files")
def test_a_disk_that_hangs_keeps_a_stopped_daemon(home: Path, base_url: str) -> None:
    """A feed that cannot be written neither holds up a run nor the end of the process."""
    daemon = DaemonProcess(home, base_url)
    daemon._program = [sys.executable, "-c", _HANGING_DISK]
    with daemon.config.open("a") as config:
        config.write(f'[[feeds]]\npath = "{home}/events.json"\nformat = "json"\n')
    with daemon:
        daemon.ran()
        assert "takes longer" in eventually(lambda: daemon.status()["feeds"]["error"])
        assert daemon.log.count("hanging") == 1
        assert daemon.stop() == 0
        assert "ending at once" not in daemon.log


FEW_FILES = ["sh", "-c", 'ulimit -S -n 80; exec "$@"', "sh", *SYNCD]
"""A syncd that may open few files, as one of systemd's may open a thousand."""


@contextlib.contextmanager
def silent(daemon: DaemonProcess, count: int, *, begin: bytes = b"") -> Iterator[list[socket.socket]]:
    """Give so many connections to the daemon's socket that say no more than how a request begins."""
    with contextlib.ExitStack() as opened:
        found = []
        for _ in range(count):
            peer = opened.enter_context(socket.socket(socket.AF_UNIX))
            peer.settimeout(PATIENCE_S)
            peer.connect(str(daemon.socket))
            with contextlib.suppress(OSError):  # dropped already, for another
                peer.sendall(begin)
            found.append(peer)
        yield found


@pytest.mark.slow("a thousand connections")
@pytest.mark.parametrize("begin", [b"", b"GET /v1/status HTTP/1.1\r\nHo"], ids=["nothing", "half"])
def test_silent_peers_starve_the_daemon(home: Path, base_url: str, standin: StandIn, begin: bytes) -> None:
    """More connections that say nothing than there are files cost neither a status nor a run, nor the log."""
    daemon = DaemonProcess(home, base_url, {"sync": {"interval": "10s"}})
    daemon._program = FEW_FILES
    with daemon, contextlib.ExitStack() as flood:
        daemon.ran()
        flood.enter_context(silent(daemon, 300, begin=begin))
        assert daemon.status()["health"] == "ok"
        assert daemon.ctl("run-now").returncode == 0
        flood.enter_context(silent(daemon, 300, begin=begin))
        daemon.ran(3)  # the scheduled one
        assert daemon.status()["last_run"]["outcome"] == "ok"
        for _ in range(20):
            flood.enter_context(silent(daemon, 20, begin=begin))
            assert daemon.ask("GET", "/healthz") == (200, b"ok\n")
        assert daemon.stop() == 0
    assert "Too many open files" not in daemon.log
    assert daemon.log.count("those that have said nothing are dropped") == 1
    assert len(daemon.log) < 30_000


@pytest.mark.slow("waits for seconds")
def test_files_that_run_out_fill_the_log(home: Path, base_url: str, standin: StandIn) -> None:
    """Where there are no files left at all, that is said once, and is over when there are some again."""
    daemon = DaemonProcess(home, base_url)
    code = "import os, sys; from syncd.control import peers; peers.SHARE = 10; import syncd.cli.main as m; "
    daemon._program = [*FEW_FILES[: -len(SYNCD)], sys.executable, "-c", code + "sys.exit(m.main())"]
    with daemon:
        daemon.ran()
        with silent(daemon, 200):
            eventually(lambda: "nobody is let in for the moment: Too many open files" in daemon.log)
            assert daemon.process.poll() is None
        assert daemon.ctl("run-now").returncode == 0
        assert daemon.stop() == 0
    assert daemon.log.count("nobody is let in for the moment") == 1
    assert len(daemon.log) < 30_000


@pytest.mark.slow("waits for the look at the socket")
@pytest.mark.sqlite_only("about sockets")
def test_removed_socket_ends_all_commands(daemon: DaemonProcess) -> None:
    """Somebody clears the folder of the socket: a few seconds later `syncctl` works again."""
    daemon.socket.unlink()
    eventually(daemon.socket.exists)
    assert daemon.ctl("status").returncode == 0
    assert "was removed: made anew" in daemon.log
    assert daemon.stop() == 0
    assert not daemon.socket.exists()


@pytest.mark.slow("many requests")
def test_requests_make_an_endless_run(daemon: DaemonProcess, standin: StandIn) -> None:
    """Thousands of ids in one request, or in many, are refused with what to do; listings stay small."""
    standin.fail("/events", hang, times=None)
    before = len(standin.requests)
    daemon.ask("POST", "/v1/runs", {})
    asked(standin, before + 1)
    answers = [
        daemon.ask("POST", route, {"events": [str(number) for number in range(first, first + 100)]})
        for first in range(10**19, 10**19 + 2000, 100)
        for route in ("/v1/runs", "/v1/accept")
    ]
    assert [status for status, _ in answers] == [202] * 6 + [409] * 34
    assert json.loads(answers[-1][1])["error"]["code"] == "too_many_events"
    status, body = daemon.ask("POST", "/v1/runs", {"events": [str(number) for number in range(2000)]})
    assert (status, json.loads(body)["error"]["code"]) == (409, "too_many_events")
    assert "name none to have all read" in json.loads(answers[-1][1])["error"]["message"]
    assert daemon.ctl("run-now", *(f"--event={number}" for number in range(301)), "--no-wait").returncode == 6
    assert len(daemon.ask("GET", "/v1/runs")[1]) < 20_000
    assert daemon.ask("POST", "/v1/runs", {})[0] == 202
    standin.heal()
