"""A throw-away MariaDB server for tests: in a folder of its own, on a Unix socket there."""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from sqlalchemy.engine import URL

from support.real_databases import query

START_S = 60.0
SETTINGS = (
    "--skip-networking",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=8M",
    "--sync-binlog=0",
    "--skip-log-bin",
    "--default-time-zone=+05:00",  # which is nobody's to lean on
)
"""Quick, and gone after the tests."""


def obstacle() -> str:
    """Return why there can be none here, "" where there can."""
    try:
        import pymysql  # noqa: F401
    except ImportError:
        return "PyMySQL is not installed: pip install PyMySQL"
    missing = [name for name in ("mariadbd", "mariadb-install-db", "setpriv") if not _program(name)]
    return f"{missing[0]} is not installed: apt-get install mariadb-server" if missing else ""


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


class Server:
    """A MariaDB server that trusts its `root`, and ends with this process."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sy-my-", dir="/tmp"))
        self._numbers = itertools.count(1)
        self._as = ["setpriv", "--pdeathsig", "KILL"]
        if os.geteuid() == 0:  # which the server refuses
            self._as += ["--reuid", "mysql", "--regid", "mysql", "--clear-groups"]
            shutil.chown(self.folder, "mysql")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        data = f"--datadir={self.folder}/data"
        install = [*self._as, str(_program("mariadb-install-db")), "--no-defaults", data]
        install += ["--auth-root-authentication-method=normal", "--skip-test-db"]
        done = subprocess.run(install, capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr
        files = [f"--{name}={self.folder}/{name}" for name in ("socket", "pid-file")]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*self._as, str(_program("mariadbd")), "--no-defaults", data, *files, *SETTINGS],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for pytest, which then ends it
            )
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                # Not by PyMySQL, which leaves a socket open that did not connect.
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(f"{self.folder}/socket")
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def url(self, database: str, user: str = "root") -> str:
        """Return the URL of a database, for a user without a password."""
        url = URL.create("mysql", user, database=database, query={"unix_socket": f"{self.folder}/socket"})
        return url.render_as_string(hide_password=False)

    def new(self) -> str:
        """Make a database, with letters that are equal in capitals; return its URL."""
        name = f"site_{next(self._numbers)}"
        query(self.url("mysql"), f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")
        return self.url(name)

    def close(self) -> None:
        """End the server and remove all of it."""
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait(START_S)
        shutil.rmtree(self.folder)
