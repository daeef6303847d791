"""A control server with canned answers on a real Unix socket, and samples of what it answers."""

import contextlib
import http.server
import json
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import syncd
from syncd.model import Counts, Peer, Run, RunError

Json = dict[str, Any]

BY_ALICE = Peer(uid=1000, user="alice", pid=77)
QUEUED: Json = msgspec.to_builtins(Run(id=43, trigger="manual", requested_by=BY_ALICE))
ENDED = QUEUED | {
    "state": "done",
    "outcome": "ok",
    "started_at": "2027-05-08T10:00:00Z",
    "finished_at": "2027-05-08T10:00:03Z",
    "duration_s": 3.2,
    "requests": 25,
    "synced": 12,
    "counts": msgspec.to_builtins(Counts(inserted=1)),
}
ERROR: Json = msgspec.to_builtins(RunError(subject="event 9", kind="transport", message="no answer"))
STEPS: list[Json] = [{"phase": "events", "done": 3, "total": 12}, ENDED]
RUNNING = QUEUED | {"state": "running", "progress": STEPS[0]}
STATUS: Json = {
    "version": syncd.__version__,
    "pid": 4321,
    "started_at": "2027-05-01T10:00:00Z",
    "uptime_s": 273_600.0,
    "state": "idle",
    "health": "ok",
    "health_reason": None,
    "is_running": True,
    "interval_s": 900,
    "next_run_at": "2027-05-08T10:15:00Z",
    "run_count": 120,
    "consecutive_failures": 0,
    "last_run": ENDED,
    "last_success_at": "2027-05-08T10:00:03Z",
    "last_error": None,
    "current_run": None,
    "queued_runs": 0,
    "database": "sqlite:////var/lib/syncd/syncd.db",
    "events_live": 12,
    "events_full": 2,
    "doubts": 0,
    "slots_skipped": {},
    "slots_missed": 0,
}
EVENT: Json = {
    "id": "900001",
    "name": "Fête du pain ☂",
    "starts_at": "2027-05-08T08:00:00Z",
    "ends_at": "2027-05-08T18:00:00Z",
    "place": None,
    "online": True,
    "shop_url": None,
    "places_total": 50,
    "places_left": 12,
    "unlimited": False,
    "is_full": False,
    "availability_at": "2027-05-08T07:00:00Z",
    "age_s": 61.5,
    "vanished_at": None,
}
DOUBT: Json = {
    "table": "billetweb_tickets",
    "event_id": "900003",
    "absent": 3,
    "of": 4,
    "since": "2027-05-08T10:00:00Z",
    "reads": 2,
    "examples": ["11", "12", "13"],
    "waits_for": "accept",
    "until": None,
}


class Daemon:
    """A control server that gives canned answers and notes what it was asked.

    `answers` maps "METHOD target" to a JSON document, bytes sent as they are, (status, document), or a
    function that is handed the request's handler and writes the answer itself.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.version: str | None = syncd.__version__
        self.closing = threading.Event()
        self.server = socketserver.ThreadingUnixStreamServer(path, self.handler_class())
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        """Stop answering, and leave nothing behind."""
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def vanish(self) -> None:
        """Stop listening, as a daemon does that is killed in the middle of an answer."""
        Path(self.path).unlink()

    def handler_class(daemon) -> type[http.server.BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self
        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = f"{self.command} {self.path}"
                daemon.asked.append((request, json.loads(body) if body else None))
                given = daemon.answers[request]
                if callable(given):
                    given(self)
                    return
                status, document = given if isinstance(given, tuple) else (200, given)
                content = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.head(status, length=len(content))
                with contextlib.suppress(BrokenPipeError):  # whoever asked was stopped
                    self.wfile.write(content)

            def head(self, status: int = 200, *, length: int | None = None) -> None:
                self.send_response(status)
                if daemon.version is not None:
                    self.send_header("Syncd-Version", daemon.version)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()

            do_GET = do_POST = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                """Keep quiet; the parent also expects an address with a host."""

        return Handler


def stream(*steps: Json, until: threading.Event | None = None) -> Callable[[Any], None]:
    """Return an answer of one line per step, with keep-alive lines between; it stays open for `until`."""

    def answer(handler: Any) -> None:
        handler.head()
        for step in steps:
            handler.wfile.write(b"\n" + json.dumps(step).encode() + b"\n")
        if until:
            until.wait(10)

    return answer


WEBHOOKS: dict[str, Any] = {
    "endpoints": [
        {
            "name": "site",
            "host": "example.org",
            "pending": 1,
            "parked": 0,
            "delivered": 7,
            "failed": 2,
            "gone": False,
            "last_delivered_at": "2027-05-08T10:00:00Z",
            "last_error": "HTTP 503",
        }
    ],
    "deliveries": [
        {
            "id": "msg_7f",
            "endpoint": "site",
            "type": "event.full",
            "event_id": "900003",
            "created_at": "2027-05-08T10:00:00Z",
            "state": "pending",
            "attempts": 2,
            "next_at": "2027-05-08T10:02:00Z",
            "attempted_at": "2027-05-08T10:00:30Z",
            "retry_until": "2027-05-11T10:00:00Z",
            "delivered_at": None,
            "status": 503,
            "error": "HTTP 503",
        }
    ],
}
TARGET: dict[str, Any] = {
    "name": "formation",
    "table": "Formation",
    "database": None,
    "matched": 3,
    "vanished": 1,
    "unmatched": 12,
    "examples": ["old-1", "old-2"],
    "written": 2,
    "last_write_at": "2027-05-08T10:00:00Z",
    "last_error": 'there is no table "Formation"',
    "warnings": [],
}


@contextlib.contextmanager
def serving() -> Iterator[Daemon]:
    """Give a control server that answers every command, on a path short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="ctl"))
    daemon = Daemon(str(directory / "s"))
    daemon.answers = {
        "GET /v1/status": STATUS,
        "POST /v1/runs": (202, QUEUED),
        "GET /v1/runs/43?wait=1": ENDED,
        "GET /v1/runs?limit=20": {"runs": [ENDED]},
        "GET /v1/events?all=0": {"events": [EVENT]},
        "GET /v1/doubts": {"doubts": [DOUBT]},
        "GET /v1/publish": {"publish": [TARGET]},
        "GET /v1/webhooks": WEBHOOKS,
        "POST /v1/webhooks/retry": {"retried": 2},
        "POST /v1/accept": (202, QUEUED | {"accept": True}),
        "POST /v1/pause": STATUS | {"state": "paused", "next_run_at": None, "changed": ["paused"]},
        "POST /v1/resume": STATUS | {"changed": ["paused"]},
        "POST /v1/reload": STATUS | {"changed": ["sync.interval"], "needs_restart": ["database.url"]},
        "GET /metrics": b"# TYPE syncd_paused gauge\nsyncd_paused 0.0\n",
    }
    yield daemon
    daemon.close()
    shutil.rmtree(directory)
