"""A real pgbouncer in front of a server of the tests."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from support.real_databases import START_S, Server, connected

PORT = 6432
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NEEDS_POOLER = pytest.mark.skipif(PROGRAM is None, reason="no pooler here: apt-get install pgbouncer")


@contextlib.contextmanager
def pooled(server: Server, url: str, mode: str, **settings: str) -> Iterator[str]:
    """Give the URL by which a database of the server is reached through a pooler in this mode."""
    folder = server.folder / f"pooler-{mode}"
    folder.mkdir()
    users = folder / "users"
    users.write_text('"tester" ""\n')
    lines = {
        "pool_mode": mode,
        "listen_port": str(PORT),
        "unix_socket_dir": str(folder),
        "auth_type": "trust",
        "auth_file": str(users),
        "logfile": str(folder / "log"),
        **settings,
    }
    config = folder / "pgbouncer.ini"
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    config.write_text(f"[databases]\n* = host={server.folder}\n[pgbouncer]\n{text}")
    command = ["setpriv", "--pdeathsig", "KILL"]
    if os.geteuid() == 0:  # it refuses root
        command += ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        for path in (folder, users, config):
            shutil.chown(path, "postgres")
    assert PROGRAM
    process = subprocess.Popen([*command, PROGRAM, "-q", str(config)], stderr=subprocess.DEVNULL, cwd="/")
    try:
        through = make_url(url).update_query_dict({"host": str(folder), "port": str(PORT)})
        found = through.render_as_string(hide_password=False)
        _await(found, folder)
        yield found
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _await(url: str, folder: Path) -> None:
    from psycopg import OperationalError

    bare = make_url(url).difference_update_query(["options"]).render_as_string(hide_password=False)
    deadline = time.monotonic() + START_S
    while True:
        try:
            with connected(bare):
                return
        except OperationalError:
            log = folder / "log"
            assert time.monotonic() < deadline, log.read_text() if log.exists() else "no pooler"
            time.sleep(0.02)
