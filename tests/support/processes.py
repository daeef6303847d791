"""Real processes for the tests: the daemon under signals, `syncd` and `syncctl` as a shell starts them."""

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.forked import Forked, can_fork, fork
from support.real_databases import query, url_at
from syncd.database.schema import MIRRORED
from syncd.standin.server import StandIn

Json = dict[str, Any]
Process = Forked | subprocess.Popen[bytes]
Tables = Mapping[str, Mapping[str, object]]
SYNCD = [sys.executable, "-m", "syncd"]
"""A start as a shell has it; the other programs here are forked where that makes no difference."""
_PROGRAM = "import sys, syncd.cli.main as program; sys.exit(program.main())"
FORKED = [sys.executable, "-c", _PROGRAM]


def stopped_at(module: str, number: str, start: str) -> list[str]:
    """Return a program that gets a signal as it begins to import a module; `start` starts it."""
    code = f"""
import os, runpy, signal, sys
class Stop:
    def find_spec(name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.{number})
sys.meta_path.insert(0, Stop)
runpy.run_module("{start}", run_name="__main__")
"""
    return [sys.executable, "-c", code]


def forked_after(code: str) -> list[str]:
    """Return the command of a `syncd` that is forked, and does something else first."""
    return [*FORKED[:-1], f"{code}; {_PROGRAM}"]


WITH_INSTANT_RETRIES = forked_after("import stamina; stamina.set_testing(True, attempts=3)")
# What is open as standard input becomes the socket that systemd passes on: fd 3, for this process id alone.
_ACTIVATE = 'export LISTEN_PID=${LISTEN_PID-$$} LISTEN_FDS=${LISTEN_FDS-1}; exec "$@" 3<&0 0</dev/null'
SOCKET_ACTIVATED = ["sh", "-c", _ACTIVATE, "sh"]
SYNCCTL = [str(Path(sys.executable).with_name("syncctl"))]
PATIENCE_S = 45.0
"""Only what hangs takes longer, on a slow and busy machine too."""
NOBODY = 65534
BOOKKEEPING = {"first_seen_at", "changed_at", "vanished_at", "availability_at"}


def environment(**more: str) -> dict[str, str]:
    """Return an environment without anything that the one of the tests could bring in."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LANG") if name in os.environ}
    return kept | {"PYTHONUTF8": "1"} | more


def eventually(condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Return what `condition` gives as soon as that is true; fail when it is not in time."""
    began = time.monotonic()
    while not (found := condition()):
        waited_s = time.monotonic() - began
        assert waited_s < within_s, "waited in vain"
        time.sleep(min(0.005 + waited_s / 50, 0.025))  # to ask a daemon takes it from its work
    return found


def started(command: Sequence[str], environ: Mapping[str, str], files: Sequence[int]) -> Process:
    """Start a program whose first three descriptors are these; one of Python's code is forked."""
    match command:
        case [sys.executable, "-c", code, *arguments] if can_fork(environ):
            return fork(code, arguments, environment(**environ), files)
    stdin, stdout, stderr = files
    return subprocess.Popen(command, env=environment(**environ), stdin=stdin, stdout=stdout, stderr=stderr)


def syncd(
    *arguments: str | Path, program: Sequence[str] = FORKED, stdin: str = "", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Return a finished `syncd`."""
    command = [*program, *map(str, arguments)]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        process = started(command, environ, [file.fileno() for file in (given, out, err)])
        try:
            code = process.wait(PATIENCE_S)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read().decode(), err.read().decode())


def free_port() -> int:
    """Return a port below those that the kernel gives away: hardly anybody gets it meanwhile."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Give a folder whose path leaves room for a socket's name, which is limited to 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="sy-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's rights for a while, where root runs the tests: no mode of a file binds root."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def write_config(folder: Path, base_url: str, tables: Tables | None = None, *, key: str = "demo-key") -> Path:
    """Write a key file and a configuration for the stand-in at `base_url`; `tables` overrides its values."""
    key_file = folder / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(key)
    defaults: Tables = {
        "billetweb": {"user": "12345", "key_file": "key", "base_url": base_url, "requests_per_minute": 100},
        "database": {"url": url_at(folder / "syncd.db")},
        "control": {"socket": f"{folder}/syncd.sock"},
        "log": {"level": "DEBUG", "format": "text"},
    }
    lines = []
    for name in [*defaults, *(set(tables or ()) - set(defaults))]:
        lines.append(f"[{name}]")
        values = {**defaults.get(name, {}), **(tables or {}).get(name, {})}
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


class DaemonProcess:
    """`syncd run` as a real process with a service manager of its own; ready on entering, gone on leaving.

    A second one on the same folder is the daemon's next start: the database and the log stay. With
    `instant_retries` nothing is waited for between attempts at a request. `listening` is passed on as
    systemd passes the socket of a socket unit; `awaits` is what must have been told on entering, if
    anything.
    """

    def __init__(
        self,
        folder: Path,
        base_url: str,
        tables: Tables | None = None,
        *,
        key: str = "demo-key",
        instant_retries: bool = False,
        environ: Mapping[str, str] | None = None,
        listening: socket.socket | None = None,
        awaits: str = "READY=1",
    ) -> None:
        self._program = WITH_INSTANT_RETRIES if instant_retries else FORKED
        if listening:
            self._program = [*SOCKET_ACTIVATED, *self._program]
        self._environ = environ or {}
        self._listening = listening
        self._awaits = awaits
        self.folder = folder
        self.base_url = base_url
        self.socket = folder / "syncd.sock"
        self.database = url_at(folder / "syncd.db")
        self.config = write_config(folder, base_url, tables, key=key)
        self.notified: list[str] = []
        self._log = folder / "log"

    def __enter__(self) -> Self:
        address = self.folder / "notify"
        address.unlink(missing_ok=True)
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(address))
        self._manager.settimeout(0.1)
        command = [*self._program, "run", "--config", str(self.config)]
        variables = {"NOTIFY_SOCKET": str(address), **self._environ}
        with self._log.open("ab") as log, Path(os.devnull).open() as nothing:
            files = [(self._listening or nothing).fileno(), log.fileno(), log.fileno()]
            self.process = started(command, variables, files)
        try:
            if self._awaits:
                self.told(self._awaits)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._manager.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """All that was logged, and printed, in this folder so far."""
        return self._log.read_text()

    def told(self, assignment: str) -> str:
        """Return the next datagram with this in it; all until then are in `notified`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            alive = self.process.poll() is None and time.monotonic() < deadline
            try:
                self.notified.append(self._manager.recv(4096).decode())
            except TimeoutError:
                assert alive, f"no {assignment}; log:\n{self.log}"
            else:
                if assignment in self.notified[-1]:
                    return self.notified[-1]

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Return a finished `syncctl` on this daemon's socket."""
        command = [*SYNCCTL, "--socket", str(self.socket), *arguments]
        return subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def ask(self, method: str, target: str, body: object = None) -> tuple[int, bytes]:
        """Return the HTTP status and the body of an answer, by a client that is not ours."""
        connection = http.client.HTTPConnection("syncd")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE_S)
        with contextlib.closing(connection):
            connection.sock.connect(str(self.socket))
            content = None if body is None else json.dumps(body)
            connection.request(method, target, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def status(self) -> Json:
        """Return the Status."""
        status: Json = json.loads(self.ask("GET", "/v1/status")[1])
        return status

    def ran(self, count: int = 1) -> Json:
        """Return the status once so many runs have ended and none is in progress."""

        def idle() -> Json | None:
            status = self.status()
            return status if status["run_count"] >= count and not status["current_run"] else None

        found: Json = eventually(idle)
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def asked(standin: StandIn, count: int, within_s: float = PATIENCE_S) -> None:
    """Wait until the stand-in was asked so often."""
    eventually(lambda: len(standin.requests) >= count, within_s)


def mirrored(database: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return the mirrored rows without their instants of bookkeeping, and each table's changes to them."""
    content = {}
    for name, table in MIRRORED.items():
        columns = ", ".join(f'"{column.name}"' for column in table.columns if column.name not in BOOKKEEPING)
        content[name] = sorted(query(database, f"SELECT {columns} FROM {name}"), key=repr)
    changes = "SELECT table_name, row_id, event_id, kind, diff FROM syncd_changes"
    content["changes"] = sorted(query(database, changes), key=repr)
    return content
