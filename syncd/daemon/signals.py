"""Takes the signals that a daemon is sent, beside the event loop: they are heard while that is blocked."""

import signal
import socket
import threading
from collections.abc import Callable


class Signals:
    """Calls `heard` with each of these signals, from a thread of its own, until `close`.

    Python's handler in C writes a signal's number to a socket at once, in whichever thread it arrives and
    whatever that is at; a thread of its own reads there. The main thread makes and closes it: `signal` asks
    for that. asyncio's own handlers would take the place of this socket.
    """

    def __init__(self, numbers: set[signal.Signals], heard: Callable[[signal.Signals], None]) -> None:
        self._numbers = numbers
        self._heard = heard
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _do_nothing)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear no more. None of these signals ends the process any more: it ends by itself."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wakeup_before)
        self._theirs.close()
        self._thread.join()
        self._ours.close()

    def _listen(self) -> None:
        while heard := self._ours.recv(1):
            if heard[0] in self._numbers:  # others have handlers of their own
                self._heard(signal.Signals(heard[0]))


def hear_no_more() -> None:
    """Have no signal end this process any more, which is ending by itself. Called from the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _do_nothing(_number: int, _frame: object) -> None:
    """Be a handler, so that the signal ends nothing."""
