"""The control server: HTTP on a Unix socket, for syncctl, curl, nginx and any site's server code.

It serves any application passed to it, and tells it who asks, as the kernel reports it.
"""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Callable
from grp import getgrnam
from pathlib import Path

import uvicorn
from loguru import logger
from starlette.applications import Starlette
from uvicorn.server import ServerState

from syncd import __version__
from syncd.control.peers import Listener, PeerProtocol, Peers, connections_at_most
from syncd.database.lock import FileLock, identity
from syncd.errors import AlreadyRunning, ConfigError, SyncdError, reason
from syncd.log.repeats import Repeats
from syncd.threads import in_thread

LAST_WORDS_S = 0.1
"""How long a stop waits for the request of a peer that has just connected."""
GRACE_STEPS, GRACE_STEP_S = 10, 0.1
"""How often, and how soon, it looks whether all answers are complete; then it cuts them off."""
LOOK_EVERY_S = 5.0
"""How often to check that the socket is still there: sooner than people ask twice."""


class ControlServer:
    """Serves an application on a Unix socket of its own making, until `stop`; `up` is set once it answers."""

    def __init__(
        self, path: Path, *, mode: int, group: str | None, inherited: socket.socket | None = None
    ) -> None:
        """Bind the socket. Raises AlreadyRunning if a syncd answers there, ConfigError if binding fails.

        A socket `inherited` from systemd is used as it is, and left in place at the end.
        """
        self.up = asyncio.Event()
        self._ending = asyncio.Event()
        self._state = ServerState()
        self._mode = mode
        self._group = group
        self._told = Repeats()
        self._is_ours = inherited is None
        self.path = Path(inherited.getsockname()) if inherited else path
        self._identity: tuple[int, int] | None = None
        self._lock = FileLock(path.with_name(path.name + ".lock"), f"the socket {path}")
        if inherited:
            self._socket = inherited
            self._identity = identity(self.path, follow_links=False)
            return
        try:
            self._lock.acquire()
            self._bind()
        except OSError as error:
            self._lock.release()
            raise ConfigError([f"control.socket: cannot make {path}: {reason(error)}"]) from error
        except SyncdError:
            self._lock.release()
            raise

    async def serve(self, app: Starlette) -> None:
        """Answer until `stop`, by uvicorn's protocol alone: its server takes signals, and seldom sleeps."""
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # who asks is the kernel's word alone
            server_header=False,
            headers=[("Syncd-Version", __version__)],
        )
        config.load()
        logging.getLogger("uvicorn.error").addFilter(_is_no_cut)
        peers = Peers(connections_at_most())

        def listener() -> Listener:
            return Listener(self._socket, peers, lambda: PeerProtocol(config, self._state, peers))

        self._listener = listener()
        looking = asyncio.create_task(self._look_for_ever(listener))
        self.up.set()
        try:
            await self._ending.wait()
        finally:
            looking.cancel()  # before the end: a socket made anew meanwhile would let more in
            await asyncio.wait({looking})
        await self._end()

    async def _end(self) -> None:
        """Answer also the peers accepted at the last moment, then close what is still open."""
        self._listener.close()
        await asyncio.sleep(LAST_WORDS_S)
        for connection in [*self._state.connections]:
            connection.shutdown()
        for _ in range(GRACE_STEPS):
            if self._state.connections or self._state.tasks:
                await asyncio.sleep(GRACE_STEP_S)
        for task in self._state.tasks:
            task.cancel()

    async def _look_for_ever(self, listener: Callable[[], Listener]) -> None:
        """Create the socket again if somebody removed it, perhaps with its folder."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            found = identity(self.path, follow_links=False)
            if found and found == self._identity:  # neither is known of one that was removed as it was made
                continue
            if not self._is_ours:
                self._tell(f"the socket {self.path} is gone: `systemctl restart syncd.socket` makes it anew")
                continue
            try:
                await in_thread(self._bind)
            except (OSError, SyncdError) as error:
                self._tell(f"the socket {self.path} is gone and cannot be made anew: {error}")
            else:
                self._listener.close()
                self._listener = listener()
                logger.bind(event="socket.remade").warning("the socket {} was removed: made anew", self.path)

    def _tell(self, what: str) -> None:
        if self._told.untold(what) is not None:
            logger.bind(event="socket.gone").error("{}", what)

    def _bind(self) -> None:
        self._socket = _bind(self.path, self._mode, self._group)
        self._identity = identity(self.path, follow_links=False)

    def stop(self) -> None:
        """Accept no new request and give those in progress a second; then `serve` returns."""
        self._ending.set()

    def remove(self) -> None:
        """Remove the socket, so that no client finds one that does not answer; leave systemd's own.

        A socket that another program put in its place is left too.
        """
        # The number of this file cannot be reused before it is closed.
        if self._is_ours and self._identity and identity(self.path, follow_links=False) == self._identity:
            self.path.unlink(missing_ok=True)
        self._identity = None
        self._socket.close()
        self._lock.release()


def _is_no_cut(record: logging.LogRecord) -> bool:
    """Return whether to log this of uvicorn's: not that a stop cut requests off, which is meant.

    What the daemon hangs at, if anything, it says itself.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def socket_obstacle(path: Path, group: str | None) -> str | None:
    """Return what keeps syncd from making its socket, None where nothing does. Changes nothing."""
    try:
        if not path.parent.is_dir():
            return f"control.socket: the folder {path.parent} does not exist"
        if not os.access(path.parent, os.W_OK | os.X_OK):
            return f"control.socket: the folder {path.parent} is not writable for this user"
        if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
            return f"control.socket: {path} is there and no socket; remove it, or choose another"
    except OSError as error:  # a closed folder, too long a name
        return f"control.socket: cannot make {path}: {error.strerror}"
    if group is not None:
        try:
            getgrnam(group)
        except KeyError:
            return f"control.group: there is no group {group}"
    return None


def _bind(path: Path, mode: int, group: str | None) -> socket.socket:
    if obstacle := socket_obstacle(path, group):
        raise ConfigError([obstacle])
    if os.path.lexists(path):
        _remove_stale(path)
    gid = None if group is None else getgrnam(group).gr_gid
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody else can connect until group and mode are set. Not by umask: that is for all threads.
        os.fchmod(server.fileno(), 0o600)
        server.bind(str(path))
    except OSError:
        server.close()
        raise
    try:
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(mode)
    except OSError as error:
        server.close()
        path.unlink(missing_ok=True)
        advice = f"is the user in the group {group}, and may the unit chown? See syncd.service"
        raise ConfigError([f"control.group: {error.strerror}: {advice}"]) from error
    return server


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed daemon left behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise AlreadyRunning(f"something answers on the socket {path} already")
