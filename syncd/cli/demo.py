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
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec

from syncd.config import Config, load
from syncd.daemon.daemon import Daemon
from syncd.daemon.notify import Notifier
from syncd.errors import ConfigError
from syncd.log.redact import Redactor
from syncd.model import Run
from syncd.standin.server import StandIn, serving
from syncd.text import events_table, format_duration

MINIMUM_INTERVAL = timedelta(seconds=1)
STEP_S = 0.7
FAULT_EVERY = 40
LONGEST_FOLDER_BYTES = 96  # the socket's whole path may have 107
CONFIG = """\
# The demo's configuration. Change it and run: syncctl reload
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
    with _home(folder) as home, serving(standin) as base_url, _life(standin):
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
        _say(f"\n{events_table(msgspec.to_builtins(events))}\n\nIn another terminal:")
        syncctl = Path(sys.argv[0]).with_name("syncctl")
        for command in ("status", "run-now", "events", "history"):
            _say(f"  {syncctl if syncctl.exists() else 'syncctl'} --socket {self._socket} {command}")
        _say("")


@contextmanager
def _home(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        if len(os.fsencode(folder.resolve())) > LONGEST_FOLDER_BYTES:
            raise ConfigError(["--dir: too long a path for a socket; choose a shorter one"])
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="syncd-demo-") as made:
        yield Path(made)


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
    key = home / "billetweb.key"
    key.touch(mode=0o600)
    key.write_text(standin.key + "\n")
    path = home / "config.toml"
    values = {
        "user": standin.user,
        "key_file": f"{key}",
        "base_url": base_url,
        "interval": f"{interval.total_seconds():.0f}s",
        "url": f"sqlite:///{home}/syncd.db",
        "socket": f"{home}/syncd.sock",
    }
    # A string of JSON is a string of TOML, whatever is in it.
    path.write_text(CONFIG.format_map({name: json.dumps(text) for name, text in values.items()}))
    return path


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
