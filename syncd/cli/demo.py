"""`syncd demo`: the real daemon against the built-in stand-in for Billetweb, which keeps selling.

Real HTTP, a real SQLite file, a real socket: only Billetweb itself is simulated.
"""

import asyncio
import os
import shlex
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from msgspec import structs

from syncd import threads
from syncd.cli import site
from syncd.cli.site import Site
from syncd.config import BilletwebConfig, Config, load
from syncd.daemon.daemon import Daemon
from syncd.daemon.notify import Notifier
from syncd.daemon.signals import hear_no_more
from syncd.database.lock import FileLock
from syncd.errors import ConfigError, reason
from syncd.feed.files import NotReplaced, replace
from syncd.log.redact import Redactor
from syncd.model import AttendeeMode, Run
from syncd.standin.life import STEP_S, Life
from syncd.standin.server import StandIn, serving
from syncd.text import columns, count, events_table, format_duration, write
from syncd.toml import quoted
from syncd.typed import program

MINIMUM_INTERVAL = timedelta(seconds=1)
NO_LIMIT = 1_000_000
"""More requests a minute than anybody reaches: the stand-in has no other users to spare."""
FOR_THE_OWNER = 0o600
CONFIG_NAME, KEY_NAME, DATABASE_NAME, SOCKET_NAME = "config.toml", "billetweb.key", "syncd.db", "syncd.sock"
REMOVALS = 3
"""How often to empty a folder: a file created during the renaming is there by the second time."""
LONGEST_FOLDER_BYTES = 96  # the socket's whole path may have 107
MARK = "# The demo's configuration. Change it and run: syncctl reload\n"
"""How a demo's configuration begins, also in 0.3; a copy made for another use has another `base_url`."""
CONFIG_HOST = 'base_url = "http://127.0.0.1:'
CONFIG = """\
# The next demo in this folder writes it anew.
[billetweb]
user = {user}
key_file = {key_file}
base_url = {base_url}

[sync]
interval = {interval}
keep_past = "0s"  # what is over leaves the screen, however long this runs
attendees = {attendees}

[database]
url = {url}

[control]
socket = {socket}
mode = "0600"
"""


TRY = ("status", "run-now", "events", "history", "watch", "page")
LEFT = "SELECT name, places_left, is_full FROM billetweb_events"


class Wishes(msgspec.Struct, frozen=True):
    """The options of a demo."""

    interval: timedelta
    events: int
    seed: int
    attendees: AttendeeMode
    site: bool


def demo(
    folder: Path | None,
    wishes: Wishes,
    *,
    configured: Callable[[Config], Config],
    redact: Redactor,
) -> int:
    """Run the demo until a signal stops it, and return the exit code. A temporary folder is removed.

    `configured` masks a configuration's secrets and applies its log settings.
    """
    standin = StandIn(events=wishes.events, seed=wishes.seed)
    with (
        _home(folder, standin.key) as home,
        serving(standin) as base_url,
        _life(standin, wishes.seed),
        _unheard_after(),
    ):
        its_site = Site(home, standin) if wishes.site else None
        path = _write_config(home, standin, base_url, wishes, its_site)

        def load_config() -> Config:
            return configured(_unlimited(load(path, {}, minimum_interval=MINIMUM_INTERVAL)))

        config = load_config()
        _say(
            f"A stand-in for Billetweb answers on {base_url}, with {count(wishes.events, 'event')}"
            f" whose sales go on; account {standin.user}, key {standin.key}.\n"
            f"The daemon mirrors it into {home}/syncd.db"
            f" every {format_duration(wishes.interval.total_seconds())}. Ctrl-C stops it.\n"
        )

        def cut() -> None:
            """Leave nothing behind at a forced end."""
            if its_site:
                its_site.end_page()
            if folder is None:
                remove(home)

        async def run() -> int:
            """Run the daemon and show its runs until it is stopped; return the exit code."""
            screen = _Screen(config, its_site)
            daemon = Daemon(
                config,
                load_config=load_config,
                redact=redact,
                notifier=Notifier(None),
                on_run=lambda run: screen.show(daemon, run),
                on_cut=cut,
                ends_with_terminal=signal.getsignal(signal.SIGHUP) != signal.SIG_IGN,  # as nohup has it
            )
            try:
                return await daemon.run()
            finally:
                await screen.close()

        return threads.run(run())


@contextmanager
def _unheard_after() -> Iterator[None]:
    """Ignore signals while the demo shuts down: a cut would leave threads that keep the process alive."""
    try:
        yield
    finally:
        hear_no_more()


def _unlimited(config: Config) -> Config:
    """Return settings without a request limit, unless they set one other than the default."""
    if config.billetweb.requests_per_minute != BilletwebConfig(user="").requests_per_minute:
        return config
    return structs.replace(config, billetweb=structs.replace(config.billetweb, requests_per_minute=NO_LIMIT))


class _Screen:
    """Shows the table of places left once, after the first good run, and the news of the site."""

    def __init__(self, config: Config, its_site: Site | None) -> None:
        self._config = config
        self._site = its_site
        self._task: asyncio.Task[None] | None = None

    def show(self, daemon: Daemon, run: Run) -> None:
        if self._task is None and run.outcome in ("ok", "partial"):
            self._task = asyncio.create_task(self._show(daemon))
        for sentence in self._site.news() if self._site else ():
            _say(sentence)

    async def _show(self, daemon: Daemon) -> None:
        events = await daemon.account.events(ended_too=False)
        table = events_table(msgspec.to_builtins(events), datetime.now(UTC), columns())
        home = self._config.path.parent
        lines = [
            *("", table, "", "In another terminal:"),
            f"  export SYNCD_SOCKET={shlex.quote(f'{self._config.control.socket}')}",
            *(f"  {program('syncctl')} {command}" for command in TRY),
            "And what is in the database, with one query:",
            f"  {site.sql(home / DATABASE_NAME, LEFT)}",
        ]
        if self._site:
            lines += await self._site.told(self._config.control.socket)
        _say("\n".join([*lines, ""]))

    async def close(self) -> None:
        """End its task and the site."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._site:
            await self._site.close()


@contextmanager
def _home(folder: Path | None, key: str) -> Iterator[Path]:
    """Yield the demo's folder, locked against a second demo. Raises ConfigError, AlreadyRunning."""
    if folder is None:
        try:
            made = Path(tempfile.mkdtemp(prefix="syncd-demo-"))
        except OSError as error:
            raise ConfigError([f"no temporary folder ({error.strerror}): choose one with --dir"]) from None
        try:
            with _unheard_after():
                yield made
        finally:
            remove(made)
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
        why = (isinstance(error, OSError) and error.strerror) or "its links lead nowhere"
        raise ConfigError([f"--dir: cannot use {folder}: {why}"]) from None
    try:
        yield home
    finally:
        lock.release()


def remove(home: Path) -> None:
    """Remove a folder into which others may be writing; if that fails, some files remain.

    It is renamed first: after that only a write already begun can create a file in it, so it is emptied more
    than once.
    """
    leaving = home.with_name(f"{home.name}-removed")
    with suppress(OSError):  # it is gone, as both ends of a demo remove it
        home.rename(leaving)
    for _ in range(REMOVALS):
        shutil.rmtree(leaving, ignore_errors=True)


def _check_path(home: Path) -> None:
    """Raise ConfigError if a path cannot be a demo's folder."""
    if len(os.fsencode(home)) > LONGEST_FOLDER_BYTES:
        raise ConfigError(["--dir: too long a path for a socket; choose a shorter one"])
    if not str(home).isprintable() or {"?", "%"} & {*str(home)}:  # a database's address has them for others
        raise ConfigError(["--dir: the path holds a ?, a % or what cannot be printed; choose another"])


def _not_of_the_demo(home: Path, key: str) -> Path | None:
    """Return an existing file at a path of the demo's that no demo made, or None."""
    config, key_file = home / CONFIG_NAME, home / KEY_NAME
    text = _text_of(config)
    if not text.startswith(MARK) or CONFIG_HOST not in text:
        ours = (DATABASE_NAME, SOCKET_NAME, site.SITE_NAME, *site.FEEDS.values())
        places = [config, key_file, *(path for name in ours for path in home.glob(f"{name}*"))]
        return next(filter(os.path.lexists, places), None)
    return key_file if os.path.lexists(key_file) and _text_of(key_file) != f"{key}\n" else None


def _text_of(path: Path) -> str:
    """Return the beginning of a regular file, "" for anything else, links included."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(4096)  # what the demo writes has a few hundred characters


@contextmanager
def _life(standin: StandIn, seed: int) -> Iterator[None]:
    """Keep the stand-in selling in a thread; now and then a request fails, as in life."""
    over = threading.Event()
    life = Life(standin, seed=seed)

    def live() -> None:
        while not over.wait(STEP_S):
            if sentence := life.step():
                _say(f"On purpose, as it happens in life: {sentence}")

    thread = threading.Thread(target=live, name="demo life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(STEP_S)  # a terminal that nobody reads may hold it, and no signal is heard any more


def _write_config(home: Path, standin: StandIn, base_url: str, wishes: Wishes, its_site: Site | None) -> Path:
    """Write configuration and key, and return the path of the first. Raises ConfigError."""
    values = {
        "user": standin.user,
        "key_file": f"{home / KEY_NAME}",
        "base_url": base_url,
        "interval": f"{wishes.interval.total_seconds():.0f}s",
        "attendees": wishes.attendees,
        "url": f"sqlite:///{home / DATABASE_NAME}",
        "socket": f"{home / SOCKET_NAME}",
    }
    config = MARK + CONFIG.format_map({name: quoted(text) for name, text in values.items()})
    config += its_site.config() if its_site else ""
    try:
        # The marked file first: a demo killed in between recognises its folder again.
        replace(home / CONFIG_NAME, config.encode(), FOR_THE_OWNER)
        replace(home / KEY_NAME, f"{standin.key}\n".encode(), FOR_THE_OWNER)
    except (OSError, NotReplaced) as error:
        raise ConfigError([f"--dir: cannot write into {home}: {reason(error)}"]) from None
    return home / CONFIG_NAME


def _say(line: str) -> None:
    with suppress(OSError):  # the reader is gone: the demo continues until it is stopped
        write(f"{line}\n")
