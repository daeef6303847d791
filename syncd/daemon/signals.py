"""Receives the daemon's signals beside the event loop, so that they arrive while the loop is blocked."""

import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NONE = b"\0"
STOP_WITHIN_S = 4.5
"""So long after a signal a stop no longer waits for anything: people were told five seconds."""


class Signals:
    """Calls `heard` with each of HEARD, from a thread of its own, until `close`; keeps the limit of a stop.

    Python's handler in C writes a signal's number to a socket at once, whichever thread receives it and
    whatever that thread does; a thread of its own reads the socket. `signal` requires the main thread to
    create and close it. asyncio's own handlers would replace this socket.
    """

    def __init__(self, heard: Callable[[signal.Signals], None]) -> None:
        self._heard = heard
        self._until_s: float | None = None
        self._over: Callable[[], None] = lambda: None
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        for number in HEARD:
            signal.signal(number, lambda *_: None)  # so that the signal ends nothing
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def limit(self, seconds: float, over: Callable[[], None]) -> None:
        """Call `over` in so many seconds, unless this is closed before; from a thread that is there already.

        A machine that has none left for a new one must not keep a process that was asked to end.
        """
        self._over, self._until_s = over, time.monotonic() + seconds
        with suppress(OSError):  # full: the thread does not wait; or closed: it is ending
            self._theirs.send(NONE)

    def close(self) -> None:
        """Stop listening. These signals no longer end the process: it is ending anyway."""
        hear_no_more()
        signal.set_wakeup_fd(self._wakeup_before)
        self._theirs.close()
        self._thread.join()
        self._ours.close()

    def _listen(self) -> None:
        while heard := self._next():
            if heard[0] in HEARD:  # others have handlers of their own
                self._heard(signal.Signals(heard[0]))

    def _next(self) -> bytes:
        """Return a signal's number, or NONE where there is a limit or it is over; nothing at the end."""
        self._ours.settimeout(None if self._until_s is None else max(self._until_s - time.monotonic(), 0.001))
        try:
            return self._ours.recv(1)
        except TimeoutError:
            self._until_s = None
            self._over()
            return NONE


def hear_no_more() -> None:
    """Ignore the signals from now on: this process is ending anyway. Called from the main thread."""
    for number in HEARD:
        signal.signal(number, signal.SIG_IGN)
