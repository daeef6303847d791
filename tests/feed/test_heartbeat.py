"""The dead man's switch, against a small monitor with healthchecks.io's manners."""

import asyncio
import io
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
import stamina
import stamina.instrumentation
from loguru import logger
from support import faults as fault
from support.processes import DaemonProcess, eventually

from syncd.billetweb.client import tell_retry
from syncd.feed import heartbeat
from syncd.log import setup as log
from syncd.log.redact import Redactor
from syncd.model import Outcome, Run, RunError
from syncd.standin.server import StandIn

SECRET = "5e7a9c10-canary-4f2b"


class Monitor(ThreadingHTTPServer):
    """Answers pings with 200, or with the `statuses` planned; a `trickling` answer never ends.

    One of the `statuses` waits for another ping, but not for long, while `waits`.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[str] = []
        self.statuses: list[int] = []
        self.trickling = False
        self.waits = False
        self.another = threading.Event()
        self.let_go = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Monitor

    def do_GET(self) -> None:
        self.server.received.append(self.path)
        if self.server.trickling:
            self.trickle()
            return
        rid = parse_qs(urlsplit(self.path).query)["rid"][0]
        try:
            good = str(UUID(rid)) == rid
        except ValueError:
            good = False
        planned = self.server.statuses.pop(0) if self.server.statuses else 200
        if planned == 200:
            self.server.another.set()
        elif self.server.waits:
            self.server.another.wait(1)
        self.send_response(planned if good else 400)
        self.send_header("Location", f"{self.server.url}/moved")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def trickle(self) -> None:
        with suppress(ConnectionError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.let_go.wait(0.02):
                self.wfile.write(b"X-More: soon\r\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with Monitor() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.let_go.set()
        found.shutdown()
        thread.join()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Collect what would be logged at INFO, before any redaction."""
    found: list[str] = []
    sink = logger.add(found.append, level="INFO", format="{level} {extra} {message}{exception}")
    yield found
    logger.remove(sink)


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    """Ask again without waiting, as often as the code says, and tell of it as the daemon does."""
    with ExitStack() as stack:
        stamina.instrumentation.set_on_retry_hooks([tell_retry])
        stack.callback(stamina.instrumentation.set_on_retry_hooks, None)
        stack.enter_context(stamina.set_testing(True, attempts=100, cap=True))
        yield


def ping(url: str, outcome: Outcome = "ok", run_id: int = 42) -> None:
    asyncio.run(heartbeat.ping(url, Run(id=run_id, trigger="interval", state="done", outcome=outcome)))


@pytest.mark.parametrize(("outcome", "path"), [("ok", ""), ("partial", "/fail"), ("failed", "/fail")])
def test_monitor_would_take_a_failed_run_for_a_good_one(
    monitor: Monitor, lines: list[str], outcome: Outcome, path: str
) -> None:
    """The address itself is asked for after an ok run, its /fail after any other; once, and silently."""
    ping(monitor.url, outcome)
    assert monitor.received == [f"/{SECRET}{path}?rid=00000000-0000-0000-0000-000000000042"]
    assert lines == []


def test_monitor_would_be_alarmed_by_a_stop(monitor: Monitor, lines: list[str]) -> None:
    """A cancelled run says nothing of the mirror, and without an address nobody is told."""
    ping(monitor.url, "cancelled")
    asyncio.run(heartbeat.ping(None, Run(id=42, trigger="interval", state="done", outcome="ok")))
    assert (monitor.received, lines) == ([], [])


def test_monitor_would_be_alarmed_by_a_typing_error(monitor: Monitor) -> None:
    """A run that failed for an id alone that Billetweb does not know says nothing of the mirror either."""
    run = Run(id=42, trigger="manual", events=["1"], whole=False, state="done", outcome="failed")
    run.add_error(RunError("event 1", "unknown_event", "no such id"))
    asyncio.run(heartbeat.ping(monitor.url, run))
    assert monitor.received == []


@pytest.mark.parametrize("run_id", [1, 987_654_321_012_345, -1_800_000_000])
def test_healthchecks_would_refuse_the_run_id(monitor: Monitor, lines: list[str], run_id: int) -> None:
    """The run's id goes as a UUID that shows it in decimal, for healthchecks.io refuses anything else."""
    ping(monitor.url, run_id=run_id)
    (path,) = monitor.received
    assert path.replace("-", "").endswith(str(abs(run_id)))
    assert lines == []


def test_hiccup_of_the_monitor_would_wake_somebody(monitor: Monitor, lines: list[str]) -> None:
    """A ping that failed once is sent a second time, and nothing is said."""
    monitor.statuses = [503]
    ping(monitor.url)
    assert len(monitor.received) == 2
    assert lines == []


@pytest.mark.parametrize("status", [404, 500, 302])
def test_dead_monitor_would_fail_the_run_or_give_its_address_away(
    monitor: Monitor, lines: list[str], status: int
) -> None:
    """After two tries one line says that the ping was not received, with the status, not the address."""
    monitor.statuses = [status] * 9
    ping(monitor.url, "failed")
    assert len(monitor.received) == 2
    (line,) = lines
    assert line.startswith("WARNING")
    assert f"not received ({status}); run 42 is not affected" in line
    assert "heartbeat.failed" in line
    assert SECRET not in line


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:1/{SECRET}",  # nobody listens
        f"http://127.0.0.1:99999/{SECRET}",  # InvalidURL is no HTTPError
        f"gopher://127.0.0.1/{SECRET}",
    ],
)
def test_unusable_address_would_end_the_daemon_s_task(lines: list[str], url: str) -> None:
    """Whatever is wrong with the address, nothing is raised, and the line does not repeat it."""
    ping(url)
    (line,) = lines
    assert "was not received" in line
    assert SECRET not in line


def test_proxy_that_cannot_be_used_would_raise(
    monitor: Monitor, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting of the environment that cannot be used is a line as well, which names it."""
    monkeypatch.setenv("ALL_PROXY", "gopher://user:secret@127.0.0.1:1")
    ping(f"https://monitor.example.org/{SECRET}")
    (line,) = lines
    assert "was not received ($ALL_PROXY: is no address of a proxy" in line
    assert "secret" not in line
    assert SECRET not in line


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_proxy_would_learn_the_address_of_a_monitor_here(
    monitor: Monitor, lines: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A monitor on this machine is asked itself, whatever proxy the environment names for others."""
    with Monitor() as proxy:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        ping(monitor.url)
        assert proxy.received == []  # it is not even served: a connection would wait
    assert len(monitor.received) == 1
    assert lines == []


def test_trickling_monitor_would_hold_the_task_for_ever(
    monitor: Monitor, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tries end by the time-out, though the next byte always comes in time."""
    monkeypatch.setattr(heartbeat, "TIMEOUT_S", 0.3)
    monitor.trickling = True
    ping(monitor.url)
    assert len(monitor.received) == 2
    assert "was not received (" in "".join(lines)


def test_a_failed_run_would_be_told_after_the_good_one_that_followed(
    monitor: Monitor, home: Path, base_url: str, standin: StandIn
) -> None:
    """A ping that must be sent twice is over before the next run's: the monitor keeps what came last."""
    standin.fail("/events", fault.raw(b"nothing"), times=1)
    monitor.statuses, monitor.waits = [503], True
    with DaemonProcess(home, base_url, {"heartbeat": {"url": monitor.url}}) as daemon:
        assert daemon.ran()["last_run"]["outcome"] == "failed"
        assert daemon.ctl("run-now").returncode == 0
        eventually(lambda: len(monitor.received) == 3)
    assert ["/fail?" in path for path in monitor.received] == [True, True, False]


def test_a_failed_run_would_not_be_told_while_another_ping_is_under_way(
    monitor: Monitor, home: Path, base_url: str, standin: StandIn
) -> None:
    """Each run's ping is sent, also where a later run, which has none, ends before its turn."""
    monitor.statuses, monitor.waits = [503], True
    with DaemonProcess(home, base_url, {"heartbeat": {"url": monitor.url}}) as daemon:
        daemon.ran()
        standin.fail("/events", fault.raw(b"nothing"), times=1)
        assert daemon.ctl("run-now").returncode == 1
        assert daemon.ctl("run-now", "--event", "1").returncode == 1  # there is none: a slip
        eventually(lambda: len(monitor.received) == 3)
    assert ["/fail?" in path for path in monitor.received] == [False, False, True]


def test_address_would_be_in_the_debug_log(monitor: Monitor) -> None:
    """Not even at the lowest level, where httpx names what it asks for, does the log hold the address."""
    written = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monitor.statuses = [500]
    log.configure(level="TRACE", format="text", redact=Redactor([monitor.url]), stream=written)
    try:
        ping(monitor.url)
    finally:
        logger.remove()
        logging.captureWarnings(capture=False)
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "HTTP Request: GET ***?rid=" in written.getvalue()
    assert SECRET not in written.getvalue()
