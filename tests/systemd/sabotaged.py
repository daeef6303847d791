"""The daemon itself, with ways to break for good what its watchdog looks after: a signal for each.

Only its patience with a run past its deadline is shorter: OVERRUN_S.
"""

import asyncio
import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NoReturn

from syncd.account.schedule import Schedule
from syncd.billetweb import decode
from syncd.cli import main as cli
from syncd.daemon import watchdog

OVERRUN_S = 10.0
start_schedule = Schedule.start


def block_the_loop() -> None:
    """Hold the event loop up, and so all that happens on it."""
    threading.Event().wait()


def hold_the_interpreter() -> None:
    """Let no other thread run any Python, as a library does whose call comes to no end."""
    ctypes.PyDLL(None).sleep(3600)


def never_return(*_body: object, **_about: object) -> NoReturn:
    """Be what a run does in a thread: neither its time-out nor a cancellation can end it."""
    while True:
        threading.Event().wait()


def hang_runs() -> None:
    """Let the next run hang at the first answer that it decodes."""
    decode.decode_events = never_return


def start(self: Schedule, interval: timedelta, jitter: timedelta, first: datetime) -> None:
    """Start the schedule, and listen to signals that the daemon does not use."""
    start_schedule(self, interval, jitter, first)
    loop = asyncio.get_running_loop()

    def on(number: signal.Signals, do: Callable[..., object], *arguments: object) -> None:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(do, *arguments))

    on(signal.SIGURG, hold_the_interpreter)
    on(signal.SIGUSR1, block_the_loop)
    on(signal.SIGUSR2, self._scheduler._stop_timer)
    on(signal.SIGVTALRM, self._scheduler._start_timer, 3600)
    on(signal.SIGWINCH, hang_runs)


if __name__ == "__main__":
    Schedule.start = start  # type: ignore[method-assign]
    watchdog.OVERRUN_S = OVERRUN_S
    sys.exit(cli.main())
