"""The line that shows the progress of a run while somebody waits, on a terminal's last line."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from syncd import text

TYPE_CHECKING = False  # importing typing would cost a tenth of the start
if TYPE_CHECKING:
    from syncd.text import Json

    Show = Callable[[Json], None]

REFRESH_S = 0.25
"""How often the line is drawn: often enough to show every second of a wait."""


@contextlib.contextmanager
def progress_line() -> Iterator[Show]:
    """Yield a function that shows a Progress on stderr; it does nothing if that is not a terminal."""
    if not text.can_be_drawn_on(sys.stderr):
        yield lambda _: None
        return
    line, over = _Line(), threading.Event()

    def draw() -> None:
        with contextlib.suppress(OSError):  # the terminal went away, which must not fail the run
            while not over.wait(REFRESH_S):
                line.draw()

    drawing = threading.Thread(target=draw, daemon=True)
    drawing.start()
    try:
        yield line.show
    finally:
        over.set()
        drawing.join()
        with contextlib.suppress(OSError):
            line.erase()


class _Line:
    def __init__(self) -> None:
        self._began = time.monotonic()
        self._progress: Json = {"phase": "queued", "done": 0, "total": 0}
        self._unicode = "utf" in (sys.stderr.encoding or "").lower()

    def show(self, progress: Json) -> None:
        self._progress = {"phase": "running", "done": 0, "total": 0} | progress

    def draw(self) -> None:
        figures = text.format_duration(int(time.monotonic() - self._began))
        width = (os.get_terminal_size(sys.stderr.fileno()).columns or text.USUAL_WIDTH) - text.ECHO
        line = text.progress_line(self._progress, figures, datetime.now(UTC), width, unicode=self._unicode)
        sys.stderr.write(f"\r\x1b[2K{line}")
        sys.stderr.flush()

    def erase(self) -> None:
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()
