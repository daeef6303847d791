"""A stand-in for Billetweb: a real HTTP server on loopback, for `syncd demo` and for the tests.

It speaks the wire style of the Billetweb API (page /events and what consumers of the API report): bare
arrays, credentials in the Authorization header or in the query, errors as objects under any status. The
account behind it is invented (`world.py`); what a query shows of it is `shown.py`'s. A `Fault` turns an
answer into a faulty one; those that the demo has, and that others are made of, have a name here. Leans on
Starlette and uvicorn.
"""

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from email.utils import formatdate
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl

import uvicorn
from anyio.from_thread import start_blocking_portal
from msgspec import Struct, field
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from syncd.standin.shown import Shown

MAX_REQUESTS = 10_000
DRIP_STEP_S = 0.05


class Request(Struct, frozen=True):
    """One request: `path` relative to /api, `at` in monotonic seconds, header names in lower case."""

    path: str
    query: dict[str, str]
    at: float
    authorized: bool
    headers: dict[str, str]
    method: str = "GET"


class Exchange(Struct, frozen=True):
    """What an answer is sent by. `gone` ends with the connection, `healed` is set at the next `heal`."""

    send: Send
    transport: asyncio.Transport
    gone: asyncio.Task[None]
    healed: threading.Event


async def send_whole(answer: "Answer", by: Exchange) -> None:
    """Send an answer at once."""
    await send_head(answer, by)
    await by.send({"type": "http.response.body", "body": answer.body})


async def send_head(answer: "Answer", by: Exchange) -> None:
    """Send the head of an answer."""
    headers = {"date": formatdate(usegmt=True), **answer.headers, "content-length": f"{len(answer.body)}"}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await by.send({"type": "http.response.start", "status": answer.status, "headers": encoded})


class Answer(Struct, frozen=True):
    """What will be sent, and how; the body is encoded as the headers say."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    delivery: Callable[["Answer", Exchange], Awaitable[None]] = send_whole


Fault = Callable[[Answer], Answer]


def php_json(value: object) -> bytes:
    """Return JSON as PHP writes it: ASCII, slashes escaped, compact."""
    return json.dumps(value, separators=(",", ":")).replace("/", "\\/").encode()


def raw(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Fault:
    """Return a fault that answers just this, whatever was asked; as JSON unless `headers` say otherwise."""
    return lambda _: Answer(body, status) if headers is None else Answer(body, status, headers)


def html(body: str, status: int = 200) -> Fault:
    """Return a fault that answers a page for browsers."""
    return raw(
        f"<!DOCTYPE html><html><body>{body}</body></html>".encode(), status, {"content-type": "text/html"}
    )


def error_object(token: str, description: str, status: int = 200) -> Fault:
    """Return a fault that answers Billetweb's error object; its status is 200 more often than not."""
    return raw(php_json({"error": token, "description": description}), status)


def status(code: int) -> Fault:
    """Return a fault that answers a bare server page with this status, such as 503."""
    return html(f"<h1>{code}</h1>", code)


def drip(seconds: float) -> Fault:
    """Return a fault that lets the right body trickle, evenly, for so long."""
    steps = max(1, round(seconds / DRIP_STEP_S))

    async def trickle(answer: Answer, by: Exchange) -> None:
        """Send a piece of the body at each step."""
        await send_head(answer, by)
        length = len(answer.body)
        for step in range(steps):
            piece = answer.body[length * step // steps : length * (step + 1) // steps]
            await by.send({"type": "http.response.body", "body": piece, "more_body": step < steps - 1})
            await asyncio.wait({by.gone}, timeout=DRIP_STEP_S)

    return lambda answer: replace(answer, delivery=trickle)


def truncated(answer: Answer) -> Answer:
    """Return the first half of the body as if it were all."""
    return replace(answer, body=answer.body[: len(answer.body) // 2])


unauthorized = error_object("unauthorized", "Wrong user or key")
restricted = error_object("unauthorized", "Your key has limited rights to specific events")


class _Planned(Struct):
    """A fault waiting for requests; `times` None: for all of them."""

    pattern: str
    fault: Fault
    times: int | None


class StandIn(Shown):
    """An invented Billetweb account that answers HTTP; see `World` for its events.

    `user` and `key` are what the Authorization header, or the query, must carry. `now` fixes today (None: the
    real one, at the start). Where `restricted` is set, the key is for chosen events: attendees are read by
    event alone. `requests` holds the latest requests, refused ones too. All methods may be called from any
    thread; an edit of several rows is seen whole when made under `lock`.
    """

    def __init__(
        self,
        *,
        events: int = 6,
        seed: int = 1,
        user: str = "12345",
        key: str = "demo-key",
        now: datetime | None = None,
    ) -> None:
        super().__init__(events=events, seed=seed, now=now)
        self.restricted = False
        self.user = user
        self.key = key
        self.requests: list[Request] = []
        self._planned: list[_Planned] = []
        self._healed = threading.Event()
        self.app = Starlette(routes=[Mount("/api", app=self._serve)])

    def fail(self, path: str, fault: Fault, *, times: int | None = 1) -> None:
        """Give this fault to the next `times` requests for `path` (None: until `heal`).

        `path` is relative to /api, such as "/events", or a pattern such as "/event/*/avail" or "*". Of
        several that match, the one planned first is spent first.
        """
        with self.lock:
            self._planned.append(_Planned(path, fault, times))

    def heal(self) -> None:
        """Forget all faults; those under way that wait for this end too."""
        with self.lock:
            self._planned.clear()
            self._healed.set()
            self._healed = threading.Event()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_disconnected(receive))
        # Taken before the answer is made: a heal in between would be missed.
        by = Exchange(send, scope["state"]["transport"], gone, self._healed)
        try:
            answer = self._answer(scope)
            await answer.delivery(answer, by)
        finally:
            gone.cancel()

    def _answer(self, scope: Scope) -> Answer:
        path = str(scope["path"]).removeprefix("/api")
        query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self.lock:
            authorized = self._is_authorized(query, headers)
            request = Request(path, query, time.monotonic(), authorized, headers, scope["method"])
            self.requests.append(request)
            del self.requests[:-MAX_REQUESTS]
            refusal = self._refusal(request)
            answer = refusal(Answer(b"")) if refusal else self._rows_answer(path, query)
            fault = self._next_fault(path)
        return fault(answer) if fault else answer

    def _is_authorized(self, query: dict[str, str], headers: dict[str, str]) -> bool:
        """Tell whether user and key are right: those in the query where there are some, else the header's."""
        if {"user", "key"} & query.keys():
            return (query.get("user"), query.get("key")) == (self.user, self.key)
        basic = base64.b64encode(f"{self.user}:{self.key}".encode()).decode()
        return headers.get("authorization") == f"Basic {basic}"

    def _refusal(self, request: Request) -> Fault | None:
        if not request.authorized:
            return unauthorized
        if request.method != "GET":
            return error_object("method", "The stand-in is read only", 405)
        return None

    def _next_fault(self, path: str) -> Fault | None:
        for planned in self._planned:
            if fnmatchcase(path, planned.pattern):
                if planned.times is not None:
                    planned.times -= 1
                    if planned.times <= 0:
                        self._planned.remove(planned)
                return planned.fault
        return None

    def _rows_answer(self, path: str, query: dict[str, str]) -> Answer:
        match path.strip("/").split("/"):
            case ["events"]:
                return Answer(php_json(self.events_shown(query)))
            case ["attendees"] if self.restricted:
                return restricted(Answer(b""))
            case ["attendees"]:
                return Answer(php_json(self.account_attendees(query)))
            case ["event", event_id, "avail" | "tickets" | "dates" | "attendees" as what]:
                event = self.events.get(event_id)
                if event is None:
                    return Answer(php_json({"error": "not_found", "description": "Unknown event"}))
                return Answer(php_json(self.event_rows(event, what, query)))
            case _:
                return Answer(php_json({"error": "not_found", "description": "Unknown operation"}), 404)


@contextmanager
def serving(standin: StandIn) -> Iterator[str]:
    """Serve on a free loopback port from a thread of its own; yield the base URL, without a final slash.

    On leaving, connections in whatever state are dropped at once.
    """
    with (
        start_blocking_portal(name="standin") as portal,
        portal.wrap_async_context_manager(_listening(standin.app)) as base_url,
    ):
        yield base_url


@asynccontextmanager
async def _listening(app: Starlette) -> AsyncIterator[str]:
    # Not uvicorn.Server: it waits for hanging requests, and polls where a stop should be immediate.
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(config, state, {}), "127.0.0.1", 0)
    try:
        yield "http://{}:{}/api".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        while state.connections or state.tasks:
            for connection in list(state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)


class _Connection(H11Protocol):
    """Puts its transport into the request's scope, for faults below HTTP."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {"transport": transport}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
