"""The live screen of `syncctl watch`: sets up and restores the terminal, handles keys, signals and the size.

Uses rich, so it is imported only when shown. `drawing.py` draws the content.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console
from rich.segment import Segments

from syncd.ctl import seen
from syncd.ctl.drawing import drawn
from syncd.ctl.http import EXIT_USAGE, Failure
from syncd.text import can_be_drawn_on, is_terminal

DRAW_EVERY_S = 0.5
"""Often enough to show every second of the countdown, and to show soon what the daemon answered."""
UNKNOWN_SIZE = (80, 24)
"""The size of a terminal that does not know its own: a serial line."""
QUITTING = (b"q", b"Q", b"\x04")
"""Ctrl-D too."""
ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
"""The terminal is restored before these take effect; SIGWINCH only redraws the screen."""


def watch(path: str) -> int:
    """Show the daemon on the socket at `path` until q or a signal ends that; return the exit code.

    Raises KeyboardInterrupt on Ctrl-C, and Failure if there is no terminal or, at the start, no daemon.
    """
    if not can_be_drawn_on(sys.stdout):
        raise Failure(
            EXIT_USAGE,
            "no_terminal",
            "watch draws on a terminal, and this is none that can be drawn on:"
            " use `syncctl status`, `syncctl events` and `syncctl history`.",
        )
    looker = seen.Looker(path)
    with _heard() as bell:
        while (ended := _shown(looker, bell)) == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)  # returns when the shell continues it
    if ended == signal.SIGINT:
        raise KeyboardInterrupt
    if ended:
        os.kill(os.getpid(), ended)
    return 0


@contextlib.contextmanager
def _heard() -> Iterator[int]:
    """Yield where the numbers of signals can be read, so that none interrupts a drawing."""
    numbers = [*ENDING, signal.SIGWINCH]
    before = [signal.signal(each, lambda *_: None) for each in numbers]
    bell, ring = os.pipe()
    os.set_blocking(ring, False)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    try:
        yield bell
    finally:
        signal.set_wakeup_fd(-1)
        for each, handler in zip(numbers, before, strict=True):
            signal.signal(each, handler)


def _shown(looker: seen.Looker, bell: int) -> int:
    """Show the screen until a key or a signal ends that; return the signal, 0 for a key."""
    canvas = _Canvas()
    with _keys() as keyboard, canvas.console.screen():
        while True:
            canvas.draw(looker.seen)
            ready, _, _ = select.select([bell, *keyboard], [], [], DRAW_EVERY_S)
            rung = os.read(bell, 4096) if bell in ready else b""
            if ended := next((each for each in rung if each in ENDING), 0):
                return ended
            if set(ready) & {*keyboard} and _is_over(keyboard[0]):
                return 0


@contextlib.contextmanager
def _keys() -> Iterator[list[int]]:
    """Yield the terminal set to read single keys without echo; nothing if stdin is not a terminal."""
    if not is_terminal(sys.stdin):
        yield []
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield [keyboard]
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _is_over(keyboard: int) -> bool:
    """Return whether a quitting key was pressed, or the terminal is gone."""
    try:
        pressed = os.read(keyboard, 4096)
    except OSError:
        return True
    return not pressed or any(key in pressed for key in QUITTING)


class _Canvas:
    """Draws only the lines that changed, for slow connections."""

    def __init__(self) -> None:
        self.console = Console()
        self._size = (0, 0)
        self._lines: list[str] = []

    def draw(self, told: seen.Seen) -> None:
        """Draw what was seen, at the terminal's present size."""
        size = _terminal_size()
        parts = []
        if size != self._size:
            self.console.size = self._size = size
            self._lines = [""] * size[1]
            parts.append("\x1b[H\x1b[2J")
        for number, line in enumerate(self._rendered(told, *size)):
            if line != self._lines[number]:
                self._lines[number] = line
                parts.append(f"\x1b[{number + 1};1H{line}")
        sys.stdout.write("".join(parts))
        sys.stdout.flush()

    def _rendered(self, told: seen.Seen, width: int, height: int) -> Iterator[str]:
        unicode = self.console.encoding.startswith("utf")
        drawing = drawn(told, datetime.now(UTC), width, height, unicode=unicode)
        for segments in self.console.render_lines(drawing, self.console.options.update(height=height)):
            with self.console.capture() as captured:
                self.console.print(Segments(segments), end="")
            yield captured.get()


def _terminal_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return UNKNOWN_SIZE
    return (size.columns, size.lines) if all(size) else UNKNOWN_SIZE
