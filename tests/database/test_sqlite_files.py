"""What lies on the disk: who may read it, and how much of it there is."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import LogLines, Rig
from support.processes import short_folder

from syncd.database import sqlite
from syncd.database.engine import Database
from syncd.database.sqlite import WAL_BYTES
from syncd.errors import StoreError

pytestmark = pytest.mark.sqlite_only("a server looks after its own files")
OTHER = 61_234
GROUP = 61_235
"""A group that nobody has."""
READER = f"""
import os, sqlite3, sys
os.setgroups([{GROUP}])
os.setgid(61_234)
os.setuid(61_234)
connection = sqlite3.connect(sys.argv[1], uri=True)
print(connection.execute("SELECT * FROM syncd_availability").fetchall())
"""


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("mask", "mode"),
    [
        (0o000, "0o640"),
        (0o022, "0o640"),
        (0o002, "0o640"),
        (0o027, "0o640"),
        (0o077, "0o600"),
        (0o777, "0o600"),
    ],
)
def test_peoples_addresses_are_for_all_to_read(tmp_path: Path, mask: int, mode: str) -> None:
    """The file and those beside it are never for others; for the group where the umask leaves it that."""
    with umask(mask):
        database = Database(f"sqlite:///{tmp_path}/syncd.db")
        database.open()
        with database.begin(write=True) as connection:
            connection.exec_driver_sql("INSERT INTO syncd_state VALUES ('paused', 'true')")
        open_ = modes(tmp_path)
        database.close()
        closed = modes(tmp_path)
    files = {"syncd.db": mode, "syncd.db.lock": "0o600"}
    assert open_ == files | {"syncd.db-wal": mode, "syncd.db-shm": mode}
    assert closed == files


def read_by_the_group(path: Path) -> str:
    """Return what another user, who is in the file's group alone, gets of it."""
    command = [sys.executable, "-I", "-c", READER, f"file:{path}?mode=ro"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_reader_is_locked_out() -> None:
    """Who is in the group and may write nothing reads while syncd runs, and while it is stopped."""
    with short_folder() as folder, umask(0o027):
        os.chown(folder, -1, GROUP)
        folder.chmod(0o2750)  # what is made in it is of its group
        path = folder / "syncd.db"
        database = Database(f"sqlite:///{path}")
        database.open()
        assert read_by_the_group(path) == "[]\n"
        database.close()
        assert read_by_the_group(path) == "[]\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_a_run_by_root_locks_the_daemon_out() -> None:
    """What root makes in the daemon's folder, as by `syncd once`, belongs to the folder's owner."""
    with short_folder() as folder:
        os.chown(folder, OTHER, GROUP)
        database = Database(f"sqlite:///{folder}/syncd.db")
        database.open()
        with database.begin(write=True) as connection:
            connection.exec_driver_sql("INSERT INTO syncd_state VALUES ('paused', 'true')")
        found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()}
        database.close()
    ours = ("syncd.db", "syncd.db.lock", "syncd.db-wal", "syncd.db-shm")
    assert found == dict.fromkeys(ours, (OTHER, GROUP))


@pytest.mark.parametrize(
    ("mode", "told"), [(0o644, 1), (0o604, 1), (0o666, 1), (0o640, 0), (0o660, 0), (0o600, 0)]
)
def test_a_file_that_all_may_read_is_passed_over(
    tmp_path: Path, log_lines: LogLines, mode: int, told: int
) -> None:
    """The log says so at the start; the mode stays, since a site may live on it."""
    path = tmp_path / "syncd.db"
    for _ in range(2):
        log_lines.clear()
        database = Database(f"sqlite:///{path}")
        database.open()
        database.close()
        path.chmod(mode)
    assert len(log_lines.of("database.open_to_all")) == told
    assert path.stat().st_mode & 0o777 == mode


def test_a_file_that_cannot_be_opened_says_no_more_with_each_attempt(
    tmp_path: Path, log_lines: LogLines
) -> None:
    """Each run and each request tries again: the log says what hinders, not each time who may read it."""
    path = tmp_path / "syncd.db"
    path.write_text("a file of something else")
    path.chmod(0o644)
    database = Database(f"sqlite:///{path}")
    for _ in range(2):
        with pytest.raises(StoreError, match="not a database"):
            database.open()
    assert log_lines.of("database.open_to_all") == []


def test_a_log_that_its_last_reader_removes_is_an_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site opens and closes its file with each request: between two looks its log may be gone."""
    path, log, access = tmp_path / "site.db", tmp_path / "site.db-shm", os.access
    path.touch()

    def closed_meanwhile(asked: Path, mode: int) -> bool:
        if asked == log:
            log.unlink()
        return access(asked, mode)

    log.touch()
    monkeypatch.setattr(os, "access", closed_meanwhile)
    assert sqlite.obstacle(path, in_use=True) is None
    assert not log.exists()


def test_the_log_stays_as_long_as_the_longest_query_made_it(rig: Rig) -> None:
    """What a reader kept from being emptied is let go with the first run after it."""
    rig.run()
    path = Path(rig.url.removeprefix("sqlite:///"))
    log = path.with_name(path.name + "-wal")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM syncd_changes").fetchall()
        rows = [(number, "x" * 4000) for number in range(4000)]
        with closing(sqlite3.connect(path)) as writer, writer:
            writer.execute("CREATE TABLE theirs (number, text)")
            writer.executemany("INSERT INTO theirs VALUES (?, ?)", rows)
        assert rig.run().outcome == "ok"
        assert log.stat().st_size > 3 * WAL_BYTES
    assert rig.run().outcome == "ok"
    assert log.stat().st_size <= WAL_BYTES


def test_a_reader_at_each_runs_end_lets_the_log_grow_for_ever(rig: Rig) -> None:
    """A log that is never quite empty is cut back as soon as SQLite begins it anew."""
    rig.run()
    path = Path(rig.url.removeprefix("sqlite:///"))
    with rig.account.database.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_size_limit").scalar() == WAL_BYTES
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM syncd_changes").fetchall()
        with rig.account.database.begin(write=True) as connection:
            connection.exec_driver_sql("INSERT INTO syncd_requests VALUES (1)")
        assert not rig.account.database.checkpoint()
        reader.execute("COMMIT")
        assert rig.account.database.checkpoint()
