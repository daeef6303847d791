"""The routes of the control server, and the form of its answers.

They call the account, and the daemon for a reload.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal, Unpack

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from syncd.account.account import Account
from syncd.account.status import Status, StatusAfter, after
from syncd.control import asked
from syncd.control.asked import Refusal, RunId
from syncd.control.gate import Gate
from syncd.control.metrics import exposition
from syncd.control.openapi import LINES, TEXT, described, document
from syncd.control.page import Page
from syncd.database.deliveries import Delivery
from syncd.database.rows import Event
from syncd.errors import ConfigError, StoreError, SyncdError, UnknownDelivery
from syncd.feed.publish import TargetState
from syncd.feed.webhooks import EndpointState
from syncd.model import Doubt, Run, Wish
from syncd.text import EVENT_NAME, harmless

Reload = Callable[[], Awaitable[StatusAfter]]
MAX_WAIT_S = 60.0  # proxies close connections that are silent for longer
MAX_RUNS = 1000  # ten days at the usual interval, half a MiB
FOLLOWED_WITHIN_S = 5.0
"""How long an answer that calls a run done waits for what follows the run: whoever reads it looks into the
site's table next. It takes a tenth of a second, on a busy machine some; but another program may hold the
table. Half of what syncctl waits for an answer."""
KEEP_ALIVE_S = 5.0
"""A progress stream sends a sign of life this often; to syncctl a long silence means a dead daemon."""


EventName = Annotated[str, Meta(extra_json_schema={"pattern": f"^{EVENT_NAME}$"})]
"""An event's id or ext_id; described by this pattern, but refused with its own message."""
Number = Annotated[int, Meta(ge=1, le=MAX_RUNS, description=f"a whole number from 1 to {MAX_RUNS}")]
"""How many of something are shown."""
Flag = Annotated[Literal[0, 1], Meta(description="0 or 1")]


class RunRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/runs`."""

    full: bool = False
    events: list[EventName] = field(default_factory=list)
    join: bool = False


class AcceptRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/accept`."""

    events: list[EventName] = field(default_factory=list)


class RetryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/webhooks/retry`: these deliveries, and all that wait for an endpoint."""

    ids: list[str] = field(default_factory=list)
    endpoint: str | None = None


class RunQuery(Struct, frozen=True):
    """The parameters of `GET /v1/runs/{id}`."""

    wait: Annotated[float, Meta(ge=0, le=MAX_WAIT_S, description=f"from 0 to {MAX_WAIT_S:g} seconds")] = 0


class RunsQuery(Struct, frozen=True):
    """The parameters of `GET /v1/runs`."""

    limit: Number = 20
    before: RunId | UnsetType = UNSET


class EventsQuery(Struct, frozen=True):
    """The parameters of `GET /v1/events`."""

    all: Flag = 0


class DeliveriesQuery(Struct, frozen=True):
    """The parameters of `GET /v1/webhooks`."""

    limit: Number = 100
    all: Flag = 0


def application(
    account: Account, reload: Reload, redact: Callable[[str], str], *, most_waiting: int
) -> Starlette:
    """Return the ASGI application that answers for an account.

    `reload` rereads the configuration; it raises ConfigError and changes nothing if that is bad. Error
    messages pass `redact`; `most_waiting` requests may wait for a run at once. A further one is answered at
    once, and its client asks again.
    """
    routes = _Routes(account, reload, most_waiting)
    token = secrets.token_urlsafe(32)  # this process's own, for its page
    page = Page(account, token, routes.start)
    app = Starlette(
        routes=[
            Route("/", page.answer, methods=["GET", "POST"]),
            Route("/v1/status", routes.status),
            Route("/v1/runs", routes.runs, methods=["GET", "POST"]),
            Route("/v1/runs/{id}", routes.run),
            Route("/v1/runs/{id}/progress", routes.progress),
            Route("/v1/events", routes.events),
            Route("/v1/doubts", routes.doubts),
            Route("/v1/publish", routes.publish),
            Route("/v1/webhooks", routes.webhooks),
            Route("/v1/webhooks/retry", routes.retry, methods=["POST"]),
            Route("/v1/accept", routes.accept, methods=["POST"]),
            Route("/v1/pause", routes.pause, methods=["POST"]),
            Route("/v1/resume", routes.resume, methods=["POST"]),
            Route("/v1/reload", routes.reload, methods=["POST"]),
            Route("/v1/openapi.json", routes.openapi),
            Route("/healthz", routes.healthz),
            Route("/metrics", routes.metrics),
        ],
        middleware=[Middleware(_Cut), Middleware(Gate, token=token, refuse=error_answer)],
        exception_handlers={
            Refusal: _refuse,
            HTTPException: _refuse_http,
            SyncdError: _refuse_syncd,
            Exception: _apologise,
        },
    )
    app.state.redact = redact
    app.router.redirect_slashes = False  # it redirects to an address that is wrong behind a proxy
    return app


class _Routes:
    def __init__(self, account: Account, reload: Reload, most_waiting: int) -> None:
        self._account = account
        self._reload = reload
        self._waiting = asyncio.Semaphore(most_waiting)

    @described("How syncd fares. From memory: it waits for no run and no database.", answer=Status)
    async def status(self, _request: Request) -> Response:
        return _json(self._account.status())

    async def start(self, request: Request, **wish: Unpack[Wish]) -> Run:
        """Return the run that serves whoever sent the request, queued or in progress."""
        asked.check_ids(wish.get("events", ()))
        wish["requested_by"] = await asked.peer(request)
        run = await self._account.request(**wish)
        await self._waited(run)
        return run

    async def _waited(self, run: Run, seconds: float = 0) -> None:
        """Wait for a run's end, unless too many do; then, if it is over, for what follows: tables, files."""
        if not self._waiting.locked():
            async with self._waiting:
                if seconds:
                    await self._account.runner.wait(run, seconds)
                if run.state == "done":
                    await self._account.runner.wait(run, FOLLOWED_WITHIN_S)

    @described(
        "Say that what is absent is gone: a run lets it vanish, of these events alone or of all.",
        answer=Run,
        method="POST",
        status=202,
        body=AcceptRequest,
        refused=(400, 409, 413),
    )
    async def accept(self, request: Request) -> Response:
        """Answer with the run that marks vanished what is still absent."""
        wish = await asked.record(request, AcceptRequest)
        return _json(await self.start(request, events=wish.events, accept=True), status=202)

    @described(
        "What is absent upstream and not believed gone yet.",
        answer={"doubts": list[Doubt]},
        refused=(503,),
    )
    async def doubts(self, _request: Request) -> Response:
        return _json({"doubts": await self._account.doubts()})

    @described("The tables of a site that are kept true.", answer={"publish": list[TargetState]})
    async def publish(self, _request: Request) -> Response:
        return _json({"publish": self._account.outputs.publishing.states()})

    @described(
        "The endpoints, and the latest deliveries that wait or are parked; with `all` the delivered too.",
        answer={"endpoints": list[EndpointState], "deliveries": list[Delivery]},
        query=DeliveriesQuery,
        refused=(400, 503),
    )
    async def webhooks(self, request: Request) -> Response:
        """Answer with the endpoints, and the latest deliveries that wait or are parked; or all of them."""
        wish = asked.query(request, DeliveriesQuery)
        deliveries = await self._account.deliveries(wish.limit, delivered_too=bool(wish.all))
        return _json({"endpoints": self._account.outputs.webhooks.states(), "deliveries": deliveries})

    @described(
        "Send deliveries again: these, and all that wait for an endpoint or are parked.",
        answer={"retried": int},
        method="POST",
        body=RetryRequest,
        refused=(400, 404, 413, 503),
    )
    async def retry(self, request: Request) -> Response:
        """Answer with how many deliveries are sent again."""
        wish = await asked.record(request, RetryRequest)
        await self._account.open()
        retried = await self._account.outputs.webhooks.retry(ids=wish.ids, endpoint=wish.endpoint)
        return _json({"retried": retried})

    @described(
        "A run; with `wait` as soon as it has ended or so many seconds are over.",
        answer=Run,
        query=RunQuery,
        refused=(400, 404, 503),
    )
    async def run(self, request: Request) -> Response:
        """Answer with the run, as it stands when the wait is over."""
        run = await self._find(request)
        await self._waited(run, asked.query(request, RunQuery).wait)
        return _json(run)

    @described(
        "A line of JSON for each step of a run, empty ones as signs of life, and the ended Run last.",
        media=LINES,
        refused=(404, 503),
    )
    async def progress(self, request: Request) -> Response:
        """Answer with a line per step, empty ones as signs of life, and the ended run last."""
        run = await self._find(request)

        async def lines() -> AsyncIterator[bytes]:
            if not self._waiting.locked():
                async with self._waiting:
                    async for step in self._account.runner.watch(run, KEEP_ALIVE_S):
                        yield (msgspec.json.encode(step) if step else b"") + b"\n"
            yield msgspec.json.encode(run) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @described(
        "The latest runs that began, newest first.",
        answer={"runs": list[Run]},
        query=RunsQuery,
        refused=(400, 503),
    )
    @described(
        "Ask for a run, which begins after this request; `join`: the one in progress will do.",
        answer=Run,
        method="POST",
        status=202,
        body=RunRequest,
        refused=(400, 409, 413),
    )
    async def runs(self, request: Request) -> Response:
        """Answer with the latest runs; a POST asks for one."""
        if request.method == "POST":
            wish = await asked.record(request, RunRequest)
            run = await self.start(request, events=wish.events, full=wish.full, join=wish.join)
            return _json(run, status=202)
        page = asked.query(request, RunsQuery)
        before = None if page.before is UNSET else page.before
        return _json({"runs": await self._account.runs(page.limit, before)})

    @described(
        "The live events; with `all` those that ended or vanished too.",
        answer={"events": list[Event]},
        query=EventsQuery,
        refused=(400, 503),
    )
    async def events(self, request: Request) -> Response:
        ended_too = bool(asked.query(request, EventsQuery).all)
        return _json({"events": await self._account.events(ended_too=ended_too)})

    @described("Start no more scheduled runs.", answer=StatusAfter, method="POST", refused=(503,))
    async def pause(self, request: Request) -> Response:
        return await self._pause(request, paused=True)

    @described("Start scheduled runs again.", answer=StatusAfter, method="POST", refused=(503,))
    async def resume(self, request: Request) -> Response:
        return await self._pause(request, paused=False)

    @described("Read the configuration again.", answer=StatusAfter, method="POST", refused=(422,))
    async def reload(self, _request: Request) -> Response:
        return _json(await self._reload())

    @described(
        "Whether health is ok, for monitors.",
        media=TEXT,
        also={503: "It is not; the text says why."},
    )
    async def healthz(self, _request: Request) -> Response:
        status = self._account.status()
        if status.health == "ok":
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"{status.health}: {status.health_reason}\n", 503)

    @described("The metrics, as Prometheus reads them.", media=TEXT)
    async def metrics(self, _request: Request) -> Response:
        return Response(exposition(self._account), media_type="text/plain; version=0.0.4; charset=utf-8")

    @described("This description, as OpenAPI 3.1.", answer=dict[str, Any])
    async def openapi(self, request: Request) -> Response:
        return _json(document(request.app.routes))

    async def _pause(self, request: Request, *, paused: bool) -> Response:
        is_new = await self._account.pause(paused=paused, requested_by=await asked.peer(request))
        return _json(after(self._account.status(), ["paused"] if is_new else []))

    async def _find(self, request: Request) -> Run:
        named = request.path_params["id"]
        run_id = asked.run_id(named)
        run = None if run_id is None else await self._account.find_run(run_id)
        if run is None:
            raise Refusal(404, "unknown_run", f"there is no run {named}")
        return run


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def error_answer(status: int, code: str, message: str) -> Response:
    """Return an error in the common form."""
    return _json({"error": {"code": code, "message": harmless(message)}}, status)


class _Cut:
    """Answers requests that a stop cuts off, if their answer has not begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        has_begun = False

        async def answer(message: Message) -> None:
            """Send a part of the answer."""
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            if has_begun:
                raise
            await error_answer(409, "stopping", "syncd is stopping")(scope, receive, send)


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error_answer(error.status, error.code, str(error))


CODE_OF = {404: "unknown_route", 405: "wrong_method"}


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODE_OF.get(error.status_code, "bad_request")
    answer = error_answer(
        error.status_code, code, f"{request.method} {request.scope['path']}: {error.detail}"
    )
    answer.headers.update(error.headers or {})
    return answer


async def _apologise(_request: Request, _bug: Exception) -> Response:
    """Answer in the usual form; the server logs the exception."""
    answer = error_answer(500, "internal", "syncd met an unexpected error, see its log; please report it")
    answer.headers["Connection"] = "close"  # uvicorn closes the connection after this: tell the client
    return answer


STATUS_OF: dict[type[SyncdError], int] = {ConfigError: 422, StoreError: 503, UnknownDelivery: 404}


async def _refuse_syncd(request: Request, error: Exception) -> Response:
    assert isinstance(error, SyncdError)
    status = next((code for kind, code in STATUS_OF.items() if isinstance(error, kind)), 409)
    return error_answer(status, error.kind, request.app.state.redact(str(error)))
