"""What README's commands print, on a real daemon that mirrors the stand-in.

    python tests/readme_outputs.py

writes it into README anew. A block that begins with `$ ` is a session; its commands are carried out in
README's order, on an account whose "Atelier vannerie sauvage" has just sold out.
"""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from support import site
from support.faults import with_rows
from support.processes import PATIENCE_S, DaemonProcess, environment, eventually, short_folder
from support.project import README, ROOT

from syncd.standin.server import StandIn, serving

BLOCK = re.compile(r"^```\n(\$ .*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ (.*(?:\n    .*)*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
"""A command, which may go on in lines that are set in by four blanks, and what it printed."""
ENDLESS = "syncctl page"
"""It goes on until Ctrl-C, and shows a secret of its own; tests/control holds it."""
EVENT = "900003"
MISTAKEN = """\
[billetweb]
user = "24680"
requests_per_minut = 60

[sync]
interval = "5s"
"""
SQLITE3 = """\
#!{python}
import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]):
    print(*row, sep="|")
"""
"""The program of that name, which is not installed everywhere, as far as README uses it."""


class Stage:
    """A daemon on an account where something happened, with a site's table that it keeps true."""

    def __init__(self, folder: Path, standin: StandIn, base_url: str) -> None:
        self.folder = folder
        self.standin = standin
        self.site = f"sqlite:///{folder}/prod.db"
        site.make(self.site)
        with closing(sqlite3.connect(folder / "prod.db")) as table:
            table.execute('ALTER TABLE "Formation" ADD COLUMN "title" TEXT')
        site.add(self.site, EVENT, title="Vannerie sauvage")
        self.daemon = DaemonProcess(folder, base_url)
        with self.daemon.config.open("a") as config:
            config.write(self.publish())
        (folder / "mistaken").mkdir()
        (folder / "mistaken/config.toml").write_text(MISTAKEN)
        programs = folder / "bin"
        programs.mkdir()
        (programs / "sqlite3").write_text(SQLITE3.format(python=sys.executable))
        (programs / "sqlite3").chmod(0o755)
        self.path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])

    def publish(self) -> str:
        """Return README's block for a site's table, with this one in it."""
        block = re.findall(r"^```toml\n(\[\[publish\]\].*?)```", README, re.DOTALL | re.MULTILINE)[0]
        return re.sub(r'database = "[^"]*"', f'database = "{self.site}"', block)

    def carry_out(self, command: str) -> str:
        """Return what a command of README's prints here, with README's paths instead of this folder's."""
        here = str(self.folder)
        for path in ("/var/lib/syncd", "/srv/site/prisma"):
            command = command.replace(path, here)
        own = {"SYNCD_SOCKET": str(self.daemon.socket), "TZ": "Europe/Paris", "COLUMNS": "80"}
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder / "mistaken",
            env=environment(**own) | {"PATH": self.path},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return (done.stdout + done.stderr).replace(here, "/var/lib/syncd")

    def lose_most(self) -> None:
        """Let Billetweb's list have one event alone, and two runs see that."""
        self.standin.fail("/events", with_rows(lambda rows: rows[:1]), times=None)
        for _ in range(2):
            self.daemon.ctl("run-now")


BEFORE: dict[str, Callable[[Stage], None]] = {"syncctl doubts": Stage.lose_most}
"""What must happen before a command for README's output."""


@contextmanager
def staged() -> Iterator[Stage]:
    """Give a stage on which the first run is over, and the event's last place sold since."""
    standin = StandIn(events=6)
    with short_folder() as folder, serving(standin) as base_url:
        stage = Stage(folder, standin, base_url)
        with stage.daemon:
            stage.daemon.ran()
            look = "sqlite3 /var/lib/syncd/prod.db 'SELECT isFull FROM Formation'"
            eventually(lambda: stage.carry_out(look) == "0\n" and published(stage))
            standin.sell(EVENT, 12)
            assert stage.daemon.ctl("run-now").returncode == 0
            eventually(lambda: stage.carry_out(look) == "1\n")
            yield stage


def published(stage: Stage) -> bool:
    """Tell whether the site's table has got the places."""
    return stage.carry_out("sqlite3 /var/lib/syncd/prod.db 'SELECT placesLeft FROM Formation'") == "12\n"


def sessions() -> list[tuple[str, str]]:
    """Return README's commands in their order, each with what README shows below it."""
    blocks = BLOCK.findall(README)
    found = [entry for block in blocks for entry in COMMAND.findall(block)]
    return [(command, said) for command, said in found if command != ENDLESS]


def outputs(stage: Stage) -> Iterator[tuple[str, str]]:
    """Give back README's commands in their order, each with what it prints."""
    for command, _ in sessions():
        if prepare := BEFORE.get(command):
            prepare(stage)
        yield command, stage.carry_out(command.replace("\n    ", " "))


def main() -> None:
    """Write README anew."""
    text = README
    with staged() as stage:
        for (command, before), (_, now) in zip(sessions(), outputs(stage), strict=True):
            gap = "\n" if before.endswith("\n\n") else ""
            text = text.replace(f"$ {command}\n{before}", f"$ {command}\n{now}{gap}", 1)
    (ROOT / "README.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
