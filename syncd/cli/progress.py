"""Shows the progress of `syncd once`: a bar on a terminal, elsewhere a line now and then.

The bar is on the terminal's last line; log lines are written above it, and it disappears at the end. Uses
rich.
"""

import io
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TextIO

import msgspec
from loguru import logger
from rich.console import Console
from rich.live import Live
from rich.text import Text

from syncd.billetweb.limiter import WINDOW_S
from syncd.model import Progress, Run
from syncd.text import ECHO, can_be_drawn_on, count, format_duration, progress_line, run_name

REFRESH_S = 0.25
"""How often the bar is redrawn: rich's own pace."""
TELL_EVERY_S = 30.0
TELLING = 10
"""From this many events on, the rest is estimated; with fewer, too many requests are still in progress."""

Show = Callable[[Run], None]


@contextmanager
def shown(per_minute: int, log_to: Callable[[TextIO | None], None]) -> Iterator[Show]:
    """Yield a callback that takes a run at each of its steps. `per_minute` is the request limit.

    `log_to` sends the log to another stream, and with None back to stderr.
    """
    console = Console(stderr=True)
    if not can_be_drawn_on(sys.stderr) or not console.is_interactive:
        yield Teller(per_minute)
        return
    bar = _Bar(per_minute, console)
    live = Live(
        console=console,
        get_renderable=bar.drawn,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,  # only the log is written there, and it keeps its own redaction
    )
    # One thread at a time draws and writes: rich releases its own lock in between, and a bar might remain.
    drawing, over = threading.Lock(), threading.Event()

    def refresh() -> None:
        with suppress(OSError):  # the terminal went away, which must not fail the run
            while not over.wait(REFRESH_S):
                with drawing:
                    live.refresh()

    refreshing = threading.Thread(target=refresh, name="bar", daemon=True)
    log_to(_AboveTheBar(console, drawing))
    try:
        with suppress(OSError), drawing:
            live.start(refresh=True)
        refreshing.start()
        yield bar.show
    finally:
        over.set()
        refreshing.join()
        with suppress(OSError):
            live.stop()
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


class _Bar:
    """The content of the bar; drawn from a thread of its own."""

    def __init__(self, per_minute: int, console: Console) -> None:
        self._per_minute = per_minute
        self._console = console
        self._began = time.monotonic()
        self._run: Run | None = None

    def show(self, run: Run) -> None:
        self._run = run

    def drawn(self) -> Text:
        """Return the current line."""
        run = self._run
        progress = (run.progress or Progress("ending")) if run else Progress("starting")
        elapsed_s = time.monotonic() - self._began
        figures = _figures(run, elapsed_s, self._per_minute) if run else format_duration(int(elapsed_s))
        told, now = msgspec.to_builtins(progress), datetime.now(UTC)
        is_unicode = self._console.encoding.startswith("utf")
        line = progress_line(told, figures, now, self._console.width - ECHO, unicode=is_unicode)
        return Text(line, no_wrap=True)


class _AboveTheBar(io.StringIO):
    """The terminal, for lines above the bar."""

    def __init__(self, console: Console, drawing: threading.Lock) -> None:
        super().__init__()
        self._console = console
        self._drawing = drawing

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        # The terminal wraps it, so that a long line is copied as one.
        with self._drawing:
            self._console.print(Text.from_ansi(text.removesuffix("\n")), soft_wrap=True)
        return len(text)


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
