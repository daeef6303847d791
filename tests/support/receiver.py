"""A receiver of webhooks: a real HTTP server on loopback that answers as it is told and keeps what it got."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from msgspec import Struct, field
from standardwebhooks import Webhook

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
OTHER_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Answer(Struct, frozen=True):
    """What to answer; `waits` is waited for first."""

    status: int = 204
    headers: dict[str, str] = {}
    body: bytes = b""
    waits: threading.Event | None = None


class Got(Struct, frozen=True):
    """One request, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def told(self) -> dict[str, Any]:
        """What it says."""
        told: dict[str, Any] = msgspec.json.decode(self.body)
        return told

    @property
    def type(self) -> str:
        told: str = self.told["type"]
        return told

    def verified(self, secret: str = SECRET) -> dict[str, Any]:
        """Return what it says, by the official library, which raises where the signature is no good."""
        told: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return told


class Receiver(Struct):
    """What it got, and what it answers: by `choose`, else the next of `answers`, else success.

    `cut_off`: of so many answers whoever asked did not take all.
    """

    url: str = ""
    cut_off: int = 0
    got: list[Got] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    choose: Callable[[Got], Answer | None] = lambda _: None

    def types(self) -> list[str]:
        """Return the types of what it got, in order."""
        return [each.type for each in self.got]

    def answer(self, got: Got) -> Answer:
        """Keep a request, and return what to answer."""
        self.got.append(got)
        return self.choose(got) or (self.answers.pop(0) if self.answers else Answer())


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Give a receiver that listens."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:  # who sent it was killed: no receiver takes half a request
                self.close_connection = True
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = receiver.answer(Got(self.path, headers, body))
            if answer.waits:
                answer.waits.wait(30)
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
            except OSError:  # nobody waits for it any more
                receiver.cut_off += 1
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Say nothing: who sends may be killed."""

    server = Server(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
