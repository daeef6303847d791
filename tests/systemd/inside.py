"""What the tests in the machine share: commands, the service, its journal, the stand-in for Billetweb."""

import http.client
import json
import re
import socket
import sqlite3
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]

PROJECT = Path(__file__).parents[2]
CONFIG = Path("/etc/syncd/config.toml")
SOCKET = Path("/run/syncd/syncd.sock")
DATABASE = Path("/var/lib/syncd/syncd.db")
KEY_FILE = Path("/etc/syncd/credentials/billetweb-key")

USER = "24680"
KEY = "canary-5d1f0c7be2a94e63"
"""The API key; it must be found nowhere but in its file and its credential."""

PORT = 8099
BASE_URL = f"http://127.0.0.1:{PORT}/api"
FAULT = Path("/run/billetweb-fault")
BILLETWEB_UNIT = Path("/etc/systemd/system/billetweb.service")
BILLETWEB = """\
[Unit]
Description=Stand-in for Billetweb
Before=syncd.service
[Service]
Type=notify
ExecStart=/opt/tests/bin/python /project/tests/systemd/billetweb.py
# It would wait for requests that hang.
KillSignal=SIGKILL
SuccessExitStatus=SIGKILL
[Install]
WantedBy=multi-user.target
"""
_LATEST = ("journalctl", "--boot", "--unit=syncd*", "--lines=30", "--no-pager")


def run(
    *command: str, check: bool = True, stdin: str = "", within_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Return a finished command; with `check` it must have succeeded."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=within_s, check=False)
    assert done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def run_as(user: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Return a finished command of another user's, whatever came of it."""
    return run("runuser", "-u", user, "--", *command, check=False)


def make_user(name: str, *groups: str) -> None:
    """Make a user who is in these groups, unless an earlier boot did."""
    if run("id", name, check=False).returncode:
        run("useradd", "--create-home", "--groups", ",".join(groups), name)


def eventually(condition: Callable[[], Any], within_s: float = 30) -> Any:
    """Return what `condition` gives as soon as that is true; fail with the journal when it is not in time."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain; journal:\n{run(*_LATEST).stdout}"
        time.sleep(0.05)
    return found


# --- the service


def install_steps(project: Path) -> tuple[list[str], list[str]]:
    """Return the lines by which a version's README installs it, and those by which it starts it."""
    readme = (project / "README.md").read_text("utf-8")
    if before_0_4 := readme.partition("## A real account")[2].partition("\n## ")[0]:
        install, start = sh_blocks(before_0_4)
        return install, start
    (place,) = sh_blocks(readme.partition("### Any machine with systemd\n")[2].partition("\n### ")[0])
    (setup, *start), *_ = sh_blocks(readme.partition("### The checklist\n")[2].partition("\n## ")[0])
    return [*place, setup], start


def sh_blocks(text: str) -> list[list[str]]:
    """Return the lines of each block of commands."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [
        [line for line in textwrap.dedent(block).replace("\\\n", "").splitlines() if line] for block in blocks
    ]


def follow(line: str, project: Path = PROJECT) -> str:
    """Run a line of README where it belongs; where it asks, answer as a script. Return what it said."""
    asks = line.startswith("syncd setup") or "/dev/stdin" in line  # the latter in versions up to 0.3
    stdin = f"{KEY}\n" if asks else ""
    if line.startswith("syncd setup"):
        line = f"syncd setup --offline --user {USER} --key-file -"
    return run("bash", "-e", "-c", f"cd {project}\n{line}", stdin=stdin, within_s=240).stdout


def systemctl(*arguments: str) -> None:
    """Run a command of systemctl's, which must succeed."""
    run("systemctl", *arguments)


def shown(name: str, unit: str = "syncd.service") -> str:
    """Return a property of a unit as `systemctl show` prints it; instants to the microsecond, in UTC."""
    return run("systemctl", "show", "--timestamp=us+utc", "--value", "--property", name, unit).stdout.strip()


def shown_instant(name: str, unit: str = "syncd.service") -> datetime:
    """Return a property of a unit that is an instant."""
    return datetime.strptime(shown(name, unit), "%a %Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)


def pid(unit: str = "syncd.service") -> int:
    """Return the process id of the running daemon."""
    found = int(shown("MainPID", unit))
    assert found, f"{unit} does not run"
    return found


def status(path: Path = SOCKET) -> Json:
    """Return the Status; asked for without a program whose start would give the daemon time."""
    connection = http.client.HTTPConnection("syncd", timeout=15)
    with closing(connection):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(15)
        connection.sock.connect(str(path))
        connection.request("GET", "/v1/status")
        answer = connection.getresponse()
        assert answer.status == 200
        found: Json = json.loads(answer.read())
        return found


def next_run(*, within_s: float = 60) -> Json:
    """Ask for a run and return it, ended; `synced` and `outcome` say how."""
    done = run(
        "syncctl", "run-now", "--json", "--timeout", f"{within_s:.0f}s", check=False, within_s=within_s + 5
    )
    found: Json = json.loads(done.stdout)
    return found


def idle(run_count: int = 1, path: Path = SOCKET) -> Json:
    """Return the status once so many runs are on record and none is in progress."""

    def reached() -> Json | None:
        found = status(path)
        return found if found["run_count"] >= run_count and not found["current_run"] else None

    found: Json = eventually(reached, within_s=90)
    return found


def busy() -> Json:
    """Return the run in progress as soon as there is one."""
    found: Json = eventually(lambda: status()["current_run"])
    return found


def query(statement: str, database: Path = DATABASE) -> list[tuple[Any, ...]]:
    """Return what a query finds in the mirror."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


def configured(text: str, **values: str) -> str:
    """Return a configuration with these values in it, each in the place of the key's one line.

    That is the one in force, where there is one, and not the example of another table's key.
    """
    for key, value in values.items():
        sign = "" if re.search(rf"^{key} = ", text, re.MULTILINE) else "# "
        text, count = re.subn(rf"^{sign}{key} = .*", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, f"{key} is {count} times in {CONFIG}"
    return text


GOOD = configured(
    (PROJECT / "config.toml").read_text("utf-8"),
    user=f'"{USER}"',
    base_url=f'"{BASE_URL}"',
    interval='"1h"',
    requests_per_minute="100",
)
"""The supplied configuration, for the stand-in; no run comes by itself while a test looks."""


class Twin:
    """One more syncd beside the service: its unit as installed, under another name, with files of its own.

    `lines` are added to the unit, below its [Service]; `tables` are the settings, for [billetweb] and [sync].
    The next boot knows nothing of it.
    """

    def __init__(self, name: str, lines: str, tables: dict[str, dict[str, str]]) -> None:
        self.unit = f"syncd-{name}.service"
        self.socket = Path(f"/run/syncd-{name}/syncd.sock")
        self.database = Path(f"/var/lib/syncd-{name}/syncd.db")
        installed = Path("/etc/systemd/system/syncd.service").read_text()
        Path("/run/systemd/system", self.unit).write_text(f"{installed}\n[Service]\n{_TWIN}{lines}")
        own = {
            "billetweb": {"user": USER, "base_url": BASE_URL},
            "database": {"url": f"sqlite:///{self.database}"},
            "control": {"socket": str(self.socket)},
        }
        text = ""
        for table in own | tables:
            values = own.get(table, {}) | tables.get(table, {})
            text += "\n".join([f"[{table}]", *(f'{key} = "{value}"' for key, value in values.items()), ""])
        Path(f"/run/syncd-{name}.toml").write_text(text)

    def status(self) -> Json:
        """Return its Status."""
        return status(self.socket)

    def idle(self, run_count: int = 1) -> Json:
        """Return its status once so many runs are on record and none is in progress."""
        return idle(run_count, self.socket)


_TWIN = """\
Environment=SYNCD_CONFIG=/run/%N.toml
StateDirectory=
StateDirectory=%N
RuntimeDirectory=
RuntimeDirectory=%N
"""


# --- the journal


def cursor() -> str:
    """Return the place in the journal where it ends now."""
    run("journalctl", "--sync")
    return run("journalctl", "-n", "0", "--show-cursor", "--quiet").stdout.split("-- cursor: ")[-1].strip()


def journal(after: str = "", *matches: str) -> list[Json]:
    """Return the entries of this boot, or those after a cursor, of syncd's processes unless `matches`."""
    run("journalctl", "--sync")
    # Not --after-cursor: it skips an entry also where that of the cursor is not among the matches.
    since = ("--cursor", after) if after else ()
    wanted = matches or ("_SYSTEMD_UNIT=syncd.service",)
    found = run("journalctl", "--boot", "--output=json", "--all", "--quiet", *since, *wanted).stdout
    return [entry for line in found.splitlines() if (entry := json.loads(line))["__CURSOR"] != after]


def graver(entries: list[Json], than: int = 5) -> list[str]:
    """Return the messages of errors and warnings (priorities 0 to 4), or of another range."""
    return [entry["MESSAGE"] for entry in entries if int(entry["PRIORITY"]) < than]


# --- the stand-in for Billetweb


@contextmanager
def fault(name: str, pattern: str = "*") -> Iterator[None]:
    """Let Billetweb fail on these paths: see FAULTS in billetweb.py. Requests that hang stay so."""
    coming = FAULT.with_suffix(".new")
    coming.write_text(f"{pattern} {name}")
    coming.rename(FAULT)
    try:
        yield
    finally:
        FAULT.unlink()
