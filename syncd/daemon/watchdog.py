"""Feeds systemd's watchdog, but only after checking that the daemon works; logs the reason if it does not.

It is a thread of its own, because it must detect a blocked event loop. What it cannot detect, a stopped
process or a deadlock that blocks it too, systemd notices by its silence.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from loguru import logger

from syncd.daemon.notify import Notifier

LATE_S = 10.0
"""A slot overdue by this much shows a dead scheduler: a live one is milliseconds late."""
OVERRUN_S = 150.0
"""A run past its deadline by this much hangs: on a slow server the current statement may take a minute more,
its time-out, and so may the one that records the run's end. SQLite's waits are of 3 s."""


class Watchdog(threading.Thread):
    """Pings systemd each `every_s` seconds while all checks pass; asks for a restart when one fails.

    `is_inherited`: systemd made the socket. `schedule_is_alive` says whether a next slot will come,
    `slot_overdue_s` and `run_overdue_s` how late the schedule and the run in progress are; all are called
    from this thread. A problem must last for half of `every_s`, so that a short load, or a clock just
    stepped, causes no restart. By then less than twice `every_s` has passed since the last ping.
    """

    def __init__(
        self,
        notifier: Notifier,
        every_s: float,
        *,
        path: Path,
        is_inherited: bool,
        schedule_is_alive: Callable[[], bool],
        slot_overdue_s: Callable[[], float],
        run_overdue_s: Callable[[], float],
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._notifier = notifier
        self._every_s = every_s
        self._path = path
        self._is_inherited = is_inherited
        self._schedule_is_alive = schedule_is_alive
        self._slot_overdue_s = slot_overdue_s
        self._run_overdue_s = run_overdue_s
        self._quit = threading.Event()

    def stop(self) -> None:
        """Stop feeding; systemd expects no pings from a service that is stopping."""
        self._quit.set()

    def run(self) -> None:
        """Feed until `stop`, or until a problem lasts."""
        while not self._quit.wait(self._every_s):
            trouble = self._lasting_trouble()
            if self._quit.is_set():
                return
            if trouble:
                logger.bind(event="watchdog").critical("{}: asking systemd for a restart", trouble)
                self._notifier.send(STATUS=f"hangs: {trouble}", WATCHDOG="trigger")
                return
            self._notifier.send(WATCHDOG="1")

    def _lasting_trouble(self) -> str | None:
        """Return None as soon as nothing is wrong, or the problem once it has lasted."""
        patience_s = self._every_s / 2
        until = time.monotonic() + patience_s
        while True:
            trouble = self._trouble(patience_s / 4)
            if trouble is None or time.monotonic() >= until or self._quit.wait(patience_s / 10):
                return trouble

    def _trouble(self, timeout_s: float) -> str | None:
        if not self._schedule_is_alive():
            return "the scheduler is dead: nothing is set to wake it"
        if (late_s := self._slot_overdue_s()) > LATE_S:
            return f"the scheduler is dead: a scheduled run has been due for {late_s:.0f} s"
        if (late_s := self._run_overdue_s()) > OVERRUN_S:
            return f"the run in progress hangs: its deadline passed {late_s:.0f} s ago"
        try:
            answer = _first_line(self._path, timeout_s)
        except OSError as error:
            if self._is_inherited and isinstance(error, FileNotFoundError):
                return None  # only systemd's socket unit can create it again, no restart can
            return f"the control server does not answer: {error}"
        return None if b" 200 " in answer else f"the control server answers {answer!r}"


def _first_line(path: Path, timeout_s: float) -> bytes:
    """Return the status line of the answer to a real request. Raises OSError, including TimeoutError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall(b"GET /v1/status HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as answer:
            return answer.readline(100)


def interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the feeding interval, half of what systemd allows (sd_watchdog_enabled(3)); None for never."""
    allowed_us = environ.get("WATCHDOG_USEC", "")
    is_number = allowed_us.isdecimal() and len(allowed_us) < 20  # noqa: PLR2004 - an uint64 has no more
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid) or not is_number:
        return None
    return int(allowed_us) / 2e6 or None
