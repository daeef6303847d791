"""How far a run is, on the last line of the terminal that stderr is, while somebody waits for its end."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from syncd import text
from syncd.text import Json

TYPE_CHECKING = False  # importing typing would cost `syncctl` a tenth of its start
if TYPE_CHECKING:
    from typing import TextIO

REFRESH_S = 0.25
"""How often the line is drawn: often enough to show every second of a wait."""
ERASED = "\r\x1b[2K"


def erase() -> None:
    """Leave nothing on the last line, at the end of a program that has no time for more."""
    with contextlib.suppress(OSError):
        if text.can_be_drawn_on(sys.stderr):
            _write(ERASED)


def _write(shown: str) -> None:
    """Write to the terminal, unless it stands still, as behind Ctrl-S or a dead connection: a run goes on."""
    if select.select([], [sys.stderr], [], 0)[1]:
        sys.stderr.write(shown)
        sys.stderr.flush()


@contextlib.contextmanager
def last_line(told: Callable[[float], tuple[Json, str]]) -> Iterator[TextIO]:
    """Draw the line until this is left; yield a stream for what is to stand above it.

    `told` is called in a thread, with the seconds since the beginning, and returns a Progress of the control
    API and the figures beside it.
    """
    line, over = _Line(told), threading.Event()

    def draw() -> None:
        with contextlib.suppress(OSError):  # the terminal went away, which must not fail the run
            while not over.wait(REFRESH_S):
                line.draw()

    drawing = threading.Thread(target=draw, name="last line", daemon=True)
    drawing.start()
    try:
        yield line
    finally:
        over.set()
        drawing.join()
        with contextlib.suppress(OSError):
            line.erase()


class _Line(io.StringIO):
    """The line, and the terminal above it."""

    def __init__(self, told: Callable[[float], tuple[Json, str]]) -> None:
        super().__init__()
        self._told = told
        self._began = time.monotonic()
        self._unicode = "utf" in (sys.stderr.encoding or "").lower()
        self._shown = ""
        self._lock = threading.Lock()

    def draw(self) -> None:
        progress, figures = self._told(time.monotonic() - self._began)
        width = (os.get_terminal_size(sys.stderr.fileno()).columns or text.USUAL_WIDTH) - text.ECHO
        line = text.progress_line(progress, figures, datetime.now(UTC), width, unicode=self._unicode)
        self._put("", line)

    def erase(self) -> None:
        self._put("", "")

    def write(self, above: str) -> int:
        self._put(above, self._shown)
        return len(above)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return sys.stderr.fileno()  # the log waits a moment for one that stands still

    def _put(self, above: str, line: str) -> None:
        with self._lock:
            self._shown = line
            _write(f"{ERASED}{above}{line}")
