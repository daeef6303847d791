"""Feeds: files that the events are written to for others, such as a site without a database client.

Each is written beside and renamed, so that readers see either the whole old content or the whole new one; and
only if its content changes, so that its modification time shows news.
"""

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from loguru import logger
from msgspec import Struct
from sqlalchemy import Connection

from syncd.config import FeedConfig
from syncd.database import rows, state
from syncd.database.engine import Database
from syncd.database.rows import PublicEvent
from syncd.errors import StoreError
from syncd.feed.rendering import news, render
from syncd.threads import Latest, in_own_thread

WAIT_S = 2.0
"""How long a run's end waits for files to be written, less than a stop may take: a hanging network disk must
not hold up runs."""
PATIENCE = 3
"""After this many failures of an event that was never read, files do without it. One failure is often
momentary, three seldom are."""
LATELY = timedelta(days=1)
"""Every live event is tried at least once a day; one that was not is no longer live."""


class NotReplaced(Exception):
    """A feed must not replace what is at its path."""


class FeedsStatus(Struct, frozen=True, kw_only=True):
    """How many files are written for others, how many of them failed the last time, and why the first did.

    `written` and `errors`: how often one was written, and could not be, since the daemon started.
    """

    files: int = 0
    failing: int = 0
    error: str | None = None
    written: int = 0
    errors: int = 0


class Feeds:
    """The `configured` feeds of an account. `errors` holds, by path, why the last write failed.

    `written` and `failed` count the writes that succeeded and failed since the daemon started.
    """

    def __init__(self, configured: Sequence[FeedConfig]) -> None:
        self.configured = configured
        self.errors: dict[Path, str] = {}
        self.written = 0
        self.failed = 0
        self._own: set[str] = set()
        self.writing = Latest[Path]()

    def forget(self) -> None:
        """Forget which files were written: their database is lost."""
        self._own.clear()

    @property
    def failing(self) -> list[Path]:
        """Which of the configured feeds failed last time."""
        return [feed.path for feed in self.configured if feed.path in self.errors]

    def status(self) -> FeedsStatus:
        """Return how many feeds there are, and how they fare."""
        failing = [f"{path}: {self.errors[path]}" for path in self.failing]
        return FeedsStatus(
            files=len(self.configured),
            failing=len(failing),
            error=failing[0] if failing else None,
            written=self.written,
            errors=self.failed,
        )

    async def follow(self, database: Database, now: datetime, unread: int | None) -> bool:
        """Update every feed, waiting at most WAIT_S; return whether the mirror's database allowed it.

        This happens after a failed run too: an event may be over. A file that another mirror left says more
        than a young mirror could: it stays until this one has read every live event. `unread`: how many live
        events it has never read, None if unknown.
        """
        if not self.configured or not database.is_open:
            return not self.configured
        try:
            events, own, given_up = await database.read(_look_up, now)
            self._own |= own
            is_whole = unread is not None and unread <= given_up
            wanted = {
                feed.path: partial(self.write, feed, events, not is_whole and str(feed.path) not in self._own)
                for feed in self.configured
            }
            for path in await self.writing.carry_out(wanted, WAIT_S):
                self._tell(path, f"it takes longer than {WAIT_S:g} s; runs go on meanwhile")
            if self._own != own:
                await database.write(state.put, state.FEEDS, sorted(self._own))
        except StoreError as error:
            logger.debug("the feeds wait for the next run: {}", error)
            return False
        return True

    async def write(self, feed: FeedConfig, events: Sequence[PublicEvent], stays: bool = False) -> None:
        """Update a feed, except an existing file that `stays`. Raises nothing."""
        error, has_news = await in_own_thread(_attempt, feed, events, stays)
        if not error:
            self._own.add(str(feed.path))
        self.written += has_news
        self._tell(feed.path, error)

    def _tell(self, path: Path, error: str) -> None:
        """Note a feed's error, "" for none, and log it if it is new."""
        before = self.errors.pop(path, "")
        if error:
            self.errors[path] = error
            self.failed += 1
        if error and error != before:
            log = logger.bind(event="feed.failed")
            log.error("the feed {} was not written: {}; tried again with each run", path, error)
        elif before and not error:
            logger.bind(event="feed.recovered").info("the feed {} is written again", path)


def _attempt(feed: FeedConfig, events: Sequence[PublicEvent], stays: bool) -> tuple[str, bool]:
    """Write a feed; return the error, "" for none, and whether it had news."""
    wanted = {*feed.tags}
    chosen = [event for event in events if not wanted or wanted & {*event.tags}]
    try:
        if stays and _look(feed.path):
            return "the file that is there stays until every event was read", False
        has_news = replace(feed.path, render(feed.format, chosen), feed.mode, partial(news, feed.format))
    except (OSError, NotReplaced) as error:
        return _reason(error, feed.path.parent), False
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this feed's and nobody else's
        return f"unexpected {type(error).__name__}", False
    if has_news:
        logger.debug("the feed {} has news", feed.path)
    return "", has_news


def _look_up(connection: Connection, now: datetime) -> tuple[list[PublicEvent], set[str], int]:
    """Return the events, the paths written from this database, and how many events could not be read."""
    own = {*(state.get(connection, state.FEEDS, list[str]) or ())}
    given_up = rows.never_read(connection, PATIENCE, now - LATELY)
    return rows.public_events(connection, now), own, given_up


def obstacle(feed: FeedConfig) -> str | None:
    """Return what prevents a feed from being written, as far as that shows without writing it."""
    folder = feed.path.parent
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            return f"{feed.path}: {folder} is not a folder"
        _look(feed.path)
    except (OSError, NotReplaced) as error:
        return f"{feed.path}: {_reason(error, folder)}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{feed.path}: this user may not write to the folder {folder}"
    return None


def replace(path: Path, content: bytes, mode: int, news_of: Callable[[bytes], bytes] = bytes) -> bool:
    """Replace a file in one step if the content or mode differs; return whether it did.

    `news_of` returns the part of a content to compare. Raises OSError, and NotReplaced; then the old file
    stays.
    """
    if _look(path) == (mode, len(content)) and news_of(_content(path) or b"") == news_of(content):
        return False
    # Always the same name: the next process removes what a killed one left.
    beside = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        beside.unlink()
    # O_EXCL follows no link. Nobody else can open it before it is whole.
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(file, "wb") as whole:  # noqa: PTH123 - of what is open
            whole.write(content)
            whole.flush()
            os.fchmod(file, mode)  # whatever the umask
            os.fsync(file)  # or a power cut might leave an empty file under the new name
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    return True


def _look(path: Path) -> tuple[int, int] | None:
    """Return mode and size of a regular file, None if there is none. Raises OSError, NotReplaced."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        raise NotReplaced("a symbolic link stands there, which is neither followed nor replaced")
    if not stat.S_ISREG(found.st_mode):
        raise NotReplaced("what stands there is no regular file")
    return stat.S_IMODE(found.st_mode), found.st_size


def _content(path: Path) -> bytes | None:
    """Return a file's content, None if it cannot be read, which does not prevent replacing it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(file, "rb") as opened:  # noqa: PTH123 - of what is open
        return opened.read()


def _reason(error: Exception, folder: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the folder {folder} is missing"
    if isinstance(error, NotADirectoryError):
        return f"{folder} is not a folder"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
