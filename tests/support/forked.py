"""Programs that start at once: a process that has loaded syncd forks one for each that is asked for.

To load syncd takes a second of a slow machine, and the tests start hundreds of programs. One made here is a
process like any other: it has arguments, environment, folder and outputs of its own, hears signals, can be
killed, and ends as Python ends. What Python reads while it loads needs a start of its own.
"""

import atexit
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LOADED = """
import gc, sys, tempfile
gc.disable()
import support.forked, stamina, syncd.cli.main, syncd.cli.check, syncd.cli.progress, syncd.daemon.activation
import syncd.daemon.daemon, syncd.daemon.watchdog
from syncd.database.engine import Database
with tempfile.TemporaryDirectory() as folder:  # which loads Alembic, as most programs do
    database = Database(f"sqlite:///{folder}/made.db")
    database.open()
    database.close()
gc.freeze()
gc.enable()
support.forked.serve(int(sys.argv[1]))
"""
AT_LOADING = ("PYTHON", "LC_", "LANG", "MALLOC_")
"""What variables begin with that Python and the C library read while a program loads."""
MESSAGE_BYTES = 65536


class Forked:
    """A program that was started; as `subprocess.Popen`, in so far as the tests need it."""

    def __init__(self, pid: int, ends: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ends = ends

    def poll(self) -> int | None:
        """Return how it ended, or None."""
        return self._awaited(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended once it has; raise TimeoutExpired when that takes longer."""
        code = self._awaited(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _awaited(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._ends, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            self.returncode = int(os.read(self._ends, 16))
            os.close(self._ends)
        return self.returncode


def can_fork(environ: Mapping[str, str]) -> bool:
    """Tell whether a program with these variables, beside those of all tests, is the same if forked."""
    return not any(name.startswith(AT_LOADING) for name in environ)


def fork(code: str, arguments: Sequence[str], environ: Mapping[str, str], files: Sequence[int]) -> Forked:
    """Start a program that is `code`, after the imports, with these descriptors as its first three."""
    ends, end = os.pipe()
    order = {"code": code, "arguments": arguments, "environ": dict(environ), "folder": str(Path.cwd())}
    socket.send_fds(_server(), [json.dumps(order).encode()], [*files, end])
    os.close(end)
    return Forked(int(_server().recv(16)), ends)


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-c", LOADED, str(theirs.fileno())],
            env=os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def serve(descriptor: int) -> None:
    """Fork what is asked for, until nobody can ask any more; what is left is killed then."""
    with socket.socket(fileno=descriptor) as control, selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        born = _next_born(control, selector)
    if born:
        _be(*born)


def _next_born(control: socket.socket, selector: selectors.BaseSelector) -> tuple[bytes, list[int]] | None:
    """Return in each program that is forked, with what it shall be; and in the server at the end."""
    while True:
        for key, _ in selector.select():
            if key.data:
                selector.unregister(key.fd)
                _tell_end(key.fd, *key.data)
                continue
            message, files, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 4)
            if not message:
                for left in filter(None, (each.data for each in selector.get_map().values())):
                    os.kill(left[0], signal.SIGKILL)
                return None
            if not (pid := os.fork()):
                return message, files
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, files.pop()))
            for file in files:
                os.close(file)
            control.send(str(pid).encode())


def _tell_end(process: int, pid: int, end: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(process)
    with suppress(BrokenPipeError):  # who started it waits no more
        os.write(end, str(code).encode())
    os.close(end)


def _be(message: bytes, files: list[int]) -> None:
    order = json.loads(message)
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(order["environ"])
    time.tzset()
    os.chdir(order["folder"])
    sys.argv[1:] = order["arguments"]
    exec(order["code"], {"__name__": "__main__"})
