"""A terminal of a given size for the tests: a program in it, keys for it, and the screen that it draws."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import pyte

from support.processes import PATIENCE_S, environment, eventually


class Terminal:
    """Runs a command with a terminal as its standard streams, in a session of its own as a login has."""

    def __init__(
        self, command: Sequence[str], *, columns: int = 80, rows: int = 24, environ: Mapping[str, str] = {}
    ) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._ours, self._theirs = pty.openpty()
        self.written = b""
        self.resize(columns, rows)
        self.settings = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            command,
            env=environment(**{"TERM": "xterm-256color", "TZ": "Europe/Paris"} | dict(environ)),
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            preexec_fn=_control_terminal,  # noqa: PLW1509 - two calls of the kernel's; or Ctrl-C reached nobody
        )
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(PATIENCE_S)
        self._over.set()
        self._reader.join()
        os.close(self._ours)
        os.close(self._theirs)

    def _read(self) -> None:
        while not self._over.is_set():
            if select.select([self._ours], [], [], 0.02)[0]:
                chunk = os.read(self._ours, 65_536)
                with self._lock:
                    self.written += chunk
                    self._stream.feed(chunk)

    def resize(self, columns: int, rows: int) -> None:
        """Change the terminal's size, as dragging its window does."""
        with self._lock:
            self._screen.resize(rows, columns)
            fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    @property
    def lines(self) -> list[str]:
        """The screen's lines, as they stand now."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def shown(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    @property
    def buffer(self) -> Any:
        """Each character with its colours, by line and column."""
        return self._screen.buffer

    def shows(self, part: str | Callable[[str], Any], within_s: float = PATIENCE_S) -> str:
        """Return the screen as soon as it shows this, with the rest of the frame, which comes in pieces."""
        has = part if callable(part) else lambda shown: part in shown
        try:
            first = str(eventually(lambda: (shown := self.shown) and has(shown) and shown, within_s))
        except AssertionError:
            raise AssertionError(f"the screen does not show {part!r}:\n{self.shown}") from None
        eventually(self._is_quiet)
        return shown if has(shown := self.shown) else first  # a state may pass quickly

    def ended(self) -> int:
        """Return the exit code, as Popen gives it, once all was drawn."""
        code = self.process.wait(PATIENCE_S)
        eventually(self._is_quiet)
        return code

    def _is_quiet(self) -> bool:
        """Tell whether nothing comes for a moment."""
        return not select.select([self._ours], [], [], 0.05)[0]

    def is_given_back(self) -> bool:
        """Tell whether cursor, main screen and settings are as they were."""
        pairs = ((b"\x1b[?25h", b"\x1b[?25l"), (b"\x1b[?1049l", b"\x1b[?1049h"))
        is_left = all(self.written.rfind(last) >= self.written.rfind(first) for last, first in pairs)
        return is_left and termios.tcgetattr(self._theirs) == self.settings

    def signal(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        self.process.send_signal(number)


def _control_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as a login has it, also where nohup started the tests
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
