"""Takes the signals that a daemon is sent, beside the event loop: they are heard while that is blocked."""

import signal
import threading
from collections.abc import Callable


class Signals:
    """Calls `heard` with each of these signals, from a thread of its own, until `close`.

    They are blocked in this thread and in those started from now on: the kernel keeps them for that one.
    """

    def __init__(self, numbers: set[signal.Signals], heard: Callable[[signal.Signals], None]) -> None:
        self._numbers = numbers
        self._heard = heard
        self._is_closed = False
        self._mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear no more; to be called by the thread that began it."""
        self._is_closed = True
        assert self._thread.ident
        signal.pthread_kill(self._thread.ident, next(iter(self._numbers)))
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)

    def _listen(self) -> None:
        while True:
            number = signal.sigwait(self._numbers)
            if self._is_closed:
                return
            self._heard(signal.Signals(number))
