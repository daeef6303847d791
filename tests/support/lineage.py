"""Daemons that are born at once: a process that has loaded syncd forks one for each line that it is sent.

Their minute passes in half a second, so that the request limit, which outlives a kill, holds nobody up.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from support.processes import PATIENCE_S, environment, eventually

MOTHER = """
import os, signal, sys
import syncd.cli.main, syncd.daemon.activation, syncd.daemon.daemon, syncd.daemon.watchdog
from syncd.billetweb import limiter

limiter.WINDOW_S = 0.5
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while line := os.read(0, 4096):
    if child := os.fork():
        os.write(1, f"{child}\\n".encode())
    else:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(2, 1)
        sys.exit(syncd.cli.main.main(["run", "--config", line.decode().strip()]))
"""


class Lineage:
    """The mother of daemons; on leaving she is gone, and the last of them."""

    def __init__(self, config: Path, log: Path) -> None:
        self._config = config
        self._log = log
        self._pid = 0

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._mother = subprocess.Popen(
                [sys.executable, "-c", MOTHER],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._mother.kill()
        self._mother.communicate(timeout=PATIENCE_S)

    def bear(self) -> None:
        """Start a daemon."""
        assert self._mother.stdin
        assert self._mother.stdout
        self._mother.stdin.write(f"{self._config}\n".encode())
        self._pid = int(self._mother.stdout.readline())

    def is_alive(self) -> bool:
        """Tell whether the latest daemon is there."""
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> bool:
        """Kill the latest daemon, and return when it is gone; tell whether it was there."""
        if not self._pid or not self.is_alive():
            return False
        os.kill(self._pid, signal.SIGKILL)
        eventually(lambda: not self.is_alive())
        return True
