"""The connections to the control server: how many there may be, and how long they may be silent.

They are accepted here and not by asyncio, which accepts any number, and logs without end when no more files
can be opened.
"""

import asyncio
import resource
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate

import h11
from loguru import logger
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from syncd.control.api import error_answer
from syncd.log.repeats import Repeats
from syncd.text import count
from syncd.threads import Background

MOST = 512
"""At most this many connections: more than people and sites need, and half of the files systemd allows."""
SHARE = 0.5
"""The share of the limit of open files for connections; the database and Billetweb use the rest."""
REQUEST_WITHIN_S = 10.0
"""From the connection, or the previous answer, to a request's last byte: programs take milliseconds; a
person who types it has this long."""
SILENT_S = 0.5
"""A peer that has been silent for this long is dropped if there is no room: programs ask at once."""
STALLED_S = 60.0
"""A peer that reads nothing of an answer for this long is gone, or does not want it."""
AT_ONCE = 16
"""How many are accepted before the existing ones are served."""
RETRY_S = 0.1
"""How soon to check again for room."""
BACKLOG = 1024
"""How many may wait to be accepted meanwhile."""


def connections_at_most() -> int:
    """Return how many connections there may be, by this process's limit of open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else min(MOST, int(files * SHARE))


class Peers:
    """All that are `connected`, and since when those that owe a request are `silent`."""

    def __init__(self, most: int) -> None:
        self.connected: set[PeerProtocol] = set()
        self.silent: dict[PeerProtocol, float] = {}
        self._most = most
        self._told = Repeats()

    def has_room(self, coming: int, now: float) -> bool:
        """Return whether there is room for one more besides the `coming`; if not, drop silent peers."""
        if len(self.connected) + coming < self._most:
            return True
        silent = [peer for peer, since in self.silent.items() if now - since >= SILENT_S]
        if silent:
            self.tell(f"{self._most} connections are open: those that have said nothing are dropped")
        for peer in silent:
            peer.transport.abort()
        return False

    def tell(self, what: str) -> None:
        """Log a problem with connections, the same one at most once an hour."""
        untold = self._told.untold(what)
        if untold is not None:
            again = f" ({count(untold, 'time')} more since it was last told)" if untold else ""
            logger.bind(event="control.crowded").warning("control server: {}{}", what, again)


class PeerProtocol(H11Protocol):
    """One connection: HTTP with deadlines; the kernel says who the peer is."""

    def __init__(self, config: Config, state: ServerState, peers: Peers) -> None:
        super().__init__(config, state, {})
        self._peers = peers
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._left = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Store the user and process that the kernel reports as the client's address in ASGI."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` is called for any unsent data
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _gid = struct.unpack("iII", peer)
        self.client = (str(uid), pid)
        self._peers.connected.add(self)
        self._set_date()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._peers.connected.discard(self)
        self._look()
        self._end_stall()

    def data_received(self, data: bytes) -> None:
        """Receive data."""
        self._set_date()
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._look()

    def _set_date(self) -> None:
        """Give the answers the present date; a clock for that would wake an idle daemon up each second."""
        date = formatdate(usegmt=True).encode()
        self.server_state.default_headers = [(b"date", date), *self.config.encoded_headers]

    def _look(self) -> None:
        """Set the deadline if a request, or the rest of one, is expected; else cancel it."""
        if not self.transport.is_closing() and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._peers.silent.setdefault(self, self.loop.time())
            self._deadline = self._deadline or self.loop.call_later(REQUEST_WITHIN_S, self._give_up)
        else:
            self._peers.silent.pop(self, None)
            if self._deadline:
                self._deadline.cancel()
                self._deadline = None

    def _give_up(self) -> None:
        self._refuse(408, "too_slow", f"no complete request within {REQUEST_WITHIN_S:g} s")
        self.transport.close()

    def pause_writing(self) -> None:
        """Wait until the peer has read what was written, as long as it reads at all."""
        super().pause_writing()
        self._left = self.transport.get_write_buffer_size()
        self._stall = self._stall or self.loop.call_later(STALLED_S, self._look_at_stall)

    def resume_writing(self) -> None:
        """Continue: the peer has read all that was written."""
        super().resume_writing()
        self._end_stall()

    def _look_at_stall(self) -> None:
        left, self._stall = self.transport.get_write_buffer_size(), None
        if left >= self._left:
            self.transport.abort()
        else:
            self._left = left
            self._stall = self.loop.call_later(STALLED_S, self._look_at_stall)

    def _end_stall(self) -> None:
        if self._stall:
            self._stall.cancel()
            self._stall = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with an error in the common form."""
        self._refuse(400, "bad_request", msg)
        self.transport.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return  # it was answered
        answer = error_answer(status, code, message)
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")


class Listener:
    """Accepts connections to a socket, while there is room, until `close`."""

    def __init__(
        self, listening: socket.socket, peers: Peers, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._socket = listening
        self._peers = peers
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._coming = Background()
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._resume()

    def close(self) -> None:
        """Stop accepting."""
        self._pause()
        self._socket.close()

    def _resume(self) -> None:
        self._retry = None
        self._loop.add_reader(self._socket, self._accept)

    def _pause(self, seconds: float | None = None) -> None:
        if self._retry:
            self._retry.cancel()
            self._retry = None
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
        if seconds is not None:
            self._retry = self._loop.call_later(seconds, self._resume)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if not self._peers.has_room(len(self._coming), self._loop.time()):
                self._pause(RETRY_S)
                return
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no file is left, or no memory
                self._peers.tell(f"nobody is let in for the moment: {error.strerror}")
                self._pause(RETRY_S)
                return
            connection.setblocking(False)
            self._coming.start(self._let_in(connection))

    async def _let_in(self, connection: socket.socket) -> None:
        with suppress(OSError):  # gone already
            await self._loop.connect_accepted_socket(self._protocol, connection)
