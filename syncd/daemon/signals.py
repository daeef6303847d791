"""Receives the daemon's signals beside the event loop, so that they arrive while the loop is blocked."""

import signal
import socket
import threading
from collections.abc import Callable

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_WITHIN_S = 4.5
"""So long after a signal a stop no longer waits for anything: people were told five seconds."""


class Signals:
    """Calls `heard` with each of HEARD, from a thread of its own, until `close`.

    Python's handler in C writes a signal's number to a socket at once, whichever thread receives it and
    whatever that thread does; a thread of its own reads the socket. `signal` requires the main thread to
    create and close it. asyncio's own handlers would replace this socket.
    """

    def __init__(self, heard: Callable[[signal.Signals], None]) -> None:
        self._heard = heard
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        for number in HEARD:
            signal.signal(number, lambda *_: None)  # so that the signal ends nothing
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. These signals no longer end the process: it is ending anyway."""
        hear_no_more()
        signal.set_wakeup_fd(self._wakeup_before)
        self._theirs.close()
        self._thread.join()
        self._ours.close()

    def _listen(self) -> None:
        while heard := self._ours.recv(1):
            if heard[0] in HEARD:  # others have handlers of their own
                self._heard(signal.Signals(heard[0]))


def hear_no_more() -> None:
    """Ignore the signals from now on: this process is ending anyway. Called from the main thread."""
    for number in HEARD:
        signal.signal(number, signal.SIG_IGN)
