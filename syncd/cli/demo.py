"""`syncd demo`: the real daemon against the built-in stand-in for Billetweb, whose sales go on.

Real HTTP, a real SQLite file, a real socket: only Billetweb itself is made up.
"""

import asyncio
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from syncd.config import Config, load
from syncd.daemon.daemon import Daemon
from syncd.daemon.notify import Notifier
from syncd.database.lock import FileLock
from syncd.errors import ConfigError
from syncd.log.redact import Redactor
from syncd.model import Run
from syncd.standin.server import StandIn, serving
from syncd.text import columns, events_table, format_duration, write

MINIMUM_INTERVAL = timedelta(seconds=1)
STEP_S = 0.7
FAULT_EVERY = 40
CONFIG_NAME, KEY_NAME, DATABASE_NAME, SOCKET_NAME = "config.toml", "billetweb.key", "syncd.db", "syncd.sock"
LONGEST_FOLDER_BYTES = 96  # the socket's whole path may have 107
MARK = "# The demo's configuration. Change it and run: syncctl reload\n"
"""So a demo's configuration begins, one of 0.3 too; another, copied from it, has another `base_url`."""
CONFIG_HOST = 'base_url = "http://127.0.0.1:'
CONFIG = """\
# The next demo in this folder writes it anew.
[billetweb]
user = {user}
key_file = {key_file}
base_url = {base_url}
requests_per_minute = 100

[sync]
interval = {interval}
keep_past = "0s"  # what the stand-in still sells fits the ceiling of requests, however long this runs

[database]
url = {url}

[control]
socket = {socket}
mode = "0600"
"""


def demo(
    folder: Path | None,
    *,
    interval: timedelta,
    events: int,
    seed: int,
    configured: Callable[[Callable[[], Config]], Config],
    redact: Redactor,
) -> int:
    """Run the demo until a signal stops it, and return the exit code. A folder of its own is removed again.

    `configured` makes a configuration's secrets masked and its log settings effective.
    """
    standin = StandIn(events=events, seed=seed)
    with _home(folder, standin.key) as home, serving(standin) as base_url, _life(standin):
        path = _write_config(home, standin, base_url, interval)

        def load_config() -> Config:
            return configured(lambda: load(path, {}, minimum_interval=MINIMUM_INTERVAL))

        config = load_config()
        _say(
            f"A stand-in for Billetweb answers on {base_url}, with {events} events whose sales go on.\n"
            f"The daemon mirrors it into {home}/syncd.db every {format_duration(interval.total_seconds())}."
            " Ctrl-C stops it.\n"
        )

        async def run() -> int:
            screen = _FirstScreen(config.control.socket)
            daemon = Daemon(
                config,
                load_config=load_config,
                redact=redact,
                notifier=Notifier(None),
                on_run=lambda run: screen.show(daemon, run),
            )
            return await daemon.run()

        return asyncio.run(run())


class _FirstScreen:
    """Shows the table of places left once, after the first good run."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._task: asyncio.Task[None] | None = None

    def show(self, daemon: Daemon, run: Run) -> None:
        if self._task is None and run.outcome in ("ok", "partial"):
            self._task = asyncio.create_task(self._show(daemon))

    async def _show(self, daemon: Daemon) -> None:
        events = await daemon.events(ended_too=False)
        table = events_table(msgspec.to_builtins(events), datetime.now(UTC), columns())
        _say(f"\n{table}\n\nIn another terminal:")
        syncctl = Path(sys.argv[0]).with_name("syncctl")
        for command in ("status", "run-now", "events", "history"):
            _say(f"  {syncctl if syncctl.exists() else 'syncctl'} --socket {self._socket} {command}")
        _say("")


@contextmanager
def _home(folder: Path | None, key: str) -> Iterator[Path]:
    """Give the demo's folder, held against a second demo. Raises ConfigError, AlreadyRunning."""
    if folder is None:
        try:
            made = tempfile.TemporaryDirectory(prefix="syncd-demo-")
        except OSError as error:
            raise ConfigError([f"no temporary folder ({error.strerror}): choose one with --dir"]) from None
        with made as name:
            yield Path(name)
        return
    try:
        home = folder.resolve()
        _check_path(home)
        home.mkdir(parents=True, exist_ok=True)
        if theirs := _not_of_the_demo(home, key):
            raise ConfigError([f"--dir: {theirs} is there and was not made by a demo; choose another folder"])
        lock = FileLock(home / "demo.lock", f"the demo in {home}")
        lock.acquire()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        reason = (isinstance(error, OSError) and error.strerror) or "its links lead nowhere"
        raise ConfigError([f"--dir: cannot use {folder}: {reason}"]) from None
    try:
        yield home
    finally:
        lock.release()


def _check_path(home: Path) -> None:
    """Raise ConfigError where a path cannot be a folder of the demo's."""
    if len(os.fsencode(home)) > LONGEST_FOLDER_BYTES:
        raise ConfigError(["--dir: too long a path for a socket; choose a shorter one"])
    if not str(home).isprintable() or "?" in str(home):  # a database's address ends there
        raise ConfigError(["--dir: the path holds a ? or what cannot be printed; choose another"])


def _not_of_the_demo(home: Path, key: str) -> Path | None:
    """Return a file that stands where the demo would write and that no demo made; None where none does."""
    config, key_file = home / CONFIG_NAME, home / KEY_NAME
    text = _text_of(config)
    if not text.startswith(MARK) or CONFIG_HOST not in text:
        places = [config, key_file, *home.glob(f"{DATABASE_NAME}*"), *home.glob(f"{SOCKET_NAME}*")]
        return next(filter(os.path.lexists, places), None)
    return key_file if os.path.lexists(key_file) and _text_of(key_file) != f"{key}\n" else None


def _text_of(path: Path) -> str:
    """Return how a regular file begins, "" for anything else, a link too."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(4096)  # what the demo writes has a few hundred characters


@contextmanager
def _life(standin: StandIn) -> Iterator[None]:
    """Let the stand-in's sales go on in a thread; now and then a request fails, as in life."""
    over = threading.Event()

    def live() -> None:
        steps = 0
        while not over.wait(STEP_S):
            standin.tick()
            steps += 1
            if steps % FAULT_EVERY == 0:
                standin.occasional_fault(1.0)

    thread = threading.Thread(target=live, name="demo life")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _write_config(home: Path, standin: StandIn, base_url: str, interval: timedelta) -> Path:
    """Write configuration and key, and return the path of the first. Raises ConfigError."""
    values = {
        "user": standin.user,
        "key_file": f"{home / KEY_NAME}",
        "base_url": base_url,
        "interval": f"{interval.total_seconds():.0f}s",
        "url": f"sqlite:///{home / DATABASE_NAME}",
        "socket": f"{home / SOCKET_NAME}",
    }
    # A string of JSON is a string of TOML, whatever is in it.
    config = MARK + CONFIG.format_map({name: json.dumps(text) for name, text in values.items()})
    try:
        # The marked file first: a demo that is killed in between knows its folder again.
        _put(home / CONFIG_NAME, config)
        _put(home / KEY_NAME, standin.key + "\n")
    except OSError as error:
        raise ConfigError([f"--dir: cannot write into {home}: {error.strerror}"]) from None
    return home / CONFIG_NAME


def _put(path: Path, text: str) -> None:
    """Put a file for the owner alone in place, whole."""
    descriptor, fresh = tempfile.mkstemp(dir=path.parent)
    os.close(descriptor)
    Path(fresh).write_text(text, encoding="utf-8")
    Path(fresh).replace(path)


def _say(line: str) -> None:
    with suppress(OSError):  # whoever read it is gone: the demo goes on until it is stopped
        write(f"{line}\n")
