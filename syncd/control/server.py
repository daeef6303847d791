"""The control server: HTTP on a Unix socket, for syncctl, curl, nginx and any site's server code.

It serves whatever application it is handed, and says who asks, by the kernel's word.
"""

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from grp import getgrnam
from pathlib import Path

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from syncd import __version__
from syncd.control.api import error_answer
from syncd.database.lock import FileLock
from syncd.errors import AlreadyRunning, ConfigError

LAST_WORDS_S = 0.1
"""How long a stop waits for the request of somebody who has just connected."""


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
        answer = error_answer(400, "bad_request", msg)
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


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
