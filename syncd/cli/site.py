"""The small site of `syncd demo --site`: its table as Prisma makes it, feeds beside it, and the page.

The site belongs to somebody else, as in life: syncd writes only the named columns of existing rows.
"""

import asyncio
import shlex
import shutil
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

from syncd.errors import ConfigError
from syncd.standin.server import StandIn
from syncd.toml import quoted

SITE_NAME = "site.db"
FEEDS = {format_: f"events.{format_}" for format_ in ("json", "jsonld", "ics", "csv")}
TABLE = """
CREATE TABLE IF NOT EXISTS "Formation" (
    "id" TEXT NOT NULL PRIMARY KEY,
    "billetwebId" TEXT,
    "billetwebUrl" TEXT,
    "placesTotal" INTEGER,
    "placesLeft" INTEGER,
    "isFull" BOOLEAN NOT NULL DEFAULT false,
    "updatedAt" DATETIME NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS "Formation_billetwebId_key" ON "Formation"("billetwebId");
"""
"""What `prisma migrate` writes for a model with a unique `billetwebId`."""
ROW = """
INSERT OR IGNORE INTO "Formation" ("id", "billetwebId", "billetwebUrl", "updatedAt")
VALUES (?, ?, ?, CURRENT_TIMESTAMP)
"""
BADGES = 'SELECT "billetwebId", "isFull" FROM "Formation" ORDER BY "id"'
SHOWN = 'SELECT "billetwebId", "placesLeft", "placesTotal", "isFull" FROM "Formation"'
CONFIG = """
[[publish]]
table = "Formation"
match = {{ billetwebId = ["ext_id", "id"] }}
set = {{ placesTotal = "places_total", placesLeft = "places_left", isFull = "is_full" }}
touch = "updatedAt"
database = {url}
"""
FEED = """
[[feeds]]
path = {path}
format = "{format}"
"""
PAGE_WITHIN_S = 20.0
"""Only a hanging page takes longer; the demo then continues without it."""


class Site:
    """A site in a folder, its badges as last reported, and the page while the demo runs."""

    def __init__(self, home: Path, standin: StandIn) -> None:
        """Create its table if it is missing. Raises ConfigError."""
        self._home = home
        self._badges: dict[str, bool] = {}
        self._page: asyncio.subprocess.Process | None = None
        rows = [
            # The slug from the shop's address; newer rows of such sites hold the number.
            (f"formation-{index + 1}", event.row["id" if index % 3 == 1 else "ext_id"], event.row["shop"])
            for index, event in enumerate(standin.events.values())
        ]
        try:
            with closing(sqlite3.connect(home / SITE_NAME)) as connection, connection:
                connection.executescript(TABLE)
                connection.executemany(ROW, rows)
        except sqlite3.Error as error:
            raise ConfigError([f"--site: cannot write into {home}: {error}"]) from None

    def config(self) -> str:
        """Return its part of the configuration."""
        feeds = [
            FEED.format(path=quoted(f"{self._home / name}"), format=format_)
            for format_, name in FEEDS.items()
        ]
        return CONFIG.format(url=quoted(f"sqlite:///{self._home / SITE_NAME}")) + "".join(feeds)

    def news(self) -> list[str]:
        """Return a sentence for each badge that changed since the last call."""
        with suppress(sqlite3.Error), closing(sqlite3.connect(self._home / SITE_NAME)) as connection:
            badges = {key: bool(is_full) for key, is_full in connection.execute(BADGES)}
            before, self._badges = self._badges, badges
            return [
                f"The site shows {'FULL' if is_full else 'places again'}: {key}"
                for key, is_full in badges.items()
                if is_full != before.get(key, False)
            ]
        return []

    async def told(self, socket: Path) -> list[str]:
        """Start the page, and return lines on where to look."""
        address = await self._start_page(socket)
        feeds = " ".join(shlex.quote(f"{self._home / name}") for name in FEEDS.values())
        return [
            "A small site is kept true too; in a minute one of its badges turns full, and back:",
            f"  {sql(self._home / SITE_NAME, SHOWN)}",
            "The same as files, in four formats:",
            f"  ls -l {feeds}",
            *(["The page, for one browser; the address opens it once:", f"  {address}"] if address else []),
        ]

    async def _start_page(self, socket: Path) -> str:
        """Start `syncctl page` as a process and return its address, "" if it does not start."""
        command = [sys.executable, "-m", "syncd.ctl", "--socket", f"{socket}", "page"]
        with suppress(OSError, TimeoutError):
            self._page = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            assert self._page.stdout
            line = await asyncio.wait_for(self._page.stdout.readline(), PAGE_WITHIN_S)
            return line.decode().strip()
        return ""

    async def close(self) -> None:
        """End the page and wait for that."""
        self.end_page()
        if self._page:
            await self._page.wait()

    def end_page(self) -> None:
        """Ask the page to end."""
        if self._page:
            with suppress(ProcessLookupError):  # a Ctrl-C is for both
                self._page.terminate()


def sql(database: Path, query: str) -> str:
    """Return a command that shows a query's result, with a program that is installed here."""
    if shutil.which("sqlite3"):
        return shlex.join(["sqlite3", "-header", "-column", f"{database}", query])
    program = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute(sys.argv[2]), sep='\\n')"
    return shlex.join([sys.executable, "-c", program, f"{database}", query])
