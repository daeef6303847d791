"""Shows the progress of `syncd once`: a bar below the log on a terminal, elsewhere a line now and then."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import msgspec
from loguru import logger

from syncd.billetweb.limiter import WINDOW_S
from syncd.lastline import last_line
from syncd.model import Json, Progress, Run
from syncd.text import can_be_drawn_on, count, format_duration, run_name

TELL_EVERY_S = 30.0
TELLING = 10
"""From this many events on, the rest is estimated; with fewer, too many requests are still in progress."""

Show = Callable[[Run], None]


@contextmanager
def shown(per_minute: int, log_to: Callable[[TextIO | None], None]) -> Iterator[Show]:
    """Yield a callback that takes a run at each of its steps. `per_minute` is the request limit.

    `log_to` sends the log to another stream, and with None back to stderr.
    """
    if not can_be_drawn_on(sys.stderr):
        yield Teller(per_minute)
        return
    run: Run | None = None

    def show(latest: Run) -> None:
        nonlocal run
        run = latest

    def told(elapsed_s: float) -> tuple[Json, str]:
        if not run:
            return msgspec.to_builtins(Progress("starting")), format_duration(int(elapsed_s))
        progress = run.progress or Progress("ending")
        return msgspec.to_builtins(progress), _figures(run, elapsed_s, per_minute)

    try:
        with last_line(told) as above:
            log_to(above)
            yield show
    finally:
        log_to(None)


class Teller:
    """Logs a long run's progress. `clock` is monotonic seconds."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._began = self._told_at = clock()

    def __call__(self, run: Run) -> None:
        """Log the run's progress, unless that was done recently."""
        now, progress = self._clock(), run.progress
        if not progress or progress.phase == "listing" or now - self._told_at < TELL_EVERY_S:
            return
        self._told_at = now
        log = logger.bind(
            event="run.progress",
            run=run.id,
            done=progress.done,
            total=progress.total,
            requests=run.requests,
        )
        figures = _figures(run, now - self._began, self._per_minute)
        far = f"{progress.done} of {count(progress.total, 'event')}" if progress.total else progress.phase
        log.info("{}: {}, {}", run_name(run.id), far, figures)


def _figures(run: Run, elapsed_s: float, per_minute: int) -> str:
    """Return rows and requests of a run so far, the time taken, and the estimated rest."""
    rows = run.counts.changed + run.counts.unchanged
    parts = [f"{count(rows, 'row')} ({rows / elapsed_s:.0f}/s)"] if rows and elapsed_s else []
    parts += [count(run.requests, "request"), format_duration(int(elapsed_s))]
    if rest_s := remaining_s(run, elapsed_s, per_minute):
        step = 60 if rest_s > 60 else 10  # noqa: PLR2004 - a minute
        parts.append(f"about {format_duration(math.ceil(rest_s / step) * step)} left")
    return ", ".join(parts)


def remaining_s(run: Run, elapsed_s: float, per_minute: int) -> float:
    """Return about how long a run's other events will take; 0 while that is unknown, or none is left.

    It follows from the pace so far, but is at least what the request limit requires, which lets the requests
    of the first minute through at once.
    """
    progress = run.progress
    if not progress or progress.done < TELLING:
        return 0
    rest = (progress.total - progress.done) / progress.done
    requests = run.requests * (1 + rest)
    return max(elapsed_s * rest, (requests / per_minute - 1) * WINDOW_S - elapsed_s) if rest else 0
