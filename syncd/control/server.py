"""The control server: HTTP on a Unix socket, for syncctl, curl, nginx and any site's server code.

It is handed the daemon's verbs and knows nothing of how they are done.
"""

import asyncio
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from grp import getgrnam
from pathlib import Path
from typing import Protocol, TypeVar

import h11
import msgspec
import uvicorn
from msgspec import Struct, field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from syncd import __version__
from syncd.account.status import Status
from syncd.database.lock import FileLock
from syncd.errors import AlreadyRunning, ConfigError, StoreError, SyncdError
from syncd.model import Doubt, Json, Peer, Progress, Run

B = TypeVar("B")
MAX_BODY_BYTES = 64 * 1024
MAX_WAIT_S = 60.0
MAX_RUNS = 1000
MAX_ID = 2**63 - 1
EVENT_ID = re.compile(r"[0-9]{1,20}")
KEEP_ALIVE_S = 5.0
"""A progress stream shows a sign of life this often; syncctl takes a longer silence for a dead daemon."""

LAST_WORDS_S = 0.1
"""How long a stop waits for the request of somebody who has just connected."""


class Verbs(Protocol):
    """What the daemon can do for whoever is let into the socket."""

    def status(self) -> Status:
        """Return the status, from memory."""

    async def request_run(
        self, *, full: bool, accept: bool, events: Sequence[str], join: bool, requested_by: Peer
    ) -> Run:
        """Return the run that serves the request. Raises Stopping."""

    async def find_run(self, run_id: int) -> Run | None:
        """Return a run by its id."""

    async def wait(self, run: Run, seconds: float) -> None:
        """Return when the run has ended or the time is over."""

    def watch(self, run: Run, keep_alive_s: float) -> AsyncIterator[Progress | None]:
        """Yield a run's steps until it has ended, None as a sign of life."""

    async def runs(self, limit: int, before: int | None) -> list[Run]:
        """Return the latest ended runs, newest first."""

    async def events(self, *, ended_too: bool) -> list[Json]:
        """Return the events with their availability."""

    async def doubts(self) -> list[Doubt]:
        """Return what is absent upstream and not believed gone yet."""

    async def pause(self, *, paused: bool) -> Status:
        """Stop or start scheduled runs, also over a restart."""

    async def reload(self) -> Status:
        """Read the configuration again. Raises ConfigError and changes nothing where it is bad."""

    def metrics(self) -> bytes:
        """Return the Prometheus text."""


class RunRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/runs`."""

    full: bool = False
    events: list[str] = field(default_factory=list)
    join: bool = False


class AcceptRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/accept`."""

    events: list[str] = field(default_factory=list)


class Refusal(Exception):  # an answer, not a fault
    """An answer other than success: HTTP status, stable code, a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def application(verbs: Verbs) -> Starlette:
    """Return the ASGI application that answers by these verbs."""
    routes = _Routes(verbs)
    return Starlette(
        routes=[
            Route("/v1/status", routes.status),
            Route("/v1/runs", routes.runs, methods=["GET", "POST"]),
            Route("/v1/runs/{id}", routes.run),
            Route("/v1/runs/{id}/progress", routes.progress),
            Route("/v1/events", routes.events),
            Route("/v1/doubts", routes.doubts),
            Route("/v1/accept", routes.accept, methods=["POST"]),
            Route("/v1/pause", routes.pause, methods=["POST"]),
            Route("/v1/resume", routes.resume, methods=["POST"]),
            Route("/v1/reload", routes.reload, methods=["POST"]),
            Route("/healthz", routes.healthz),
            Route("/metrics", routes.metrics),
        ],
        exception_handlers={
            Refusal: _refuse,
            HTTPException: _refuse_http,
            SyncdError: _refuse_syncd,
            Exception: _apologise,
        },
    )


class _Routes:
    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs

    async def status(self, _request: Request) -> Response:
        return _json(self._verbs.status())

    async def start_run(self, request: Request) -> Response:
        """Answer with the run that serves the request, queued or in progress."""
        asked = await _body(request, RunRequest)
        _check_ids(asked.events)
        run = await self._verbs.request_run(
            full=asked.full, accept=False, events=asked.events, join=asked.join, requested_by=_peer(request)
        )
        return _json(run, status=202)

    async def accept(self, request: Request) -> Response:
        """Answer with the run that marks vanished what is still absent."""
        asked = await _body(request, AcceptRequest)
        _check_ids(asked.events)
        run = await self._verbs.request_run(
            full=False, accept=True, events=asked.events, join=False, requested_by=_peer(request)
        )
        return _json(run, status=202)

    async def doubts(self, _request: Request) -> Response:
        return _json({"doubts": await self._verbs.doubts()})

    async def run(self, request: Request) -> Response:
        run = await self._find(request)
        wait_s = _seconds(request, "wait", MAX_WAIT_S)
        if wait_s:
            await self._verbs.wait(run, wait_s)
        return _json(run)

    async def progress(self, request: Request) -> Response:
        """Answer with a line per step, empty ones as signs of life, and the ended run last."""
        run = await self._find(request)

        async def lines() -> AsyncIterator[bytes]:
            async for step in self._verbs.watch(run, KEEP_ALIVE_S):
                yield (msgspec.json.encode(step) if step else b"") + b"\n"
            yield msgspec.json.encode(run) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def runs(self, request: Request) -> Response:
        """Answer with the latest runs; a POST asks for one."""
        if request.method == "POST":
            return await self.start_run(request)
        limit = _integer(request, "limit", 20, 1, MAX_RUNS)
        before = None
        if "before" in request.query_params:
            before = _integer(request, "before", 0, -MAX_ID, MAX_ID)
        return _json({"runs": await self._verbs.runs(limit, before)})

    async def events(self, request: Request) -> Response:
        wanted = request.query_params.get("all", "0")
        if wanted not in ("0", "1"):
            raise Refusal(400, "bad_request", "all: 0 or 1")
        return _json({"events": await self._verbs.events(ended_too=wanted == "1")})

    async def pause(self, _request: Request) -> Response:
        return _json(await self._verbs.pause(paused=True))

    async def resume(self, _request: Request) -> Response:
        return _json(await self._verbs.pause(paused=False))

    async def reload(self, _request: Request) -> Response:
        return _json(await self._verbs.reload())

    async def healthz(self, _request: Request) -> Response:
        status = self._verbs.status()
        if status.health == "ok":
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"{status.health}: {status.health_reason}\n", 503)

    async def metrics(self, _request: Request) -> Response:
        return Response(self._verbs.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _find(self, request: Request) -> Run:
        try:
            run_id = int(request.path_params["id"])
        except ValueError:
            run_id = MAX_ID + 1
        run = await self._verbs.find_run(run_id) if abs(run_id) <= MAX_ID else None
        if run is None:
            raise Refusal(404, "unknown_run", f"there is no run {request.path_params['id']}")
        return run


class ControlServer:
    """Serves an application on a Unix socket of its own making, until `stop`; `up` is set once it answers."""

    def __init__(
        self, path: Path, *, mode: int, group: str | None, inherited: socket.socket | None = None
    ) -> None:
        """Bind the socket. Raises AlreadyRunning where a syncd answers, ConfigError where it cannot be.

        One that is `inherited` from systemd is served as it is, and left in place at the end.
        """
        self.up = asyncio.Event()
        self._server: uvicorn.Server | None = None
        self._is_ours = inherited is None
        self.path = Path(inherited.getsockname()) if inherited else path
        self._lock = FileLock(path.with_name(path.name + ".lock"), f"the socket {path}")
        if inherited:
            self._socket = inherited
            return
        try:
            self._lock.acquire()
            self._socket = _bind(path, mode, group)
        except AlreadyRunning:
            self._lock.release()
            raise
        except (OSError, ConfigError) as error:
            self._lock.release()
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise ConfigError([f"control.socket: cannot make {path}: {reason}"]) from error

    async def serve(self, app: Starlette) -> None:
        """Answer until `stop`."""
        config = uvicorn.Config(
            app,
            http=_PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # who asks is the kernel's word alone
            server_header=False,
            headers=[("Syncd-Version", __version__)],
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config, self.up)
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Let no new request in and give those in progress a second; `serve` then returns."""
        if self._server:
            self._server.should_exit = True

    def remove(self) -> None:
        """Remove the socket, so that nobody finds it who would get no answer; leave systemd's own."""
        if self._is_ours:
            self.path.unlink(missing_ok=True)
        self._socket.close()
        self._lock.release()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, up: asyncio.Event) -> None:
        super().__init__(config)
        self._up = up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when connections are taken."""
        await super().startup(sockets)
        self._up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer those too who were let in at the last moment, then close what is left open."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_WORDS_S)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: they are the daemon's."""
        yield


class _PeerProtocol(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the kernel's word on who connected where ASGI has the client's address."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _gid = struct.unpack("iII", peer)
        self.client = (str(uid), pid)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP with an error of the same shape as all others."""
        answer = _error(400, "bad_request", msg)
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _peer(request: Request) -> Peer:
    client = request.client
    assert client is not None
    uid = int(client.host)
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return Peer(uid, user, client.port)


def socket_obstacle(path: Path, group: str | None) -> str | None:
    """Return what keeps syncd from making its socket, None where nothing does. Changes nothing."""
    if not path.parent.is_dir():
        return f"control.socket: the folder {path.parent} does not exist"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"control.socket: the folder {path.parent} is not writable for this user"
    if path.exists() and not path.is_socket():
        return f"control.socket: {path} is there and no socket; remove it, or choose another"
    if group is not None:
        try:
            getgrnam(group)
        except KeyError:
            return f"control.group: there is no group {group}"
    return None


def _bind(path: Path, mode: int, group: str | None) -> socket.socket:
    if path.exists() or path.is_symlink():
        _remove_stale(path)
    try:
        gid = None if group is None else getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError([f"there is no group {group} (control.group)"]) from None
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # nobody else can connect until group and mode are set
    try:
        server.bind(str(path))
    except OSError:
        server.close()
        raise
    finally:
        os.umask(before)
    try:
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(mode)
    except OSError as error:
        server.close()
        path.unlink(missing_ok=True)
        raise ConfigError(
            [f"{error.strerror}: is the user in the group {group}, and may the unit chown? See syncd.service"]
        ) from error
    return server


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed daemon left behind; never anything else."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError([f"{path} is there and no socket; remove it, or change control.socket"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise AlreadyRunning(f"something answers on the socket {path} already")


def _check_ids(events: Sequence[str]) -> None:
    for event_id in events:
        if not EVENT_ID.fullmatch(event_id):
            raise Refusal(400, "bad_request", f"events: {event_id!r} is not an event id (digits)")


async def _body(request: Request, kind: type[B]) -> B:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise Refusal(413, "too_large", f"the body is over {MAX_BODY_BYTES} bytes")
    except ClientDisconnect as error:  # nobody is there any more to read this
        raise Refusal(400, "bad_request", "the body broke off") from error
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, "bad_request", f"the body does not fit: {error}") from error


def _seconds(request: Request, name: str, most: float) -> float:
    try:
        seconds = float(request.query_params.get(name, 0.0))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= most:  # refuses nan too
        raise Refusal(400, "bad_request", f"{name}: from 0 to {most:g} seconds")
    return seconds


def _integer(request: Request, name: str, default: int, least: int, most: int) -> int:
    try:
        number = int(request.query_params.get(name, default))
    except ValueError:
        number = most + 1
    if not least <= number <= most:
        raise Refusal(400, "bad_request", f"{name}: a whole number from {least} to {most}")
    return number


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _error(status: int, code: str, message: str) -> Response:
    return _json({"error": {"code": code, "message": message}}, status)


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _error(error.status, error.code, str(error))


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "unknown_route", 405: "wrong_method"}.get(error.status_code, "bad_request")
    answer = _error(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    answer.headers.update(error.headers or {})
    return answer


async def _apologise(_request: Request, _bug: Exception) -> Response:
    """Answer in the usual shape; the server logs the exception."""
    answer = _error(500, "internal", "syncd met an unexpected error, see its log; please report it")
    answer.headers["Connection"] = "close"  # uvicorn hangs up after this: the client had better know
    return answer


STATUS_OF: dict[type[SyncdError], int] = {ConfigError: 422, StoreError: 503}


async def _refuse_syncd(_request: Request, error: Exception) -> Response:
    assert isinstance(error, SyncdError)
    status = next((code for kind, code in STATUS_OF.items() if isinstance(error, kind)), 409)
    return _error(status, error.kind, str(error))
